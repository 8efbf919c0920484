"""Handing out connections and taking them back, with real faults on a real server."""

from __future__ import annotations

import asyncio
import logging
import random
import time

import asyncpg
import pytest
from tortoise.exceptions import DBConnectionError, OperationalError

from pool import Pool, PoolError, PoolTimeout, recording
from tests.pools import acquired, idle_for, open_pool
from tests.proxy import open_proxy, through
from tests.superuser import value
from tests.waiting import until

Environ = dict[str, str]


async def backend(pool: Pool) -> int:
    """The server process of the connection that the pool hands out now."""
    connection = await pool.acquire()
    try:
        pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    finally:
        await pool.release(connection)
    return pid


async def test_an_exhausted_pool_says_who_waited_how_long_and_for_what(environ: Environ) -> None:
    """PoolTimeout comes at its deadline with the pool's name and numbers; the pool goes on afterwards."""
    async with open_pool(environ, acquire_timeout_s=0.2) as pool:
        holder = asyncio.create_task(acquired(pool, 2), name="the holder")
        held = await holder
        started = time.monotonic()
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire()
        assert 0.2 <= time.monotonic() - started < 0.7
        assert str(caught.value) == (
            "pool 'tested': no connection came free within 0.2 s (DB_POOL_TIMEOUT); limit=2, size=2, in use=2, idle=0,"
            " waiting=1; held by task 'the holder' for 0.2 s; held by task 'the holder' for 0.2 s: raise DB_POOL_MAX,"
            " run fewer jobs at once, or hold connections for a shorter time"
        )
        assert isinstance(caught.value, OperationalError)
        assert pool.snapshot().timeouts == 1
        for connection in held:
            await pool.release(connection)
        await backend(pool)
        assert pool.snapshot().waiting == 0


async def test_a_server_that_does_not_answer_is_not_called_a_full_pool(environ: Environ) -> None:
    """Where connecting takes too long, the error is another one, and so is what to do."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        proxy.deaf = True
        async with open_pool(through(proxy, environ), acquire_timeout_s=0.2, pooler="none") as pool:
            with pytest.raises(DBConnectionError, match=r"could not be opened within 0\.2 s") as caught:
                await pool.acquire()
            assert not isinstance(caught.value, PoolTimeout)
            assert pool.snapshot().timeouts == 0


async def test_errors_of_connecting_are_in_tortoise_s_family(environ: Environ) -> None:
    """A server that does not answer in time, and one that refuses: DBConnectionError at once, the cause chained."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        proxy.deaf = True
        async with open_pool(through(proxy, environ), timeout=0.1, pooler="none") as pool:
            with pytest.raises(DBConnectionError, match="cannot connect: no answer in time") as caught:
                await pool.acquire()
            assert isinstance(caught.value.__cause__, TimeoutError)
            await proxy.stop()
            with pytest.raises(DBConnectionError, match="cannot connect") as caught:
                await pool.acquire()
            assert isinstance(caught.value.__cause__, ConnectionRefusedError)
            assert pool.snapshot().connect_failures == 2


async def test_a_connection_that_the_server_closed_is_replaced(environ: Environ) -> None:
    """After pg_terminate_backend of an idle connection the next caller gets a new one."""
    async with open_pool(environ) as pool:
        old = await backend(pool)
        await value(environ, "SELECT pg_terminate_backend($1, 5000)", old)
        assert await backend(pool) != old


async def test_a_connection_that_went_silent_is_replaced(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """Idle connections behind a pulled cable are found by the ping, each within its second, and replaced."""
    caplog.set_level(logging.INFO)
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_pool(through(proxy, environ), min_size=2) as pool,
    ):
        old = await backend(pool)
        proxy.freeze()
        await idle_for(1.1)
        started = time.monotonic()
        assert await backend(pool) != old
        assert time.monotonic() - started < 4
        assert "pool 'tested': replaced a dead connection" in caplog.text


