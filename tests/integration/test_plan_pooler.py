"""`poolctl plan --live` before a real PgBouncer."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from config import Settings
from db.errors import BadTLS, PoolerNotRead
from db.pooler import is_pooler, read_pooler
from local import Tether
from tests.conftest import Environ
from tests.pgbouncer import PgBouncer, find_pgbouncer, open_pgbouncer, program_version
from tests.processes import Spawner
from tests.proxy import open_proxy
from tests.secrecy import Secrecy
from tests.waiting import until

pytestmark = pytest.mark.slow  # real poolers

Opener = Callable[..., PgBouncer]
NOT_READ = "PgBouncer's settings are not read, the options and defaults count: "
SIZES = {"reserve_pool_size": 3, "max_client_conn": 400, "max_db_connections": 0}


@pytest.fixture
def pgbouncer(environ: Environ, data_folder: Path, tether: Tether, secrecy: Secrecy) -> Iterator[Opener]:
    """Open one with `pgbouncer(default_pool_size=…)`; the test's own user may look unless `stats_users` says else."""
    with ExitStack() as stack:

        def open_one(**arguments: Any) -> PgBouncer:
            arguments = {"stats_users": (environ["DB_USER"],), "settings": SIZES} | arguments
            opened: AbstractContextManager[PgBouncer] = open_pgbouncer(
                environ, data_folder, tether, logs=secrecy.folder, **arguments
            )
            return stack.enter_context(opened)

        yield open_one


