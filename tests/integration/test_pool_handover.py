"""Hand-over: what the engine gives back goes straight to the next checkout, and only where nobody can tell."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import pytest
from tortoise.transactions import in_transaction

from pool import Pool
from pool.connections import HOT_S
from tests.engines import open_tortoise
from tests.observer import backend, observed_pool, proxied_pool
from tests.waiting import until

Environ = dict[str, str]


async def statement(pool: Pool, query: str = "SELECT 1") -> Any:
    """A statement of the engine's: out, one query, back."""
    connection = await pool.checkout()
    try:
        value = await connection.fetchval(query)
    except BaseException:
        await pool.checkin(connection)
        raise
    if not pool.try_checkin(connection):
        await pool.checkin(connection)
    return value


async def test_twenty_tasks_share_one_connection(environ: Environ) -> None:
    """One after another, in order, without asyncpg: not one release or reset between them."""
    async with observed_pool(environ, max_size=1) as (pool, _):
        pids = await asyncio.gather(*(statement(pool, "SELECT pg_backend_pid()") for _ in range(20)))
        now = pool.snapshot()
        assert len(set(pids)) == 1
        assert (now.acquires, now.handovers, now.resets, now.resets_skipped, now.created) == (20, 20, 0, 0, 1)


async def test_nothing_but_the_query_is_sent(environ: Environ) -> None:
    """Byte for byte: 50 statements cost 50 times what one costs, and what a user sends who holds on to it."""
    async with proxied_pool(environ, max_size=1) as (pool, _, proxy):
        user = await pool.acquire()
        await user.fetchval("SELECT 1")  # prepares it
        before = proxy.sent
        await user.fetchval("SELECT 1")
        alone = proxy.sent - before
        await pool.release(user)
        before = proxy.sent
        for _ in range(50):
            await statement(pool)
        assert proxy.sent - before == 50 * alone


async def test_asyncpg_has_it_back_every_second(environ: Environ) -> None:
    """Under constant load a release goes all the way at least so often: its timers and counters hang on it."""
    async with observed_pool(environ, max_size=1) as (pool, _):
        started = time.monotonic()
        releases: list[float] = []
        seen = 0
        while time.monotonic() - started < 3.3 * HOT_S:
            await statement(pool)
            now = pool.snapshot()
            if now.releases - now.handovers > seen:
                seen = now.releases - now.handovers
                releases.append(time.monotonic())
        gaps = [later - earlier for earlier, later in zip([started, *releases], releases, strict=False)]
        assert len(releases) == 3
        assert max(gaps) < HOT_S + 0.3
        assert pool.snapshot().created == 1


async def test_under_constant_load_what_is_not_needed_becomes_idle(environ: Environ) -> None:
    """One task works without a pause; the others' connections, hot at first, are closed after DB_MAX_IDLE_TIME."""
    async with observed_pool(environ, max_size=4, max_inactive_connection_lifetime=0.5) as (pool, observer):
        held = [await pool.checkout() for _ in range(4)]
        assert all(pool.try_checkin(connection) for connection in held)

        async def only_one_is_left() -> bool:
            await statement(pool)
            return pool.snapshot().closed == {"idle": 3}

        await until(only_one_is_left, timeout_s=8, what="three are closed", poll_s=0.0)
        await observer.count(1)


async def test_a_connection_that_nobody_wants_goes_back_to_asyncpg(environ: Environ) -> None:
    """In two seconds at most: its idle timer runs from then on."""
    async with observed_pool(environ, max_size=2, min_size=0) as (pool, _):
        await statement(pool)
        assert pool._connections.idle == 0
        await until(lambda: pool._connections.idle == 1, timeout_s=2 * HOT_S + 0.5, what="asyncpg has it")
        now = pool.snapshot()
        assert (now.size, now.idle, now.in_use) == (1, 1, 0)


async def test_users_go_all_the_way(environ: Environ) -> None:
    """Who keeps a connection after its release is refused, though its successor has the same one, even if hot."""
    async with observed_pool(environ, max_size=1) as (pool, _):
        for way in ("from asyncpg", "hot"):
            if way == "hot":
                await statement(pool)
            stale = await pool.acquire()
            pid = await stale.fetchval("SELECT pg_backend_pid()")
            handovers = pool.snapshot().handovers
            await pool.release(stale)
            assert pool.snapshot().handovers == handovers
            successor = await pool.acquire()
            assert await successor.fetchval("SELECT pg_backend_pid()") == pid
            with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                await stale.fetchval("SELECT 1")
            await pool.release(stale)
            assert pool.snapshot().in_use == 1
            await pool.release(successor)


