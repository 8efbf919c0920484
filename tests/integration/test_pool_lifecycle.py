"""From a connection's opening to its end: age, idleness, number of queries, order of reuse, closing, statistics."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import Any

import asyncpg
import pytest
from tortoise.exceptions import DBConnectionError

from pool import Pool, PoolClosed, PoolSaturated, PoolTimeout
from tests.observer import backend, observed_pool, proxied_pool, warm
from tests.pools import idle_for
from tests.waiting import until

Environ = dict[str, str]


async def used(pool: Pool, way: str) -> int:
    """One checkout by a user or by the engine; the server process that it got."""
    if way == "engine":
        return await backend(pool)
    connection = await pool.acquire()
    pid: int = connection.get_server_pid()
    await pool.release(connection)
    return pid


WAYS = pytest.mark.parametrize("way", ["user", "engine"])


# Age.


@WAYS
async def test_an_old_connection_ends_when_it_comes_back(environ: Environ, way: str) -> None:
    """It became old while it was in use: nobody is disturbed, and nobody gets it again."""
    async with observed_pool(environ, max_lifetime_s=0.2, max_size=1) as (pool, observer):
        connection = await (pool.acquire() if way == "user" else pool.checkout())
        await idle_for(0.21)
        assert await connection.fetchval("SELECT 1") == 1
        if way == "user":
            await pool.release(connection)
        else:
            assert not pool.try_checkin(connection)
            await pool.checkin(connection)
        assert pool.snapshot().size == 0
        await until(lambda: pool.snapshot().closed == {"age": 1}, timeout_s=2)
        await observer.count(0)


@WAYS
async def test_an_old_connection_ends_when_it_is_next_taken(environ: Environ, way: str) -> None:
    """It became old while it was idle, hot or with asyncpg: replaced, counted as age."""
    async with observed_pool(environ, max_lifetime_s=0.2, max_size=1) as (pool, _):
        old = await used(pool, way)
        await idle_for(0.21)
        assert await used(pool, way) != old
        await until(lambda: pool.snapshot().closed == {"age": 1}, timeout_s=2)
        assert pool.snapshot().created == 2


@WAYS
async def test_expired_connections_are_replaced(environ: Environ, way: str) -> None:
    """Hot, idle or in use as expire_connections() is called: none is handed out again; new ones are not concerned."""
    async with observed_pool(environ, max_size=3) as (pool, observer):
        old = await warm(pool, 2)
        held = await pool.acquire()
        old.add(await used(pool, way))
        await pool.expire_connections()
        await pool.release(held)
        held_by_us = [await pool.acquire() for _ in range(3)]
        new = {connection.get_server_pid() for connection in held_by_us}
        assert not old & new
        for connection in held_by_us:
            await pool.release(connection)
        assert await used(pool, way) in new
        await until(lambda: pool.snapshot().closed == {"expired": 2}, timeout_s=2)
        await observer.count(3)


# Idleness, number of queries, order.


@pytest.mark.parametrize(("elastic", "way"), [(False, "user"), (False, "engine"), (True, "engine")])
async def test_idle_connections_end_down_to_the_floor(environ: Environ, elastic: bool, way: str) -> None:
    """DB_MAX_IDLE_TIME, though they were hot at first; the floor is there at the end."""
    async with observed_pool(
        environ, max_size=4, min_size=1, max_inactive_connection_lifetime=0.3, elastic=elastic
    ) as (pool, observer):
        held = [await (pool.acquire() if way == "user" else pool.checkout()) for _ in range(4)]
        for connection in held:
            if way == "user":
                await pool.release(connection)
            else:
                assert pool.try_checkin(connection)
        await until(lambda: pool.snapshot().closed.get("idle", 0) >= 3, timeout_s=8, what="three are closed as idle")
        assert set(pool.snapshot().closed) == {"idle"}
        await until(lambda: pool.snapshot().size == 1, timeout_s=5, what="the floor is left")
        await observer.count(1)


@WAYS
async def test_a_connection_ends_after_so_many_queries(environ: Environ, way: str) -> None:
    """DB_MAX_QUERIES as asyncpg counts them, under constant load too."""
    async with observed_pool(environ, max_size=1, max_queries=10) as (pool, _):
        pids = []
        for _ in range(60):
            if way == "user":
                connection = await pool.acquire()
                pids.append(await connection.fetchval("SELECT pg_backend_pid()"))
                await pool.release(connection)
            else:
                checked_out = await pool.checkout()
                pids.append(await checked_out.fetchval("SELECT pg_backend_pid()"))
                if not pool.try_checkin(checked_out):
                    await pool.checkin(checked_out)
        uses = [pids.count(pid) for pid in set(pids)]
        assert max(uses) <= 10
        assert len(uses) >= 6
        assert set(pool.snapshot().closed) == {"queries"}


async def test_a_connection_that_ends_on_a_silent_line_holds_nobody_up(environ: Environ) -> None:
    """asyncpg closes it on return, as its queries are used up, pings among them: that takes about a second."""
    async with proxied_pool(environ, max_size=1, max_queries=4, pre_ping_idle_s=0.0, command_timeout=5.0) as (
        pool,
        _,
        proxy,
    ):
        await used(pool, "user")  # its ping counts with asyncpg, not with us
        connection = await pool.acquire()
        for _ in range(3):
            await connection.fetchval("SELECT 1")
        proxy.freeze()
        started = time.monotonic()
        await pool.release(connection)
        assert time.monotonic() - started < 2.0
        await backend(pool)


@WAYS
async def test_last_in_first_out(environ: Environ, way: str) -> None:
    """The one that came back last goes out first, so that those a small load does not need become idle."""
    async with observed_pool(environ, max_size=4) as (pool, _):
        held = [await (pool.acquire() if way == "user" else pool.checkout()) for _ in range(4)]
        pids = [connection.get_server_pid() for connection in held]
        for connection in held:
            if way == "user":
                await pool.release(connection)
            else:
                assert pool.try_checkin(connection)
        again = [await (pool.acquire() if way == "user" else pool.checkout()) for _ in range(4)]
        assert [connection.get_server_pid() for connection in again] == pids[::-1]
        for connection in again:
            await (pool.release(connection) if way == "user" else pool.checkin(connection))


# Pre-ping.


async def test_zero_asks_before_every_use(environ: Environ) -> None:
    """A connection whose line went silent after its last use is replaced, though that was just now."""
    async with proxied_pool(environ, max_size=1, pre_ping_idle_s=0.0) as (pool, _, proxy):
        old = await backend(pool)
        proxy.freeze()
        started = time.monotonic()
        assert await backend(pool) != old
        assert 0.9 < time.monotonic() - started < 2.5
        await until(lambda: pool.snapshot().closed == {"pre-ping": 1}, timeout_s=2)


async def test_all_dead_ones_are_replaced_in_one_checkout(environ: Environ) -> None:
    """However many of them are idle and dead, the caller gets a new one, and never sees it."""
    async with proxied_pool(environ, max_size=4, pre_ping_idle_s=0.0, acquire_timeout_s=8.0) as (pool, _, proxy):
        old = await warm(pool, 4)
        proxy.freeze()
        connection = await pool.acquire()
        assert connection.get_server_pid() not in old
        assert await connection.fetchval("SELECT 1") == 1
        assert (pool.snapshot().size, pool.snapshot().queries) == (1, 1)
        await until(lambda: pool.snapshot().closed == {"pre-ping": 4}, timeout_s=2)
        await pool.release(connection)


async def test_replacing_a_dead_one_keeps_to_the_deadline(environ: Environ) -> None:
    """The ping takes its second, connecting only what is left."""
    async with proxied_pool(environ, max_size=2, pre_ping_idle_s=0.0, acquire_timeout_s=1.5) as (pool, _, proxy):
        await backend(pool)
        proxy.freeze()
        proxy.deaf = True
        started = time.monotonic()
        with pytest.raises(DBConnectionError, match=r"could not be opened within 1\.5 s"):
            await pool.acquire()
        assert time.monotonic() - started < 2.0
        proxy.deaf = False
        await backend(pool)


# No pool.


@WAYS
async def test_without_a_pool_each_checkout_has_its_own_connection(environ: Environ, way: str) -> None:
    """DB_POOL_MODE=none: closed on return, counted as such; nothing is kept, no floor either."""
    async with observed_pool(environ, mode="none", min_size=2, max_size=2) as (pool, observer):
        assert (pool.snapshot().size, pool.snapshot().floor) == (0, 0)
        assert len({await used(pool, way) for _ in range(3)}) == 3
        assert pool.snapshot().size == 0
        await until(lambda: pool.snapshot().closed == {"no pool": 3}, timeout_s=2)
        await observer.count(0)


async def test_without_a_pool_limit_line_and_deadline_stay(environ: Environ) -> None:
    """Two at once and no more, one waits, one is shed; who waits for too long is told."""
    async with observed_pool(environ, mode="none", max_size=2, acquire_timeout_s=0.2, max_waiting=1) as (
        pool,
        observer,
    ):
        held = [await pool.acquire() for _ in range(2)]
        late = asyncio.create_task(pool.acquire())
        await until(lambda: pool.snapshot().waiting == 1, timeout_s=2)
        with pytest.raises(PoolSaturated):
            await pool.acquire()
        with pytest.raises(PoolTimeout):
            await late
        await observer.count(2)
        for connection in held:
            await pool.release(connection)


# The event log.


async def test_the_event_log(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """DB_POOL_LOG: connect, check-out, check-in and close with its reason, each with pool and backend, at DEBUG."""
    caplog.set_level(logging.DEBUG, "pool")
    async with observed_pool(environ, max_size=1, log=True) as (pool, _):
        first = await backend(pool)
        await used(pool, "user")
        await pool.expire_connections()
        second = await backend(pool)
    said = [record for record in caplog.records if "backend" in record.getMessage()]
    assert {record.levelno for record in said} == {logging.DEBUG}
    events = [re.sub(r"^pool 'tested': ", "", record.getMessage()) for record in said]
    assert [event for event in events if event.endswith(f" {first}")] == [
        f"{what}, backend {first}"
        for what in ("connect", "check-out", "check-in", "check-out", "check-in", "close (expired)")
    ]
    assert [event for event in events if event.endswith(f" {second}")] == [
        f"{what}, backend {second}" for what in ("connect", "check-out", "check-in", "close (closing)")
    ]


async def test_no_event_is_logged_unless_asked_for(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pool")
    async with observed_pool(environ, max_size=1) as (pool, _):
        await backend(pool)
    assert not [record for record in caplog.records if record.levelno == logging.DEBUG]


# Closing.


async def test_closing_waits_for_those_who_are_out(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """Their work ends as ever; who asks now, and who was in line, is refused at once."""
    async with observed_pool(environ, max_size=2) as (pool, observer):
        user, engine = await pool.acquire(), await pool.checkout()
        in_line = asyncio.create_task(pool.acquire())
        await until(lambda: pool.snapshot().waiting == 1, timeout_s=2)
        started = time.monotonic()
        closing = [asyncio.create_task(pool.close(grace_s=10.0)) for _ in range(2)]
        with pytest.raises(PoolClosed, match="pool 'tested' is closed"):
            await in_line
        with pytest.raises(PoolClosed):
            await pool.acquire()
        assert await user.fetchval("SELECT 1") == await engine.fetchval("SELECT 1") == 1
        await pool.release(user)
        assert not pool.try_checkin(engine), "nothing stays hot in a pool that closes"
        assert not any(task.done() for task in closing)
        await pool.checkin(engine)
        await asyncio.gather(*closing)
        assert time.monotonic() - started < 2.0
        assert "cut off" not in caplog.text
        await observer.count(0)
        assert pool.snapshot().closed == {"closing": 2}


async def test_closing_with_hot_and_idle_connections(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is out, so there is nothing to wait for."""
    async with observed_pool(environ, max_size=4) as (pool, observer):
        await warm(pool, 4)
        hot = [await pool.checkout() for _ in range(2)]
        assert all(pool.try_checkin(connection) for connection in hot)
        started = time.monotonic()
        await pool.close(grace_s=10.0)
        assert time.monotonic() - started < 1.0
        assert "cut off" not in caplog.text
        await observer.count(0)


