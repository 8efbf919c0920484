"""The engine behind a real PgBouncer, and what it finds out about what stands before the server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tortoise.exceptions import BaseORMException, DBConnectionError, OperationalError

import pool.errors
from config import Settings
from config.exit_codes import ExitCode
from config.tortoise import asyncpg_connect_kwargs
from db import open_database
from db.errors import SchemaNotSet
from db.models import Subscriber
from local import Tether
from pool.pooler import Pooler
from tests.conftest import Environ
from tests.engines import OURS, STOCK, free_slots, open_tortoise
from tests.pgbouncer import PgBouncer, open_pgbouncer
from tests.pools import open_pool
from tests.proxy import open_proxy
from tests.secrecy import Secrecy
from tests.superuser import execute, value
from tests.waiting import until

pytestmark = pytest.mark.slow  # half a minute of real poolers

Opener = Callable[..., PgBouncer]

DIRECT = Pooler("none")
SESSION = Pooler("session")
TRACKED = Pooler("transaction", tracks_statements=True)
UNTRACKED = Pooler("transaction", tracks_statements=False)
TRACKING = 200  # max_prepared_statements

either_tracking = pytest.mark.parametrize("tracking", [0, TRACKING], ids=["untracked", "tracked"])


@pytest.fixture
def pgbouncer(environ: Environ, data_folder: Path, tether: Tether, secrecy: Secrecy) -> Iterator[Opener]:
    """Opens one with `pgbouncer(pool_mode=…)`, before this test's server."""
    with ExitStack() as stack:

        def open_one(**arguments: Any) -> PgBouncer:
            opened: AbstractContextManager[PgBouncer] = open_pgbouncer(
                environ, data_folder, tether, logs=secrecy.folder, **({"max_prepared_statements": 0} | arguments)
            )
            return stack.enter_context(opened)

        yield open_one


@contextlib.asynccontextmanager
async def another_client(environ: Environ, pooler: PgBouncer) -> AsyncIterator[Any]:
    """A client of the pooler that has nothing to do with us."""
    arguments = asyncpg_connect_kwargs(Settings.load("worker", environ | pooler.environ()))
    connection = await asyncpg.connect(**arguments, statement_cache_size=0)
    try:
        yield connection
    finally:
        await connection.close(timeout=1)


def transactions(pooler: PgBouncer, environ: Environ) -> int:
    """How many the pooler has passed on to this test's database."""
    rows = {row["database"]: row for row in pooler.ask("SHOW STATS")}
    return int(rows.get(environ["DB_NAME"], {"total_xact_count": 0})["total_xact_count"])


def clients(pooler: PgBouncer, environ: Environ) -> int:
    """How many connections the pooler has to this test's database from clients."""
    return sum(row["database"] == environ["DB_NAME"] for row in pooler.ask("SHOW CLIENTS"))


async def statements_kept(opened: Any) -> int:
    """How many prepared statements a connection keeps: its server has one more after a query, or none."""
    connection = await opened.acquire()
    try:
        await connection.fetchval("SELECT 1 + $1::int", 1)
        async with connection.transaction():
            count: int = await connection.fetchval(
                "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 1 + $1::int'"
            )
    finally:
        await opened.release(connection)
    return count


# What is found out.


@pytest.mark.parametrize(
    ("mode", "tracking", "declared", "expected"),
    [
        (None, 0, "auto", DIRECT),
        ("transaction", 0, "auto", UNTRACKED),
        ("transaction", TRACKING, "auto", TRACKED),
        ("session", 0, "auto", SESSION),
        ("session", TRACKING, "auto", SESSION),
        ("transaction", 0, "transaction", UNTRACKED),
        ("transaction", TRACKING, "transaction", TRACKED),
        ("transaction", 0, "session", SESSION),
        ("session", 0, "transaction", UNTRACKED),
        ("session", 0, "session", SESSION),
        (None, 0, "transaction", UNTRACKED),
    ],
)
async def test_what_stands_before_the_server(
    environ: Environ, pgbouncer: Opener, mode: str | None, tracking: int, declared: str, expected: Pooler
) -> None:
    """Found out at the first connection, or as DB_POOLER says; statements are kept where that is safe."""
    if mode is not None:
        pooler = pgbouncer(pool_mode=mode, max_prepared_statements=tracking, default_pool_size=2)
        environ |= pooler.environ()
    async with open_pool(environ, pooler=declared) as opened:
        assert opened.pooler == "none"  # nothing is connected yet
        await opened.release(await opened.acquire())
        assert opened._connections._connector.pooler == expected
        assert (opened.pooler, opened.snapshot().size, opened.snapshot().created) == (expected.kind, 1, 1)
        if mode is not None:
            assert clients(pooler, environ) == 1, "what was only for finding out is closed"
        if declared != "session" or mode == "session":
            assert await statements_kept(opened) == expected.tracks_statements