def plan(spawn: Spawner, environ: Environ, *arguments: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """The JSON and what is on standard error."""
    done = spawn.run(
        *("poolctl", "plan", "--live", "--workers", "20", "--pool-max", "5", "--format", "json", *arguments),
        environ=environ,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout), done.stderr


def direct(environ: Environ, pooler: PgBouncer) -> Environ:
    """Processes go to the pooler, administration to the server."""
    return environ | pooler.environ() | {"DB_DIRECT_HOST": environ["DB_HOST"], "DB_DIRECT_PORT": environ["DB_PORT"]}


@pytest.mark.parametrize("past_it", [False, True], ids=["all-through-it", "DB_DIRECT_HOST"])
def test_settings_are_read(environ: Environ, spawn: Spawner, pgbouncer: Opener, past_it: bool) -> None:
    """That there is a pooler is seen; its settings and the server's own are the plan's, and flags win over them."""
    pooler = pgbouncer(default_pool_size=12)
    through = direct(environ, pooler) if past_it else environ | pooler.environ()
    # Told that there is one, nobody has used it yet: it has no pool to show.
    unused, _ = plan(spawn, direct(environ, pooler), "--pgbouncer")
    assert (unused["pooler"]["pools"], unused["pooler"]["servers"]) == (1, 12 + 3)
    made, errors = plan(spawn, through)
    assert errors == ""
    assert (made["max_connections"], made["reserved"], made["verdict"]) == (100, 3, "fits")
    assert made["pooler"] == {
        "clients_peak": 110,
        "clients_deploy": 210,
        "verdict": "fits",
        "verdict_deploy": "fits",
        "max_client_conn": 400,
        "default_pool_size": 12,
        "reserve_pool_size": 3,
        "max_db_connections": 0,
        "pools": 1,
        "servers": 12 + 3,
    }
    assert (made["servers_peak"], made["servers_deploy"]) == (12 + 3 + 10, 12 + 3 + 10)
    given, _ = plan(spawn, through, "--default-pool-size", "30", "--max-client-conn", "90", "--users", "2", code=1)
    assert given["pooler"]["servers"] == 2 * (30 + 3)
    assert (given["pooler"]["max_client_conn"], given["pooler"]["pools"]) == (90, 2)
    without, _ = plan(spawn, through, "--no-pgbouncer", code=1)
    assert without["pooler"] is None


def test_settings_of_one_database(environ: Environ, spawn: Spawner, pgbouncer: Opener) -> None:
    """A database's own settings count for it, the text names them, and a flag wins over them, too."""
    own = "pool_size=7 reserve_pool=1 max_db_connections=6"
    through = environ | pgbouncer(databases={environ["DB_NAME"]: own}).environ()
    made, _ = plan(spawn, through)
    assert (made["pooler"]["default_pool_size"], made["pooler"]["servers"]) == (20, 6)
    text = spawn.run("poolctl", "plan", "--live", "--workers", "20", "--pool-max", "5", environ=through).stdout
    assert f"{environ['DB_NAME']}: pool_size=7, reserve_pool_size=1, max_db_connections=6)" in text
    given, _ = plan(spawn, through, "--max-db-connections", "0", "--default-pool-size", "9")
    assert given["pooler"]["servers"] == 9 + 1


async def test_pools_of_others_count(environ: Environ, pgbouncer: Opener) -> None:
    """Another user of the database has a pool of its own, and so has another database; another server's has not."""
    name = environ["DB_NAME"]
    pooler = pgbouncer(users={"other": "pw-of-other"}, databases={"elsewhere": "port=1", "postgres": "pool_size=4"})
    settings = Settings.load("worker", environ | pooler.environ())
    server = await asyncpg.connect(**arguments(environ, name))
    await server.execute("CREATE ROLE other LOGIN PASSWORD 'pw-of-other'")
    clients = []  # kept open: PgBouncer soon forgets a database of its `*` that nobody uses
    try:
        for login in (
            arguments(environ, name, user="other", password="pw-of-other"),
            arguments(environ, "postgres"),
            arguments(environ, "elsewhere"),
        ):
            try:
                timeout_s = 0.5 if login["database"] == "elsewhere" else 10.0
                clients.append(await asyncpg.connect(**login | {"port": pooler.port, "timeout": timeout_s}))
            except (TimeoutError, asyncpg.PostgresError):
                assert login["database"] == "elsewhere"
        report = await read_pooler(settings)
    finally:
        for client in clients:
            await client.close()
        pooler.stop()  # its connections to the server are those of the role
        await server.execute("DROP ROLE other")
        await server.close()
    assert [(each.name, each.users, each.pool_size) for each in report.databases] == [("postgres", 1, 4), (name, 2, 20)]


def arguments(environ: Environ, database: str, **changes: str) -> dict[str, Any]:
    """For a plain connection to the server."""
    login = {"user": environ["DB_USER"], "password": environ["DB_PASSWORD"], **changes}
    return login | {"host": environ["DB_HOST"], "port": int(environ["DB_PORT"]), "database": database, "ssl": False}


async def test_own_limits_since_1_24(environ: Environ, pgbouncer: Opener) -> None:
    """A database may let in fewer clients than PgBouncer does, and a user may have a pool_size."""
    if program_version(find_pgbouncer()) < (1, 24):
        pytest.skip("these settings are of PgBouncer 1.24")
    pooler = pgbouncer(
        databases={environ["DB_NAME"]: "max_db_client_connections=50"},
        user_settings={environ["DB_USER"]: "pool_size=33"},
    )
    report = await read_pooler(Settings.load("worker", environ | pooler.environ()))
    assert report.max_client_conn == 50
    assert report.databases[0].pool_size == 33


def test_not_allowed(environ: Environ, spawn: Spawner, pgbouncer: Opener) -> None:
    """Who may not look gets the plan, and one line with the line to add."""
    made, errors = plan(spawn, environ | pgbouncer(stats_users=()).environ())
    assert (made["verdict"], made["pooler"]["default_pool_size"], made["pooler"]["servers"]) == ("fits", 25, 30)
    assert len(errors.splitlines()) == 1
    assert errors.startswith(NOT_READ)
    assert "/pgbouncer: not allowed: add to pgbouncer.ini, and RELOAD: stats_users = postgres\n" in errors


def test_not_allowed_and_over(environ: Environ, spawn: Spawner, pgbouncer: Opener) -> None:
    """The exit code is the plan's own, also with what was not read; flags count."""
    pooler = pgbouncer(stats_users=())
    made, errors = plan(spawn, environ | pooler.environ(), "--default-pool-size", "95", code=1)
    assert (made["verdict"], made["pooler"]["default_pool_size"]) == ("over", 95)
    assert errors.startswith(NOT_READ)


def test_pooler_down(environ: Environ, spawn: Spawner, pgbouncer: Opener) -> None:
    """Down it is one line: where it is the only way, exit 3; where the server is reached past it, beside the plan."""
    pooler = pgbouncer()
    pooler.stop()
    done = spawn.run("poolctl", "plan", "--live", "--workers", "1", environ=environ | pooler.environ())
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
    for option in ((), ("--pgbouncer",)):
        made, errors = plan(spawn, direct(environ, pooler), *option)
        assert (made["pooler"]["default_pool_size"], made["max_connections"]) == (25, 100)
        assert len(errors.splitlines()) == 1
        assert errors.startswith(NOT_READ)
        assert f"127.0.0.1:{pooler.port}/" in errors


def test_bad_password(environ: Environ, spawn: Spawner, pgbouncer: Opener, secrecy: Secrecy) -> None:
    """A password that PgBouncer does not take is one line without it, in each way."""
    secrecy.secrets.add("no-such-secret")
    pooler = pgbouncer()
    wrong = environ | pooler.environ() | {"DB_PASSWORD": "no-such-secret"}
    done = spawn.run("poolctl", "plan", "--live", "--workers", "1", environ=wrong)
    assert done.returncode in (2, 3)
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)
    assert "no-such-secret" not in done.stderr
    # The server takes the password, PgBouncer has another.
    other = pgbouncer(users={environ["DB_USER"]: "another-one"})
    made, errors = plan(spawn, direct(environ, other), "--pgbouncer")
    assert made["pooler"]["default_pool_size"] == 25
    assert len(errors.splitlines()) == 1
    assert "authentication failed" in errors
    assert environ["DB_PASSWORD"] not in errors