async def test_a_user_in_line_gets_a_hot_connection_and_is_cut_off_after_it(environ: Environ) -> None:
    """From the engine to a user to the engine: the user's proxy is dead afterwards."""
    async with observed_pool(environ, max_size=1) as (pool, _):
        held = await pool.checkout()
        user = asyncio.create_task(pool.acquire())
        engine = asyncio.create_task(pool.checkout())
        await until(lambda: pool.snapshot().waiting == 2, timeout_s=2)
        assert pool.try_checkin(held)
        proxy = await user
        assert await proxy.fetchval("SELECT pg_backend_pid()") == held.get_server_pid()
        await pool.release(proxy)
        assert await engine is held
        with pytest.raises(asyncpg.InterfaceError):
            await proxy.fetchval("SELECT 1")
        await pool.checkin(held)


CHANGES = {
    "a setting": ("SET statement_timeout = 4321", "SELECT current_setting('statement_timeout') = '0'"),
    "set_config": ("SELECT set_config('work_mem', '77MB', false)", "SELECT current_setting('work_mem') <> '77MB'"),
    "an advisory lock": (
        "SELECT pg_advisory_lock(42)",
        "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    "a listener": ("LISTEN somebody", "SELECT count(*) = 0 FROM pg_listening_channels()"),
    "a cursor": ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) = 0 FROM pg_cursors WHERE name <> ''"),
    "a transaction": ("BEGIN; SET LOCAL work_mem = '77MB'", "SELECT current_setting('work_mem') <> '77MB'"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("waiting", [False, True])
async def test_a_changed_session_is_reset_first(environ: Environ, change: str, waiting: bool) -> None:
    """The next user of the connection, in line already or not, finds it as new."""
    query, as_new = CHANGES[change]
    async with observed_pool(environ, max_size=1) as (pool, _):
        connection = await pool.checkout()
        await connection.execute(query)
        next_one = asyncio.create_task(statement(pool, as_new)) if waiting else None
        if waiting:
            await until(lambda: pool.snapshot().waiting == 1, timeout_s=2)
        handovers = pool.snapshot().handovers
        assert not pool.try_checkin(connection)
        await pool.checkin(connection)
        assert (pool.snapshot().handovers, pool.snapshot().resets) == (handovers, 1)
        assert await (next_one or statement(pool, as_new)) is True
        assert pool.snapshot().created == 1


async def test_an_error_is_reset_too(environ: Environ) -> None:
    """asyncpg may have left `jit` off; and a hand-over follows again after the reset."""
    async with observed_pool(environ, max_size=1) as (pool, _):
        with pytest.raises(asyncpg.UndefinedTableError):
            await statement(pool, "SELECT * FROM nowhere")
        now = pool.snapshot()
        assert (now.resets, now.handovers) == (1, 0)
        await statement(pool)
        assert (pool.snapshot().resets, pool.snapshot().handovers) == (1, 1)


@pytest.mark.parametrize(("reset", "resets"), [("auto", 0), ("always", 5), ("never", 0)])
async def test_unchanged_sessions(environ: Environ, reset: str, resets: int) -> None:
    """`always` is asyncpg's way, without hand-over; the others send nothing."""
    async with observed_pool(environ, max_size=1, reset=reset) as (pool, _):
        for _ in range(5):
            await statement(pool)
        now = pool.snapshot()
        assert (now.resets, now.handovers) == (resets, 0 if reset == "always" else 5)


@pytest.mark.parametrize(("reset", "after"), [("auto", "0"), ("always", "0"), ("never", "1234ms")])
async def test_changed_sessions(environ: Environ, reset: str, after: str) -> None:
    """`never` means it: what was set stays, for users and for the engine."""
    async with observed_pool(environ, max_size=1, reset=reset) as (pool, _):
        user = await pool.acquire()
        await user.execute("SET statement_timeout = 1234")
        await pool.release(user)
        assert await statement(pool, "SHOW statement_timeout") == after
        assert (await statement(pool, "SHOW statement_timeout")) == after


async def test_a_changed_session_is_known_however_it_was_changed(environ: Environ) -> None:
    """By a user through a prepared statement, and in a transaction."""
    async with observed_pool(environ, max_size=1) as (pool, _):
        user = await pool.acquire()
        prepared = await user.prepare("SELECT set_config('work_mem', '77MB', false)")
        await prepared.fetchval()
        await pool.release(user)
        assert await statement(pool, "SELECT current_setting('work_mem')") != "77MB"
        user = await pool.acquire()
        async with user.transaction():
            await user.execute("SET work_mem = '77MB'")
        await pool.release(user)
        assert await statement(pool, "SELECT current_setting('work_mem')") != "77MB"
        assert pool.snapshot().resets == 2


# The same through Tortoise.


async def test_the_orm_s_statements_and_transactions_are_handed_over(environ: Environ) -> None:
    """A hundred statements and ten transactions on one connection, without one release of asyncpg's."""
    async with open_tortoise(environ, maxsize=1) as client:
        for _ in range(10):
            async with in_transaction() as transaction:
                await transaction.execute_query("SELECT 1")
            for _ in range(10):
                await client.execute_query("SELECT 1")
        now = client.pool.snapshot()
        assert (now.created, now.acquires, now.resets) == (1, 110, 0)
        assert now.handovers >= 110 - 3  # it may take longer than HOT_S


async def test_a_transaction_s_connection_that_was_lent_goes_all_the_way(environ: Environ) -> None:
    """acquire_connection() inside a transaction: who keeps that one is refused, and its changes are reset."""
    async with open_tortoise(environ, maxsize=1) as client:
        async with in_transaction() as transaction, transaction.acquire_connection() as lent:
            await lent.execute("SET SESSION work_mem = '77MB'")
        with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
            await lent.fetchval("SELECT 1")
        assert client.pool.snapshot().handovers == 0
        _, rows = await client.execute_query("SHOW work_mem")
        assert rows[0]["work_mem"] != "77MB"


async def test_a_connection_lent_by_an_inner_block_goes_all_the_way(environ: Environ) -> None:
    """Also where the inner one gave it out, and nothing was changed."""
    async with open_tortoise(environ, maxsize=1) as client:
        async with in_transaction():
            async with in_transaction() as inner, inner.acquire_connection() as lent:
                await lent.fetchval("SELECT 1")
            assert await lent.fetchval("SELECT 1") == 1
        with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
            await lent.fetchval("SELECT 1")
        assert client.pool.snapshot().handovers == 0


async def test_a_user_s_connection_is_cut_off(environ: Environ) -> None:
    """`async with client.acquire_connection()`: after the block it is nobody's, though hot before."""
    async with open_tortoise(environ, maxsize=1, guards={"acquire_timeout_s": 1.0}) as client:
        await client.execute_query("SELECT 1")
        async with client.acquire_connection() as connection:
            await connection.execute("LISTEN somebody")
        await client.execute_query("SELECT 1")
        with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
            await connection.fetchval("SELECT 1")
        _, rows = await client.execute_query("SELECT count(*) AS channels FROM pg_listening_channels()")
        assert rows[0]["channels"] == 0


async def test_changes_by_the_orm_s_statements_are_reset(environ: Environ) -> None:
    """In a script, in a transaction, by a query: whoever comes next finds the connection as new."""
    async with open_tortoise(environ, maxsize=1) as client:
        await client.execute_script("SET work_mem = '77MB'")
        _, rows = await client.execute_query("SHOW work_mem")
        assert rows[0]["work_mem"] != "77MB"
        async with in_transaction() as transaction:
            await transaction.execute_query("SELECT set_config('work_mem', '77MB', false)")
        _, rows = await client.execute_query("SHOW work_mem")
        assert rows[0]["work_mem"] != "77MB"
        await client.execute_query("SELECT pg_advisory_lock(7)")
        _, rows = await client.execute_query("SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory'")
        assert rows[0]["locks"] == 0


async def test_a_dead_hot_connection_is_not_handed_out(environ: Environ) -> None:
    """The server ended it while it was hot, or on its way to somebody in line."""
    async with observed_pool(environ, max_size=1) as (pool, observer):
        await observer.kill(await backend(pool))
        await until(lambda: pool.snapshot().size == 0, timeout_s=2)
        assert await statement(pool) == 1
        held = await pool.checkout()
        in_line = asyncio.create_task(statement(pool))
        await until(lambda: pool.snapshot().waiting == 1, timeout_s=2)
        assert pool.try_checkin(held)
        held.terminate()
        assert await in_line == 1
        assert pool.snapshot().created == 3
