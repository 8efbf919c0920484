"""PgBouncer's image on a real engine, before a real PostgreSQL that its set-up script has prepared."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pg8000.native
import pytest

from config.exit_codes import ExitCode
from tests.certificates import certificate, needs_openssl
from tests.e2e.pgbouncer_lab import (
    ADMIN,
    APP,
    HARDENED,
    PASSWORDS,
    POOL,
    RESERVE,
    START_S,
    TMPFS,
    Container,
    Lab,
    ask,
    connected,
    docker,
    serves,
)
from tests.processes import ROOT
from tests.secrecy import Secrecy
from tests.waiting import until, wait_until

SETUP = "/docker-entrypoint-initdb.d/20-pgbouncer.sh"
STOP_S = 20
BUILD_S = 900.0


@pytest.fixture(scope="module")
def lab(engine: None, tmp_path_factory: pytest.TempPathFactory, secrecy: Secrecy) -> Iterator[Lab]:
    """The image, built, and a network. At the end nothing is left, and the logs are searched for passwords."""
    name = f"pgb-{uuid.uuid4().hex[:8]}"
    folder = tmp_path_factory.mktemp("secrets")
    for secret, password in PASSWORDS.items():
        secrecy.secrets.add(password)
        (folder / secret).write_text(f"{password}\n")
        (folder / secret).chmod(0o444)
    with ExitStack() as stack:
        stack.callback(docker, "image", "rm", "--force", name, check=False)
        docker("build", "--tag", name, str(ROOT / "pgbouncer"), timeout_s=BUILD_S)
        stack.callback(docker, "network", "rm", name, check=False)
        docker("network", "create", name)
        yield Lab(name, name, folder, stack)


@pytest.fixture(scope="module")
def server(lab: Lab) -> Container:
    """PostgreSQL, prepared by the script when its data folder was new."""
    return lab.postgres(f"--volume={ROOT / 'pgbouncer' / 'setup.sh'}:{SETUP}:ro")


@pytest.fixture(scope="module")
def shared(lab: Lab, server: Container) -> Container:
    """A PgBouncer for the tests that do not stop it."""
    return lab.pgbouncer(server)


@pytest.fixture(autouse=True)
def logs(request: pytest.FixtureRequest, secrecy: Secrecy) -> Iterator[None]:
    """What the containers wrote is searched for passwords, too."""
    yield
    if "lab" in request.fixturenames:
        lab: Lab = request.getfixturevalue("lab")
        names = docker("ps", "--all", "--filter", f"network={lab.network}", "--format", "{{.Names}}").stdout.split()
        for name in names:
            (secrecy.folder / f"{name}.log").write_text(Container(name).logs)


# What the container is.


def test_not_root_and_nothing_to_write_to(lab: Lab, shared: Container) -> None:
    """By number, without capabilities; its files are its own; the root is read-only."""
    inspected = shared.inspect()["Config"]
    assert (inspected["User"], inspected["StopSignal"]) == ("10001:10001", "SIGINT")
    assert inspected["Labels"]["org.opencontainers.image.title"] == "poolctl-pgbouncer"
    status = dict(line.split(":\t", 1) for line in shared.run("cat", "/proc/1/status").stdout.splitlines())
    assert set(status["Uid"].split()) == {"10001"}
    assert int(status["CapEff"], 16) == 0
    assert shared.run("touch", "/opt/pgbouncer/new", check=False).returncode != 0
    modes = shared.run("stat", "-c", "%a %u %n", "/run/pgbouncer/pgbouncer.ini", "/run/pgbouncer/userlist.txt").stdout
    assert {line[:9] for line in modes.splitlines()} == {"600 10001"}
    size = json.loads(docker("image", "inspect", lab.image).stdout)[0]["Size"]
    assert size < 250_000_000


def test_one_password_in_one_place(lab: Lab, shared: Container) -> None:
    """The application's is nowhere; PgBouncer's own is in the secret and in a file that only it reads."""
    found = shared.run("grep", "-rlsF", "5be0", "/run", "/tmp", "/opt", "/etc", "/home", check=False).stdout.split()
    assert sorted(found) == ["/run/pgbouncer/userlist.txt", "/run/secrets/pgbouncer_password"]
    assert "app" not in shared.run("cat", "/run/pgbouncer/userlist.txt").stdout
    told = json.dumps(shared.inspect()) + docker("history", "--no-trunc", lab.image).stdout
    assert not any(password in told or json.dumps(password)[1:-1] in told for password in PASSWORDS.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--env=PGBOUNCER_DEFAULT_POOL_SIZE=26"], "lower PGBOUNCER_DEFAULT_POOL_SIZE to 22"),
        (["--env=PGBOUNCER_POOL_SIZE=5"], "PGBOUNCER_POOL_SIZE is not known"),
        (["--env=PGBOUNCER_PASSWORD_FILE=/none"], "the password file /none is missing"),
        (["--ulimit=nofile=512:512"], "needs 1077 open files, and at most 512 are allowed"),
    ],
)
def test_nonsense_ends_it(lab: Lab, options: list[str], said: str) -> None:
    """One line in the log, and exit code 2."""
    most = "--env=POSTGRES_MAX_CONNECTIONS=40"
    pool = "--env=PGBOUNCER_DEFAULT_POOL_SIZE=22"
    done = docker(
        *("run", "--rm", *HARDENED, *TMPFS, *lab.mounts("pgbouncer_password"), most, pool, *options, lab.image),
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.USAGE, 1)
    assert said in done.stderr


def test_without_a_tmpfs(lab: Lab) -> None:
    """It says which one it needs."""
    done = docker("run", "--rm", *HARDENED, *lab.mounts("pgbouncer_password"), lab.image, check=False)
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == "pgbouncer: uid 10001 cannot write to /run/pgbouncer: mount a tmpfs there\n"


# Who gets in.


async def test_scram_on_both_sides(server: Container, shared: Container) -> None:
    """The client's password is proved twice and known to nobody between; every hop of TCP asks for SCRAM."""
    rules = server.sql("SELECT DISTINCT auth_method FROM pg_hba_file_rules WHERE address = 'all'")
    assert rules == "scram-sha-256"
    async with connected(shared, server_settings={"application_name": "worker-3"}) as client:
        assert await client.fetchval("SELECT current_user") == "app"
        seen = server.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'worker-3' AND usename = 'app'"
        )
        assert int(seen) == 1
    assert ask(shared, "SHOW CONFIG")[0].keys() == {"key", "value", "default", "changeable"}
    config = {row["key"]: row["value"] for row in ask(shared, "SHOW CONFIG")}
    assert (config["auth_type"], config["pool_mode"]) == ("scram-sha-256", "transaction")


