"""`poolctl migrate` ends with PgBouncer's RECONNECT, before a real PgBouncer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from config import Settings
from db.errors import PoolerNotReconnected
from db.pooler import is_unused, reconnect
from db.pooler_console import addresses_of, in_thread
from local import Tether
from local.port import free_port
from tests.conftest import Environ
from tests.pgbouncer import PgBouncer, open_pgbouncer
from tests.processes import Spawner
from tests.proxy import open_proxy
from tests.secrecy import Secrecy

pytestmark = pytest.mark.slow  # real poolers

Opener = Callable[..., PgBouncer]
CONSOLE_PASSWORD = "pw-of-the-console"


@pytest.fixture
def pgbouncer(environ: Environ, data_folder: Path, tether: Tether, secrecy: Secrecy) -> Iterator[Opener]:
    """Open one with `pgbouncer(…)`; its user `pgbouncer` is an admin unless `admin_users` says else."""
    secrecy.secrets.add(CONSOLE_PASSWORD)
    with ExitStack() as stack:

        def open_one(**arguments: Any) -> PgBouncer:
            usual: dict[str, Any] = {"admin_users": ("pgbouncer",), "users": {"pgbouncer": CONSOLE_PASSWORD}}
            opened: AbstractContextManager[PgBouncer] = open_pgbouncer(
                environ, data_folder, tether, logs=secrecy.folder, default_pool_size=1, **usual | arguments
            )
            return stack.enter_context(opened)

        yield open_one


def beside(environ: Environ, pooler: PgBouncer, **changes: str) -> Environ:
    """Migrations go to the server, and PgBouncer is named."""
    named = {
        "PGBOUNCER_HOST": pooler.host,
        "PGBOUNCER_PORT": str(pooler.port),
        "PGBOUNCER_PASSWORD": CONSOLE_PASSWORD,
    }
    return environ | named | changes


@asynccontextmanager
async def client(environ: Environ, port: int | str, *, cache: int = 0) -> AsyncIterator[Any]:
    """A plain connection to the server or to a pooler before it; `cache`: statements that asyncpg keeps prepared."""
    connection = await asyncpg.connect(
        host=environ["DB_HOST"],
        port=int(port),
        user=environ["DB_USER"],
        password=environ["DB_PASSWORD"],
        database=environ["DB_NAME"],
        ssl=False,
        statement_cache_size=cache,
    )
    try:
        yield connection
    finally:
        await connection.close(timeout=5.0)


async def server_process(environ: Environ, pooler: PgBouncer) -> int:
    """Which of the server's processes a fresh client of the pooler gets."""
    async with client(environ, pooler.port) as connection:
        process: int = await connection.fetchval("SELECT pg_backend_pid()")
        return process