@pytest.mark.parametrize("declared", ["auto", "transaction"])
async def test_finding_out_leaves_no_statement_behind(environ: Environ, pgbouncer: Opener, declared: str) -> None:
    """The server's connections of a pooler outlive a client, and so would a statement that was prepared to see."""
    pooler = pgbouncer(default_pool_size=1)
    async with open_pool(environ | pooler.environ(), pooler=declared) as opened:
        await opened.release(await opened.acquire())
    async with another_client(environ, pooler) as client, client.transaction():
        assert await client.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0


async def test_told_that_there_is_none_nobody_looks(environ: Environ, pgbouncer: Opener) -> None:
    """DB_POOLER=none: connecting asks nothing; nor does DB_POOLER=session."""
    pooler = pgbouncer()
    for declared, asked in (("none", 0), ("session", 0), ("auto", 1)):
        before = transactions(pooler, environ)
        async with open_pool(environ | pooler.environ(), pooler=declared, min_size=1):
            assert min(1, transactions(pooler, environ) - before) == asked


async def test_a_start_needs_no_more_slots_than_its_pool(environ: Environ) -> None:
    """With no pooler, what finds that out is the pool's first connection: with exactly its number left, it starts."""
    own = {"user": "narrow", "password": "pw-of-narrow"}
    await execute(environ, "CREATE ROLE narrow LOGIN PASSWORD 'pw-of-narrow' CONNECTION LIMIT 1")
    try:
        async with open_pool(environ, **own, min_size=1, max_size=1) as opened:
            assert (opened.pooler, opened.snapshot().size, opened.snapshot().created) == ("none", 1, 1)
            with pytest.raises(pool.errors.TooManyClients):
                async with open_pool(environ, **own, min_size=1):
                    pass
    finally:
        await execute(environ, "DROP ROLE narrow")