async def test_who_does_not_get_in(server: Container, shared: Container) -> None:
    """A wrong password, nobody, the superuser, replication, an expired password: refused at once, and logged."""
    server.sql(
        "CREATE ROLE old LOGIN PASSWORD 'pw-of-old' VALID UNTIL '2020-01-01'",
        "CREATE ROLE copy LOGIN REPLICATION PASSWORD 'pw-of-copy'",
    )
    refused = {
        "app": "wrong",
        "nobody": "wrong",
        "postgres": PASSWORDS["postgres_password"],
        "old": "pw-of-old",
        "copy": "pw-of-copy",
    }
    for user, password in refused.items():
        with pytest.raises(asyncpg.PostgresError, match=r"SASL authentication failed|no such user"):
            async with connected(shared, (user, password)):
                pass
    assert "password authentication failed" in shared.logs
    assert "no such user" in shared.logs


async def test_what_a_client_may_ask_for(shared: Container) -> None:
    """What a pooler cannot carry is refused rather than dropped; what is harmless is dropped."""
    async with connected(shared, server_settings={"extra_float_digits": "3"}) as client:
        assert await client.fetchval("SELECT 1") == 1
    for name, value in {"search_path": "shop", "jit": "off", "statement_timeout": "5s"}.items():
        with pytest.raises(asyncpg.PostgresError, match=f"unsupported startup parameter: {name}"):
            async with connected(shared, server_settings={name: value}):
                pass


def test_the_console(shared: Container) -> None:
    """PgBouncer's role does all; the application's looks; nobody else gets in."""
    assert ask(shared, "RELOAD") == ask(shared, "RECONNECT") == []
    assert ask(shared, "SHOW VERSION", APP)[0]["version"].startswith("PgBouncer 1.")
    assert {row["name"] for row in ask(shared, "SHOW DATABASES", APP)} >= {"postgres", "pgbouncer"}
    for command in ("RELOAD", "RECONNECT", "PAUSE", "SHUTDOWN", "SET max_client_conn = 1"):
        with pytest.raises(pg8000.native.DatabaseError, match="admin access needed"):
            ask(shared, command, APP)
    assert "default_pool_size" in shared.run("console", "-c", "SHOW CONFIG").stdout