async def migrate(spawn: Spawner, environ: Environ) -> tuple[str, str]:
    """What `poolctl migrate` prints, and what it warns of."""
    done = await asyncio.to_thread(spawn.run, "poolctl", "migrate", environ=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


async def test_a_stale_plan_is_gone(environ: Environ, spawn: Spawner, pgbouncer: Opener) -> None:
    """A plan that a server connection keeps fails for every client after ALTER TABLE, until the migration ends."""
    pooler = pgbouncer()
    async with client(environ, environ["DB_PORT"]) as server:
        await server.execute("CREATE TABLE thing (a int)")
        async with client(environ, pooler.port) as one:
            await one.execute("PREPARE things AS SELECT * FROM thing")
            await one.execute("EXECUTE things")
            await server.execute("ALTER TABLE thing ADD COLUMN b int")
            for _ in range(2):
                with pytest.raises(asyncpg.InvalidCachedStatementError):
                    await one.execute("EXECUTE things")
            async with client(environ, pooler.port) as fresh:
                with pytest.raises(asyncpg.InvalidCachedStatementError):
                    await fresh.execute("EXECUTE things")
            before = await server_process(environ, pooler)
            printed, warned = await migrate(spawn, beside(environ, pooler))
            assert printed.splitlines()[-1] == f"PgBouncer at {pooler.host}:{pooler.port}: RECONNECT"
            assert warned == ""
            assert await server_process(environ, pooler) != before
            await one.execute("PREPARE things AS SELECT * FROM thing")
            await one.execute("EXECUTE things")


async def test_a_statement_that_pgbouncer_tracks(environ: Environ, spawn: Spawner, pgbouncer: Opener) -> None:
    """The same with a statement that asyncpg prepared and PgBouncer shares between clients (1.21 and later)."""
    pooler = pgbouncer(max_prepared_statements=200)
    query = "SELECT * FROM thing"
    async with client(environ, environ["DB_PORT"]) as server, client(environ, pooler.port, cache=100) as one:
        await server.execute("CREATE TABLE thing (a int)")
        await one.fetch(query)
        await server.execute("ALTER TABLE thing ADD COLUMN b int")
        async with client(environ, pooler.port, cache=100) as fresh:
            for each in (one, one, fresh, fresh):
                with pytest.raises(asyncpg.InvalidCachedStatementError):
                    await each.fetch(query)
            await migrate(spawn, beside(environ, pooler))
            assert [await each.fetch(query) for each in (one, fresh)] == [[], []]


async def test_a_transaction_is_not_disturbed(environ: Environ, spawn: Spawner, pgbouncer: Opener) -> None:
    """Whoever is in a transaction finishes it on its connection, and gets another one after it."""
    pooler = pgbouncer()
    async with client(environ, pooler.port) as one:
        async with one.transaction():
            before = await one.fetchval("SELECT pg_backend_pid()")
            await migrate(spawn, beside(environ, pooler))
            assert await one.fetchval("SELECT pg_backend_pid()") == before
        assert await one.fetchval("SELECT pg_backend_pid()") != before


async def test_without_one_nothing_is_said(environ: Environ, spawn: Spawner) -> None:
    """No PGBOUNCER_HOST, a name that nobody has, and a port where nobody listens: nothing printed, nothing warned."""
    for named in (
        {},
        {"PGBOUNCER_HOST": "no-such-host.invalid"},
        {"PGBOUNCER_HOST": "localhost", "PGBOUNCER_PORT": str(free_port())},
    ):
        printed, warned = await migrate(spawn, environ | named)
        assert "PgBouncer" not in printed
        assert warned == ""


@pytest.mark.parametrize(
    ("arguments", "changes", "says"),
    [
        ({}, {"PGBOUNCER_PASSWORD": "kT7-wrong"}, "correct PGBOUNCER_USER=pgbouncer and PGBOUNCER_PASSWORD (or"),
        ({}, {"PGBOUNCER_PASSWORD": ""}, "correct PGBOUNCER_USER=pgbouncer and PGBOUNCER_PASSWORD (or"),
        ({}, {"PGBOUNCER_USER": "nobody"}, "correct PGBOUNCER_USER=nobody and PGBOUNCER_PASSWORD (or"),
        ({"admin_users": ()}, {}, "not allowed: add to pgbouncer.ini, and RELOAD: admin_users = pgbouncer"),
        (
            {"admin_users": (), "stats_users": ("pgbouncer",)},
            {},
            "admin access needed: add to pgbouncer.ini, and RELOAD: admin_users = pgbouncer",
        ),
    ],
    ids=["wrong password", "no password", "wrong user", "no admin", "may look only"],
)
async def test_refused(
    environ: Environ,
    spawn: Spawner,
    pgbouncer: Opener,
    arguments: dict[str, Any],
    changes: dict[str, str],
    says: str,
) -> None:
    """Who is not let in is one warning that says what to do, never a secret; the migration counts as done."""
    pooler = pgbouncer(**arguments)
    printed, warned = await migrate(spawn, beside(environ, pooler, **changes))
    assert "RECONNECT" not in printed
    assert len(warned.splitlines()) == 1
    assert warned.startswith(f"warning: PgBouncer at {pooler.host}:{pooler.port}: ")
    assert says in warned
    assert "until its admin console is given RECONNECT" in warned
    assert "kT7" not in warned
    assert CONSOLE_PASSWORD not in warned


async def test_password_from_a_file(environ: Environ, spawn: Spawner, pgbouncer: Opener, tmp_path: Path) -> None:
    """As compose mounts it."""
    pooler = pgbouncer()
    (tmp_path / "password").write_text(f"{CONSOLE_PASSWORD}\n")
    named = beside(environ, pooler, PGBOUNCER_PASSWORD="", PGBOUNCER_PASSWORD_FILE=str(tmp_path / "password"))
    printed, warned = await migrate(spawn, named)
    assert (printed.splitlines()[-1].endswith(": RECONNECT"), warned) == (True, "")


async def test_silence_and_nonsense(environ: Environ) -> None:
    """Who does not answer in time, and who answers something else, is one line; and it does not take long."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        named = {"PGBOUNCER_HOST": "127.0.0.1", "PGBOUNCER_PORT": str(proxy.listens_on)}
        settings = Settings.load("poolctl", environ | named | {"DB_CONNECT_TIMEOUT": "0.3"})
        proxy.deaf = True
        started = time.monotonic()
        with pytest.raises(
            PoolerNotReconnected, match=r"/?127.0.0.1:\d+: (timed out|no answer in time): see PgBouncer"
        ):
            await reconnect(settings)
        assert time.monotonic() - started < 3
        proxy.deaf, proxy.greeting = False, b"HTTP/1.1 400 Bad Request\r\n\r\n"
        with pytest.raises(PoolerNotReconnected, match=r"\APgBouncer at [^\n]+\Z"):
            await reconnect(settings)
        proxy.greeting = None
        with pytest.raises(PoolerNotReconnected, match=r'password authentication failed|database "pgbouncer" does not'):
            await reconnect(settings)


async def test_a_thread_is_not_waited_for() -> None:
    """What does not end in time is left alone."""
    with pytest.raises(TimeoutError):
        await in_thread(lambda: time.sleep(5), within_s=0.05)
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0, within_s=5)  # type: ignore[arg-type]
    assert await in_thread(lambda: 7, within_s=5) == 7


async def test_a_pooler_that_nobody_uses(environ: Environ, spawn: Spawner, pgbouncer: Opener) -> None:
    """`poolctl check` finds a PgBouncer past which DB_HOST leads, and is content when it leads there, by any name."""
    pooler = pgbouncer()
    named = beside(environ, pooler)
    done = await asyncio.to_thread(spawn.run, "poolctl", "check", environ=named)
    assert done.returncode == 1
    finding = f"finding: PgBouncer runs at {pooler.host}:{pooler.port}, and nobody uses it: DB_HOST leads to "
    assert finding in done.stdout
    direct = {"DB_DIRECT_HOST": environ["DB_HOST"], "DB_DIRECT_PORT": environ["DB_PORT"]}
    for host in (pooler.host, "localhost"):
        used = named | {"DB_HOST": host, "DB_PORT": str(pooler.port)} | direct
        done = await asyncio.to_thread(spawn.run, "poolctl", "check", environ=used)
        assert done.returncode == 0, done.stdout + done.stderr
    pooler.stop()
    assert not await is_unused(Settings.load("worker", named))
    assert not await is_unused(Settings.load("worker", named | {"PGBOUNCER_HOST": "no-such-host.invalid"}))


async def test_a_pooler_in_the_place_of_the_server(environ: Environ, spawn: Spawner, pgbouncer: Opener) -> None:
    """`poolctl check` finds that DB_HOST is a pooler where DB_DIRECT_HOST does not name the server."""
    through = environ | pgbouncer().environ()
    done = await asyncio.to_thread(spawn.run, "poolctl", "check", environ=through)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "finding: DB_HOST leads to a pooler at 127.0.0.1:" in done.stdout
    assert "set DB_DIRECT_HOST (and DB_DIRECT_PORT) to the server" in done.stdout


async def test_silence_is_no_pooler(environ: Environ) -> None:
    """An address that takes connections and says nothing is not taken for a pooler."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        named = {"PGBOUNCER_HOST": "127.0.0.1", "PGBOUNCER_PORT": str(proxy.listens_on)}
        settings = Settings.load("poolctl", environ | named | {"DB_CONNECT_TIMEOUT": "0.3"})
        assert await is_unused(settings)  # a server speaks the same protocol
        proxy.deaf = True
        assert not await is_unused(settings)


def test_addresses() -> None:
    """A name gives all it stands for, a folder itself, and an unknown name nothing."""
    assert ("127.0.0.1", 6432) in addresses_of("localhost", 6432)
    assert addresses_of("/run/postgresql", 6432) == {("/run/postgresql", 6432)}
    assert addresses_of("no-such-host.invalid", 6432) == set()