async def test_closing_cuts_off_who_does_not_come_back(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """After its grace; a late release is harmless, a late statement is an error, and the numbers add up."""
    async with observed_pool(environ, max_size=2) as (pool, observer):
        user, engine = await pool.acquire(), await pool.checkout()
        started = time.monotonic()
        await pool.close(grace_s=0.2)
        assert 0.2 <= time.monotonic() - started < 0.7
        assert "cut off after 0.2 s of closing, 2 connections still in use" in caplog.text
        await observer.count(0)
        with pytest.raises(asyncpg.InterfaceError):
            await user.fetchval("SELECT 1")
        await pool.release(user)
        assert not pool.try_checkin(engine)
        await pool.checkin(engine)
        now = pool.snapshot()
        assert (now.size, now.in_use, now.acquires, now.releases) == (0, 0, 2, 2)


@pytest.mark.parametrize("how", ["close", "cut off", "terminate"])
async def test_nothing_is_left_running_after_closing(environ: Environ, how: str) -> None:
    """No task and no connection, though the floor was being refilled and somebody was being served."""
    before = asyncio.all_tasks()
    async with proxied_pool(environ, max_size=3, min_size=2, elastic=True, leak_threshold_s=5.0, timeout=20.0) as (
        pool,
        observer,
        proxy,
    ):
        held = await pool.acquire()
        proxy.deaf = True
        await observer.kill(*await observer.pids() - {held.get_server_pid()})
        await until(lambda: pool.snapshot().size == 1, timeout_s=5)
        connecting = asyncio.create_task(pool.acquire())
        await until(lambda: pool.snapshot().waiting == 1, timeout_s=5)
        if how == "close":
            await pool.release(held)
            await pool.close()
        elif how == "cut off":
            await pool.close(grace_s=0.1)
        else:
            pool.terminate()
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        await pool.close()
        await proxy.close()
    await until(lambda: asyncio.all_tasks() == before, timeout_s=2, what="all tasks have ended")


async def test_a_caller_cancelled_as_it_is_served_does_not_delay_closing(environ: Environ) -> None:
    """The connection that was on its way to it is closed as any other."""
    async with observed_pool(environ, max_size=1) as (pool, _):
        held = await pool.checkout()
        task = asyncio.create_task(pool.checkout())
        await until(lambda: pool.snapshot().waiting == 1, timeout_s=2)
        assert pool.try_checkin(held)
        started = time.monotonic()
        closing = asyncio.create_task(pool.close(grace_s=5.0))
        task.cancel()
        await closing
        assert time.monotonic() - started < 1.0
        assert task.cancelled() or task.done()


async def test_who_is_served_as_the_pool_closes(environ: Environ) -> None:
    """Either it is refused, or it may use what it got; nothing hangs."""
    async with observed_pool(environ, max_size=1) as (pool, _):
        held = await pool.checkout()
        task: asyncio.Task[Any] = asyncio.create_task(pool.checkout())
        await until(lambda: pool.snapshot().waiting == 1, timeout_s=2)
        assert pool.try_checkin(held)
        closing = asyncio.create_task(pool.close(grace_s=5.0))
        connection = await task
        assert await connection.fetchval("SELECT 1") == 1
        await pool.checkin(connection)
        await asyncio.wait_for(closing, 1.0)


# Statistics.


async def test_the_statistics_add_up(environ: Environ) -> None:
    """Every way in and out a known number of times."""
    async with observed_pool(environ, max_size=2, acquire_timeout_s=0.1, max_waiting=1, reset="auto") as (pool, _):
        held = [await pool.acquire() for _ in range(2)]  # 2 created
        late = asyncio.create_task(pool.acquire())
        await until(lambda: pool.snapshot().waiting == 1, timeout_s=2)
        with pytest.raises(PoolSaturated):
            await pool.acquire()  # 1 shed
        with pytest.raises(PoolTimeout):
            await late  # 1 wait, 1 timeout
        await held[0].execute("SET statement_timeout = 0")  # 1 reset
        for connection in held:
            await pool.release(connection)  # 1 reset skipped
        for _ in range(3):
            await backend(pool)  # 3 hand-overs
        now = pool.snapshot()
        assert (now.acquires, now.releases, now.waits, now.timeouts, now.shed) == (5, 5, 1, 1, 1)
        assert (now.created, now.connect_failures, now.resets, now.resets_skipped, now.handovers) == (2, 0, 1, 1, 3)
        assert (now.peak, now.peak_waiting, now.queries, now.size, now.idle) == (2, 1, 1, 2, 2)
        assert (now.wait_s.sum_s < 0.1, now.use_s.sum_s > 0.1, now.create_s.sum_s > 0) == (True, True, True)
    with pytest.raises(AttributeError):
        now.size = 3  # type: ignore[misc]