async def test_a_console_command_in_asyncpg(shared: Container) -> None:
    """RECONNECT ends `poolctl migrate`, from a library that reads no rows there."""
    async with connected(shared, ADMIN, database="pgbouncer") as console:
        await console.execute("RECONNECT")


# What it does.


async def test_many_clients_on_few_connections(server: Container, shared: Container) -> None:
    """Sixty clients, their statements prepared once each, on five connections; no statement is missed."""
    query = "SELECT $1::int + $2::int"
    config = {row["key"]: row["value"] for row in ask(shared, "SHOW CONFIG")}
    assert config["max_prepared_statements"] == "200"
    names: set[str] = set()
    pids: set[int] = set()

    async def work(number: int) -> None:
        async with connected(shared) as client:
            for turn in range(20):
                assert await client.fetchval(query, number, turn) == number + turn
                pids.add(await client.fetchval("SELECT pg_backend_pid()"))
            async with client.transaction():
                await client.fetchval(query, 1, 1)
                rows = await client.fetch("SELECT name FROM pg_prepared_statements WHERE statement = $1", query)
                names.update(row["name"] for row in rows)

    await asyncio.gather(*(work(number) for number in range(60)))
    assert len(names) == 1
    assert names.pop().startswith("PGBOUNCER_")
    assert len(pids) <= POOL + RESERVE
    behind = server.sql(
        "SELECT usename, datname, count(*) FROM pg_stat_activity WHERE client_addr <> '127.0.0.1' GROUP BY 1, 2"
    )
    counts = {line.rpartition("|")[0]: int(line.rpartition("|")[2]) for line in behind.splitlines()}
    assert counts["app|app"] <= POOL + RESERVE
    assert counts["pgbouncer|postgres"] <= 2


async def test_a_change_of_the_schema(server: Container, shared: Container) -> None:
    """Plans that are kept go stale, for every client, until RECONNECT."""
    async with connected(shared) as client:
        await client.execute("CREATE TABLE IF NOT EXISTS thing (id int)")
        await client.fetch("SELECT * FROM thing")
        async with connected(shared) as other:
            await other.execute("ALTER TABLE thing ADD COLUMN name text")
        with pytest.raises(asyncpg.InvalidCachedStatementError):
            await client.fetch("SELECT * FROM thing")
        await asyncio.to_thread(ask, shared, "RECONNECT")
        assert await client.fetch("SELECT * FROM thing") == []


async def test_stop_lets_transactions_finish(lab: Lab, server: Container) -> None:
    """`docker stop`: nobody new, the transaction that runs is committed, an idle client does not hold it up."""
    pooler = lab.pgbouncer(server)
    server.run("psql", "-qU", "app", "-d", "app", "-c", "CREATE TABLE kept (id int)")
    host = pooler.host
    with ThreadPoolExecutor(1) as aside:
        async with connected(pooler, host=host), connected(pooler, host=host) as client:
            transaction = client.transaction()
            await transaction.start()
            await client.execute("INSERT INTO kept VALUES (1)")
            stopping = aside.submit(docker, "stop", "--time", str(STOP_S), pooler.name)
            await until(lambda: ", shutting down" in pooler.logs, what="the stop is noticed")
            with pytest.raises((OSError, TimeoutError)):
                async with connected(pooler, host=host, timeout=5):
                    pass
            await client.execute("INSERT INTO kept VALUES (2)")
            await transaction.commit()
            await asyncio.wrap_future(stopping)
        state = pooler.inspect()["State"]
    assert state["ExitCode"] == 0
    assert "server connections dropped, exiting" in pooler.logs
    assert server.sql("\\connect app", "SELECT sum(id) FROM kept") == "3"