async def test_without_pre_ping_nobody_asks(environ: Environ) -> None:
    """DB_POOL_PRE_PING=false hands out an idle connection as it is."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_pool(through(proxy, environ), pre_ping=False) as pool,
    ):
        await backend(pool)
        proxy.freeze()
        await idle_for(1.1)
        connection = await pool.acquire()
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT 1", timeout=0.2)
        await pool.release(connection)


async def test_cancelling_a_ping_gives_the_place_back(environ: Environ) -> None:
    """A caller that is cancelled while its connection is being checked does not keep a place in the pool."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_pool(through(proxy, environ), max_size=1) as pool,
    ):
        await backend(pool)
        proxy.freeze()
        await idle_for(1.1)
        asking = asyncio.create_task(pool.acquire())
        await until(lambda: pool.snapshot().waiting == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await backend(pool)


async def test_an_old_connection_is_replaced_when_it_is_handed_out(environ: Environ) -> None:
    """Past DB_MAX_LIFETIME a connection is closed and its place taken by a new one; before, it is used again."""
    async with open_pool(environ, max_lifetime_s=0.3, max_size=1) as pool:
        first = await backend(pool)
        assert await backend(pool) == first
        await idle_for(0.31)
        assert await backend(pool) != first
        assert pool.snapshot().size == 1
        gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $1"
        await until(lambda: value(environ, gone, first), what="the old connection is closed")


async def test_lifetimes_have_jitter(environ: Environ) -> None:
    """Connections opened together expire at different times, none later than the limit, none before 90 % of it."""
    async with open_pool(environ, max_lifetime_s=1000.0, min_size=10, max_size=10) as pool:
        now = time.monotonic()
        held = [await pool.acquire() for _ in range(10)]
        left_s = [connection.expires_at - now for connection in held]
        for connection in held:
            await pool.release(connection)
    assert max(left_s) - min(left_s) > 1.0
    assert max(left_s) <= 1000.0
    assert min(left_s) > 899.0


async def test_release_does_not_wait_for_a_silent_server(environ: Environ) -> None:
    """Giving back a connection behind a pulled cable takes about a second, raises nothing, frees the place."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_pool(through(proxy, environ), max_size=1) as pool,
    ):
        connection = await pool.acquire()
        proxy.freeze()
        query = asyncio.create_task(connection.fetchval("SELECT 1"))
        await asyncio.sleep(0)
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        started = time.monotonic()
        await pool.release(connection)
        assert time.monotonic() - started < 2
        await backend(pool)


async def test_release_of_a_broken_connection_raises_nothing(environ: Environ) -> None:
    """What the caller did has its result by then; an error of the reset must not hide it."""
    async with open_pool(environ, max_size=1, reset="always") as pool:
        connection = await pool.acquire()
        await value(environ, "SELECT pg_terminate_backend($1)", connection.get_server_pid())
        await pool.release(connection)
        assert pool.snapshot().in_use == 0
        await until(lambda: pool.snapshot().size == 0, what="its end is noticed")
        await backend(pool)


async def test_releasing_twice_and_late_is_harmless(environ: Environ) -> None:
    """A second release does not take the connection from whoever has it now, nor does one after closing."""
    async with open_pool(environ, max_size=1) as pool:
        first = await pool.acquire()
        await pool.release(first)
        second = await pool.acquire()
        await pool.release(first)
        assert pool.snapshot().in_use == 1
        assert await second.fetchval("SELECT 1") == 1
        await pool.close(grace_s=0.1)
        await pool.release(second)
        await pool.close()


async def test_a_closed_pool_refuses(environ: Environ) -> None:
    """Acquiring from a closed pool is an error of ours with the pool's name."""
    async with open_pool(environ) as pool:
        await pool.close()
        with pytest.raises(PoolError, match="pool 'tested' is closed"):
            await pool.acquire()


async def test_closing_gives_up_on_a_silent_server(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """With a server that went silent, closing takes its bounded time and raises nothing."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_pool(through(proxy, environ), min_size=2) as pool,
    ):
        connection = await pool.acquire()
        proxy.freeze()
        started = time.monotonic()
        await pool.close(grace_s=0.3)
        assert time.monotonic() - started < 1.0
        assert pool.snapshot().size == 0
        assert "cut off after 0.3 s of closing, 1 connections still in use" in caplog.text
        await pool.release(connection)


async def test_expired_connections_are_replaced(environ: Environ) -> None:
    """expire_connections() has the next caller get a new connection."""
    async with open_pool(environ, max_size=1) as pool:
        old = await backend(pool)
        await pool.expire_connections()
        assert await backend(pool) != old


async def test_terminate_ends_connections_in_use(environ: Environ) -> None:
    """terminate() cuts off at once, and what was in use can still be given back."""
    async with open_pool(environ) as pool:
        connection = await pool.acquire()
        pool.terminate()
        assert (pool.snapshot().size, pool.snapshot().in_use) == (0, 0)
        await pool.release(connection)
        with pytest.raises(asyncpg.InterfaceError):
            await connection.fetchval("SELECT 1")


async def test_two_hundred_callers_share_two_connections(environ: Environ) -> None:
    """Nobody is left out, never more than the limit are in use, and the numbers add up."""
    async with open_pool(environ) as pool:
        with recording() as recorded:
            await asyncio.gather(*(backend(pool) for _ in range(200)))
        now = pool.snapshot()
        assert (now.acquires, now.queries, now.peak, now.size) == (200, 200, 2, 2)
        assert (now.in_use, now.waiting, now.timeouts) == (0, 0, 0)
        assert pool.statistics.waits == 198
        assert len(recorded.waits) == len(recorded.queries) == 200
        assert sorted(recorded.waits)[189] == pytest.approx(now.wait_p95_s, abs=0.5)


async def test_cancelled_callers_lose_no_connection(environ: Environ) -> None:
    """However callers are cancelled — waiting, connecting, in a query, at release — all places come back."""
    chance = random.Random(7)
    async with open_pool(environ, max_lifetime_s=0.05) as pool:
        for _ in range(30):
            callers = [asyncio.create_task(backend(pool)) for _ in range(10)]
            for caller in callers:
                asyncio.get_running_loop().call_later(chance.uniform(0, 0.02), caller.cancel)
            await asyncio.gather(*callers, return_exceptions=True)
        held = [await pool.acquire(), await pool.acquire()]
        assert {await connection.fetchval("SELECT 1") for connection in held} == {1}
        for connection in held:
            await pool.release(connection)
        assert (pool.snapshot().in_use, pool.snapshot().waiting) == (0, 0)


async def test_only_callers_statements_count(environ: Environ) -> None:
    """Pings and the reset at release are the pool's own business; each kind of statement counts once."""
    async with open_pool(environ, max_size=1) as pool:
        await backend(pool)
        await idle_for(1.1)
        connection = await pool.acquire()
        before = pool.snapshot().queries
        await connection.execute("CREATE TEMPORARY TABLE numbers (n int)")
        await connection.executemany("INSERT INTO numbers VALUES ($1)", [(1,), (2,)])
        await connection.fetch("SELECT n FROM numbers")
        await connection.fetchrow("SELECT n FROM numbers")
        await connection.fetchval("SELECT n FROM numbers")
        await connection.fetchmany("INSERT INTO numbers VALUES ($1) RETURNING n", [(3,)])
        assert pool.snapshot().queries - before == 6
        await pool.release(connection)
        assert (before, pool.snapshot().queries) == (1, 7)


async def test_a_session_is_reset_at_release(environ: Environ) -> None:
    """What one caller set for its session the next one does not see."""
    async with open_pool(environ, max_size=1) as pool:
        connection = await pool.acquire()
        await connection.execute("SET statement_timeout = 1234")
        await connection.fetchval("SELECT pg_advisory_lock(1)")
        await pool.release(connection)
        connection = await pool.acquire()
        assert await connection.fetchval("SHOW statement_timeout") == "0"
        assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        await pool.release(connection)


async def test_a_failed_query_is_recorded_too(environ: Environ) -> None:
    """A recording holds the duration of a query that raised."""
    async with open_pool(environ) as pool:
        connection = await pool.acquire()
        with recording() as recorded, pytest.raises(asyncpg.PostgresSyntaxError):
            await connection.fetch("SELEKT 1")
        assert len(recorded.queries) == 1
        await pool.release(connection)