def test_no_pooler(environ: Environ, spawn: Spawner) -> None:
    """Without one there is none, and where --pgbouncer says there is, one line says what is there instead."""
    made, errors = plan(spawn, environ, code=1)
    assert (made["pooler"], errors) == (None, "")
    made, errors = plan(spawn, environ, "--pgbouncer")
    assert made["pooler"]["servers"] == 30
    assert len(errors.splitlines()) == 1
    assert 'database "pgbouncer" does not exist' in errors


def test_again_and_again_in_transaction_mode(environ: Environ, spawn: Spawner, pgbouncer: Opener) -> None:
    """No run leaves anything on the pooler's connections at which the next one fails."""
    through = environ | pgbouncer(max_prepared_statements=0, default_pool_size=1).environ()
    for _ in range(3):
        assert plan(spawn, through)[1] == ""


async def test_several_hosts(environ: Environ, pgbouncer: Opener) -> None:
    """The first host that answers is asked, and a Unix socket is a host as well."""
    pooler = pgbouncer()
    several = {"DB_HOST": f"127.0.0.1,{pooler.host}", "DB_PORT": f"1,{pooler.port}"}
    for where in (several, {"DB_HOST": str(pooler.log.parent), "DB_PORT": str(pooler.port)}):
        settings = Settings.load("worker", environ | where)
        assert await is_pooler(settings)
        assert (await read_pooler(settings)).max_client_conn == 400


async def test_silence_and_nonsense(environ: Environ) -> None:
    """Who does not answer in time, and who answers something else, is one line."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        settings = Settings.load(
            "worker", environ | {"DB_PORT": str(proxy.listens_on), "DB_CONNECT_TIMEOUT": "0.3", "DB_SSLMODE": "prefer"}
        )
        proxy.deaf = True
        with pytest.raises(PoolerNotRead, match="timed out: is PgBouncer running"):
            await read_pooler(settings)
        proxy.deaf, proxy.greeting = False, b"HTTP/1.1 400 Bad Request\r\n\r\n"
        with pytest.raises(PoolerNotRead, match=r"/pgbouncer: [^\n]+\Z"):
            await read_pooler(settings)


@pytest.fixture
def certificate(data_folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for `localhost`, and its key, which PgBouncer's account can read."""
    crt, key = data_folder / "pgbouncer.crt", data_folder / "pgbouncer.key"
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("openssl makes the certificate and is not on PATH")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *subject, "-out", crt, "-keyout", key], check=True, capture_output=True)
    for path in (crt, key):
        path.chmod(0o644)
    return crt, key


async def test_tls(environ: Environ, pgbouncer: Opener, certificate: tuple[Path, Path]) -> None:
    """DB_SSLMODE and DB_SSLROOTCERT count for the console, too."""
    crt, key = certificate
    tls = {"client_tls_sslmode": "require", "client_tls_cert_file": crt, "client_tls_key_file": key}
    pooler = pgbouncer(settings=SIZES | tls)

    def settings(mode: str, root: Path | None = None, host: str = "localhost") -> Settings:
        changes = {"DB_HOST": host, "DB_PORT": str(pooler.port), "DB_SSLMODE": mode}
        return Settings.load("worker", environ | changes | ({"DB_SSLROOTCERT": str(root)} if root else {}))

    for mode, root in (("prefer", None), ("require", None), ("require", crt), ("verify-full", crt)):
        assert (await read_pooler(settings(mode, root))).max_client_conn == 400
    with pytest.raises(PoolerNotRead):  # another name than the certificate's
        await read_pooler(settings("verify-full", crt, host="127.0.0.1"))
    with pytest.raises(PoolerNotRead):  # PgBouncer insists on TLS
        await read_pooler(settings("disable"))
    with pytest.raises(BadTLS):  # no root certificate to verify with
        await read_pooler(settings("verify-ca", crt.with_name("no-such.crt")))


async def test_harness_restarts_and_pauses(environ: Environ, pgbouncer: Opener) -> None:
    """After a restart it listens where it did; paused it lets a query wait, resumed it lets it through."""
    pooler = pgbouncer()
    port = pooler.port
    pooler.restart()
    assert pooler.port == port
    login = arguments(environ, environ["DB_NAME"]) | {"port": port, "statement_cache_size": 0}
    client = await asyncpg.connect(**login)
    pooler.pause()
    query = asyncio.create_task(client.fetchval("SELECT 1"))
    await until(lambda: any(row["cl_waiting"] for row in pooler.ask("SHOW POOLS")), what="the query waits")
    assert not query.done()
    pooler.resume()
    assert await query == 1
    await client.close()