async def test_the_server_restarts(lab: Lab, server: Container, shared: Container) -> None:
    """PgBouncer stays, healthy as it was, tells what is away, and serves again by itself, soon."""
    async with connected(shared) as client:
        assert await client.fetchval("SELECT 1") == 1
        await asyncio.to_thread(docker, "stop", server.name)
        check = await asyncio.to_thread(shared.health)
        assert check.returncode == 0
        assert "but PostgreSQL, through it, does not: " in check.stdout
        await asyncio.to_thread(docker, "start", server.name)

        async def served() -> bool:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with connected(shared) as another:
                    return bool(await another.fetchval("SELECT 1") == 1)
            return False

        await until(served, timeout_s=START_S, what="clients are served again")
    assert (await asyncio.to_thread(shared.health)).stdout.startswith("PgBouncer 1.")


@needs_openssl
async def test_tls_on_both_sides(lab: Lab, server: Container, tmp_path: Path) -> None:
    """Clients must use it, and the server must be the one that the authority vouches for."""
    crt, key = certificate(tmp_path / "tls", server.name)
    other, _ = certificate(tmp_path / "other", server.name)
    (tmp_path / "other").rename(tmp_path / "tls" / "other")
    for file in (crt, key, tmp_path / "tls" / "other" / other.name):
        file.chmod(0o444)
    for file in (crt, key):  # named as PostgreSQL's own defaults
        write = f'umask 077; cat > "$PGDATA/{file.name}"'
        docker("exec", "--interactive", "--user", "postgres", server.name, "sh", "-c", write, stdin=file.read_text())
    server.sql("ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()")
    mount = f"--volume={tmp_path / 'tls'}:/tls:ro"
    environ = {
        "PGBOUNCER_CLIENT_TLS_SSLMODE": "require",
        "PGBOUNCER_CLIENT_TLS_CERT_FILE": f"/tls/{crt.name}",
        "PGBOUNCER_CLIENT_TLS_KEY_FILE": f"/tls/{key.name}",
        "PGBOUNCER_SERVER_TLS_SSLMODE": "verify-full",
        "PGBOUNCER_SERVER_TLS_CA_FILE": f"/tls/{crt.name}",
    }
    try:
        pooler = lab.pgbouncer(server, mount, **environ)
        async with connected(pooler, ssl="require") as client:
            assert await client.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True
        with pytest.raises(asyncpg.PostgresError, match="SSL required"):
            async with connected(pooler):
                pass
        environ["PGBOUNCER_SERVER_TLS_CA_FILE"] = f"/tls/other/{other.name}"
        fooled = lab.pgbouncer(server, mount, answers=False, **environ)
        wait_until(
            lambda: "does not: " in fooled.health().stdout, timeout_s=START_S, what="PgBouncer's console answers"
        )
        assert fooled.health().returncode == 1
        assert "certificate verify failed" in fooled.logs
    finally:
        server.sql("ALTER SYSTEM RESET ssl", "SELECT pg_reload_conf()")


# Health.


def test_it_is_healthy_by_itself(shared: Container) -> None:
    """The engine runs the check of the image."""

    def status() -> bool:
        return bool(shared.inspect()["State"]["Health"]["Status"] == "healthy")

    wait_until(status, timeout_s=START_S, what="the engine calls it healthy", poll_s=0.5)


def test_unhealthy_until_the_server_is_prepared(lab: Lab) -> None:
    """On a database that exists the script is run by hand; only then is there anybody who can log in."""
    server = lab.postgres()
    pooler = lab.pgbouncer(server, answers=False)
    wait_until(lambda: "does not: " in pooler.health().stdout, timeout_s=START_S, what="PgBouncer's console answers")
    check = pooler.health()
    assert check.returncode == 1
    assert 'password authentication failed for user "pgbouncer"' in check.stdout
    script = (ROOT / "pgbouncer" / "setup.sh").read_text()
    prepared = docker("exec", "--interactive", server.name, "sh", stdin=script)
    assert (prepared.returncode, prepared.stdout, prepared.stderr) == (0, "", "")
    wait_until(lambda: serves(pooler), timeout_s=START_S, what="PgBouncer serves", poll_s=0.2)


def test_unhealthy_when_it_hangs(lab: Lab, server: Container) -> None:
    """Stopped as by a debugger: it accepts connections, but answers nobody."""
    pooler = lab.pgbouncer(server)
    docker("exec", pooler.name, "sh", "-c", "kill -STOP $(cat /proc/1/task/1/children)")
    assert pooler.health().returncode == 1