async def test_whoever_waits_for_the_first_connection_shares_its_failure(
    environ: Environ, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten callers of a pool without a floor, and nobody answers: all know after one connect timeout, not after ten."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        proxy.deaf = True
        environ |= {"DB_PORT": str(proxy.listens_on)}
        async with open_pool(environ, timeout=0.3, max_size=10) as opened:
            started = time.monotonic()
            failures = await asyncio.gather(*(opened.acquire() for _ in range(10)), return_exceptions=True)
            assert all(isinstance(failure, DBConnectionError) for failure in failures), failures
            assert time.monotonic() - started < 1.3
            with pytest.raises(DBConnectionError):
                await opened.acquire()  # for whose failure nobody else waits
            gc.collect()
            assert "never retrieved" not in caplog.text
            proxy.deaf = False
            await opened.release(await opened.acquire())
            assert opened.snapshot().size == 1


async def test_one_who_stops_looking_is_relieved(environ: Environ) -> None:
    """The caller whose connection was to find out is cancelled; another, who waited for that, looks instead."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        proxy.deaf = True
        async with open_pool(environ | {"DB_PORT": str(proxy.listens_on)}) as opened:
            first = asyncio.create_task(opened.acquire())
            await until(lambda: proxy.accepted == 1, what="the first one connects")
            second = asyncio.create_task(opened.acquire())
            await until(lambda: opened._gate.taken == 2)
            proxy.deaf = False
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            async with asyncio.timeout(5):
                await opened.release(await second)
            assert await free_of(opened, 2)


async def free_of(opened: Any, limit: int) -> bool:
    """Whether a pool has all its places."""
    held = [await opened.acquire() for _ in range(limit)]
    for connection in held:
        await opened.release(connection)
    return opened.snapshot().in_use == 0


async def test_in_doubt_it_is_transaction_mode(
    environ: Environ, pgbouncer: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """A pooler in session mode that has one server connection: a second client waits, so nothing can be compared."""
    pooler = pgbouncer(pool_mode="session", default_pool_size=1)
    async with open_pool(environ | pooler.environ()) as opened:
        started = time.monotonic()
        await opened.release(await opened.acquire())
        assert time.monotonic() - started < 4
        assert opened._connections._connector.pooler == UNTRACKED
    assert "in which mode is not known (no answer in time)" in caplog.text


# What a pooler does not stand.


@either_tracking
async def test_many_queries_from_many_tasks(environ: Environ, pgbouncer: Opener, tracking: int) -> None:
    """1,000 queries of 20 tasks over fewer server connections than the pool has, and none fails."""
    pooler = pgbouncer(max_prepared_statements=tracking, default_pool_size=5)
    async with open_tortoise(environ | pooler.environ(), maxsize=10) as client:

        async def work(task: int) -> None:
            for turn in range(10):
                chat = f"{task}-{turn}"
                await Subscriber.create(chat=chat)
                await Subscriber.get(chat=chat)
                assert await Subscriber.filter(chat=chat).exists()
                _, rows = await client.execute_query("SELECT $1::int + $2::int AS sum", [task, turn])
                assert rows[0]["sum"] == task + turn
                await client.execute_query("SELECT chat FROM fleet_subscriber WHERE chat = $1", [chat])

        await asyncio.gather(*(work(task) for task in range(20)))
        assert await Subscriber.all().count() == 200
        snapshot = client.pool.snapshot()
        assert (snapshot.in_use, snapshot.closed, snapshot.resets) == (0, dict.fromkeys(snapshot.closed, 0), 0)


@pytest.mark.parametrize("reset", ["auto", "always"])
async def test_another_client_s_lock_survives_our_release(environ: Environ, pgbouncer: Opener, reset: str) -> None:
    """A session's advisory lock is the server connection's, on which our reset would run, too."""
    pooler = pgbouncer(default_pool_size=1)
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database"
    locks += " WHERE datname = current_database())"

    async def use(**options: Any) -> None:
        async with open_pool(environ | pooler.environ(), reset=reset, **options) as opened:
            connection = await opened.acquire()
            await connection.execute("SET work_mem = '5MB'")
            await opened.release(connection)

    async with another_client(environ, pooler) as client:
        await client.execute("SELECT pg_advisory_lock(42)")
        await use()
        assert await value(environ, locks) == 1
        await use(pooler="session")  # the reset that is not sent otherwise
        assert await value(environ, locks) == 0


async def test_a_changed_session_is_handed_on(environ: Environ, pgbouncer: Opener) -> None:
    """In transaction mode nothing is reset, so nothing has to go through asyncpg's release for it."""
    pooler = pgbouncer()
    behind = environ | pooler.environ()
    for through, reset, handed_on, resets in (
        (behind, "auto", 3, 0),
        (behind, "always", 3, 0),
        (environ, "auto", 0, 3),
    ):
        async with open_tortoise(through, reset=reset) as client:
            for _ in range(3):
                await client.execute_script("SET work_mem = '5MB'")
            snapshot = client.pool.snapshot()
            assert (snapshot.handovers, snapshot.resets) == (handed_on, resets)


async def test_session_features_warn_once_each(
    environ: Environ, pgbouncer: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """With the statement up to its first literal, and the line of the program; never where there is no pooler."""

    def hear(*_: object) -> None:
        """Does nothing."""

    pooler = pgbouncer()
    for through, said in ((environ, False), (environ | pooler.environ(), True)):
        async with open_pool(through) as opened:
            for _ in range(2):
                connection = await opened.acquire()
                await connection.execute("SET  work_mem\n= '5MB'")
                await connection.fetchval("SELECT pg_try_advisory_lock(7)")
                await connection.add_listener("news", hear)
                await connection.remove_listener("news", hear)
                await connection.execute("SET LOCAL work_mem = '5MB'")
                await opened.release(connection)
        warnings = [record.getMessage() for record in caplog.records if record.name == "pool.pooler"]
        if not said:
            assert warnings == []
    assert [re.sub(r"py:\d+", "py", warning) for warning in warnings if "said once" in warning] == [
        f"pool 'tested': behind a pooler in transaction mode {feature} is lost, or hits another client: {statement}, at"
        " tests/integration/test_pool_pooler.py in test_session_features_warn_once_each; said once"
        for feature, statement in (
            ("SET", "SET work_mem = …"),
            ("session advisory lock", "SELECT pg_try_advisory_lock(7)"),
            ("LISTEN", 'LISTEN "news"'),
        )
    ]


# Settings that a pooler does not pass on.


@pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "search_path"}], ids=["refused", "dropped"])
@pytest.mark.parametrize("declared", ["auto", "transaction", "session"])
async def test_a_schema_that_does_not_get_through(
    environ: Environ, pgbouncer: Opener, settings: dict[str, str], declared: str
) -> None:
    """The start fails with the line to run; after that line it works, and the fleet's own names are in that schema."""
    pooler = pgbouncer(settings=settings, pool_mode="session" if declared == "session" else "transaction")
    await execute(environ, "CREATE SCHEMA shop")
    loaded = Settings.load("worker", environ | pooler.environ() | {"DB_SCHEMA": "shop", "DB_POOLER": declared})
    started = time.monotonic()
    with pytest.raises(SchemaNotSet) as caught:
        async with open_database(loaded, check_schema=False):
            pass
    assert time.monotonic() - started < loaded.db.connect_timeout / 2, "it does not pass by itself"
    assert caught.value.exit_code is ExitCode.USAGE
    line = re.search(r"`(.*)`, then RECONNECT", str(caught.value))
    assert line is not None, caught.value
    assert line[1] == f'ALTER ROLE {environ["DB_USER"]} IN DATABASE {environ["DB_NAME"]} SET search_path = "shop"'
    await execute(environ, line[1])
    await asyncio.to_thread(pooler.ask, "RECONNECT")
    async with open_database(loaded, check_schema=False) as opened:
        rows = await opened.client.execute_query_dict("SELECT current_schema() AS name", [])
        assert rows == [{"name": "shop"}]


async def test_names_in_the_line_are_quoted(environ: Environ, pgbouncer: Opener) -> None:
    """A role and a path whose names mean nothing without quotes."""
    pooler = pgbouncer(users={"Odd Role": "pw-of-odd"})
    await execute(environ, "CREATE ROLE \"Odd Role\" LOGIN PASSWORD 'pw-of-odd'")
    try:
        with pytest.raises(pool.errors.SchemaNotSet) as caught:
            async with open_pool(
                environ | pooler.environ(),
                user="Odd Role",
                password="pw-of-odd",
                server_settings={"search_path": 'Shop, "My ""own"", Shop"'},
                min_size=1,
            ):
                pass
        line = f'ALTER ROLE "Odd Role" IN DATABASE {environ["DB_NAME"]} SET search_path = "shop", "My ""own"", Shop"'
        assert line in str(caught.value)
    finally:
        await execute(environ, 'DROP ROLE "Odd Role"')


async def test_what_is_refused_is_not_sent(
    environ: Environ, pgbouncer: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections come without it, application_name stays, and a warning says so once, however many there are."""
    pooler = pgbouncer()
    asked = {"application_name": "kept", "statement_timeout": "5s", "jit": "off"}
    async with open_pool(environ | pooler.environ(), server_settings=asked, min_size=2) as opened:
        connection = await opened.acquire()
        assert await connection.fetchval("SHOW application_name") == "kept"
        await opened.release(connection)
    refused = re.findall(r"refuses the server setting (\w+)", caplog.text)
    assert sorted(refused) == ["jit", "statement_timeout"]


# What happens to a pooler.


async def test_a_stale_plan_names_the_remedy(environ: Environ, pgbouncer: Opener) -> None:
    """After a change of the schema: direct it goes by itself; behind a pooler that tracks, RECONNECT is the way."""
    pooler = pgbouncer(max_prepared_statements=TRACKING, default_pool_size=1)
    query = "SELECT * FROM fleet_subscriber"
    await execute(environ, "ALTER TABLE fleet_subscriber ADD COLUMN zero int")
    async with open_tortoise(environ | pooler.environ()) as client, open_pool(environ) as direct:
        connection = await direct.acquire()
        await client.execute_query(query)
        await connection.fetch(query)
        await execute(environ, "ALTER TABLE fleet_subscriber ADD COLUMN one int")
        await connection.fetch(query)
        await direct.release(connection)
        with pytest.raises(OperationalError, match=r"plan is invalid.*: run RECONNECT in PgBouncer's admin console"):
            await client.execute_query(query)
        await asyncio.to_thread(pooler.ask, "RECONNECT")
        await client.execute_query(query)


@pytest.mark.parametrize("idle", [False, True])
async def test_a_pause_costs_time_only(environ: Environ, pgbouncer: Opener, idle: bool) -> None:
    """A read waits while the pooler is paused for over a second; so does one that asks its idle connection first."""
    pooler = pgbouncer()
    async with open_tortoise(environ | pooler.environ()) as client:
        await Subscriber.create(chat="there")
        used = time.monotonic()
        await until(lambda: not idle or time.monotonic() - used > 1.1, what="the connection was idle")
        await asyncio.to_thread(pooler.pause)
        paused = time.monotonic()
        reading = asyncio.ensure_future(Subscriber.get(chat="there"))
        await until(lambda: time.monotonic() - paused > 1.2, what="the pause")
        assert not reading.done()
        await asyncio.to_thread(pooler.resume)
        assert (await reading).chat == "there"
        assert await free_slots(client, 2) == 2


@either_tracking
async def test_a_pooler_that_restarts(environ: Environ, pgbouncer: Opener, tracking: int) -> None:
    """Reads of the ORM do not fail, writes fail within Tortoise's family alone, and all places are there afterwards."""
    pooler = pgbouncer(max_prepared_statements=tracking)
    failed: list[Exception] = []
    done = {"reads": 0, "writes": 0}
    over = asyncio.Event()

    async def read() -> None:
        while not over.is_set():
            await Subscriber.all().count()
            done["reads"] += 1

    async def write(task: int) -> None:
        while not over.is_set():
            try:
                await Subscriber.create(chat=f"{task}-{done['writes']}")
                done["writes"] += 1
            except Exception as error:
                failed.append(error)
            await asyncio.sleep(0)

    async with open_tortoise(environ | pooler.environ(), maxsize=4) as client:
        async with asyncio.TaskGroup() as group:
            for task in range(4):
                group.create_task(read())
                group.create_task(write(task))
            for _ in range(2):
                counts = dict(done)
                await until(lambda counts=counts: all(done[each] > counts[each] + 20 for each in done))
                seen = client.pool.statistics.connect_failures
                pooler.stop()
                await until(lambda seen=seen: client.pool.statistics.connect_failures > seen)
                pooler.start()
            counts = dict(done)
            await until(lambda: all(done[each] > counts[each] + 20 for each in done))
            over.set()
        assert failed
        assert all(isinstance(error, BaseORMException) for error in failed), failed
        assert client.pool.snapshot().in_use == 0
        assert await free_slots(client, 4) == 4


@pytest.mark.parametrize(("engine", "each"), [(OURS, 1), (STOCK, 2)], ids=["ours", "stock"])
async def test_a_query_is_one_transaction_of_the_server(
    environ: Environ, pgbouncer: Opener, engine: str, each: int
) -> None:
    """By the pooler's own count. Stock Tortoise: two, because its connections are reset at each release."""
    pooler = pgbouncer()
    own = {"statement_cache_size": 0} if engine == STOCK else {}
    async with open_tortoise(environ | pooler.environ(), engine, **own) as client:
        await Subscriber.create(chat="there")
        before = transactions(pooler, environ)
        for _ in range(50):
            await Subscriber.get(chat="there")
            await client.execute_query("SELECT $1::int", [1])
        assert transactions(pooler, environ) - before == 100 * each
