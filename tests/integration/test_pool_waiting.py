"""Who waits for a connection: until when, what the error says then, in which order, and how many at most."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from tortoise.exceptions import DBConnectionError

from pool import PoolSaturated, PoolTimeout
from tests.observer import backend, observed_pool, proxied_pool, warm
from tests.pools import acquired, released, waiting
from tests.waiting import until

Environ = dict[str, str]


# The deadline, and what its error says.


async def test_the_three_longest_holders_are_named(environ: Environ) -> None:
    """Longest first, with their seconds; with leak tracking the line on which they acquired, too."""
    async with observed_pool(environ, max_size=4, acquire_timeout_s=0.2, leak_threshold_s=60.0) as (pool, _):
        held = []
        for name in ("first", "second", "third", "fourth"):
            held += await asyncio.create_task(acquired(pool, 1), name=name)
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire()
        holders = re.findall(r"held by task '(\w+)' for (\d+\.\d) s at (\S+) in (\w+)", str(caught.value))
        assert [holder[0] for holder in holders] == ["first", "second", "third"]
        assert {holder[3] for holder in holders} == {"acquired"}
        assert all("pools.py:" in holder[2] for holder in holders)
        await released(pool, *held)


async def test_a_task_that_holds_the_connection_itself_is_told_so(environ: Environ) -> None:
    """Nested acquire on a full pool ends at the deadline, and says whose fault it is."""
    async with observed_pool(environ, max_size=1, acquire_timeout_s=0.1) as (pool, _):
        held = await pool.acquire()
        with pytest.raises(PoolTimeout, match="held by this same task"):
            await pool.acquire()
        await pool.release(held)


async def test_the_deadline_is_for_the_checkout_as_a_whole(environ: Environ) -> None:
    """Waiting in line uses up what connecting may take then."""
    async with proxied_pool(environ, max_size=1, acquire_timeout_s=0.6, timeout=30.0) as (pool, observer, proxy):
        held = await pool.acquire()
        started = time.monotonic()
        late = asyncio.create_task(pool.acquire())
        await waiting(pool, 1)
        proxy.deaf = True
        await until(lambda: time.monotonic() - started > 0.3, what="half of the time is over")
        await observer.kill(held.get_server_pid())
        await pool.release(held)
        with pytest.raises(DBConnectionError, match=r"could not be opened within 0\.6 s"):
            await late
        assert time.monotonic() - started < 1.1
        proxy.deaf = False
        await backend(pool)


async def test_dead_idle_connections_do_not_put_the_deadline_off(environ: Environ) -> None:
    """All idle ones died, and nobody answers any more: an error at the deadline, not at the connect timeout."""
    async with proxied_pool(environ, max_size=2, acquire_timeout_s=0.3, timeout=30.0) as (pool, observer, proxy):
        pids = await warm(pool, 2)
        await observer.kill(*pids)
        proxy.deaf = True
        started = time.monotonic()
        with pytest.raises(DBConnectionError):
            await pool.acquire()
        assert time.monotonic() - started < 0.8
        proxy.deaf = False
        await backend(pool)


async def test_the_failure_to_connect_is_shared(environ: Environ) -> None:
    """With no connection at all, everybody in line learns at once what the first one found."""
    async with proxied_pool(environ, max_size=1, acquire_timeout_s=5.0, timeout=0.3) as (pool, _, proxy):
        proxy.deaf = True
        started = time.monotonic()
        failures = await asyncio.gather(*(pool.acquire() for _ in range(5)), return_exceptions=True)
        assert time.monotonic() - started < 0.9
        assert all(type(failure) is DBConnectionError for failure in failures)
        assert len({id(failure) for failure in failures}) == 5
        proxy.deaf = False
        await backend(pool)


# The line.


async def test_beyond_the_bound_callers_are_refused_at_once(environ: Environ) -> None:
    """DB_POOL_MAX_WAITING: who is in line already stays there, who comes then is told, and counted."""
    async with observed_pool(environ, max_size=1, max_waiting=2) as (pool, _):
        held = await pool.acquire()
        in_line = [asyncio.create_task(backend(pool)) for _ in range(2)]
        await waiting(pool, 2)
        started = time.monotonic()
        with pytest.raises(PoolSaturated, match=r"pool 'tested': .*DB_POOL_MAX_WAITING=2.* waiting=2"):
            await pool.checkout()
        assert time.monotonic() - started < 0.1
        now = pool.snapshot()
        assert (now.shed, now.waits, now.waiting, now.peak_waiting) == (1, 2, 2, 2)
        await pool.release(held)
        await asyncio.gather(*in_line)
        await backend(pool)


async def test_a_caller_that_was_cancelled_makes_room_in_the_line(environ: Environ) -> None:
    """The bound is on those who wait, not on those who once did."""
    async with observed_pool(environ, max_size=1, max_waiting=1) as (pool, _):
        held = await pool.acquire()
        first = asyncio.create_task(backend(pool))
        await waiting(pool, 1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.create_task(backend(pool))
        await waiting(pool, 1)
        await pool.release(held)
        await second
        assert pool.snapshot().shed == 0


async def test_without_a_bound_nobody_is_refused(environ: Environ) -> None:
    """300 callers wait for one connection, and each gets it."""
    async with observed_pool(environ, max_size=1) as (pool, _):
        held = await pool.acquire()
        in_line = [asyncio.create_task(backend(pool)) for _ in range(300)]
        await waiting(pool, 300)
        await pool.release(held)
        assert len(set(await asyncio.gather(*in_line))) == 1
        assert pool.snapshot().peak_waiting == 300


@pytest.mark.parametrize("cancelled", [(), (0,), (3, 4, 5), (0, 2, 4, 6, 8, 10), (19,)])
async def test_first_come_first_served(environ: Environ, cancelled: tuple[int, ...]) -> None:
    """Users and the engine stand in one line; those who are cancelled there change nobody's turn."""
    async with observed_pool(environ) as (pool, _):
        held = await acquired(pool, 2)
        served: list[int] = []

        async def user(number: int) -> None:
            connection = await pool.acquire()
            served.append(number)
            await connection.fetchval("SELECT 1")
            await pool.release(connection)

        async def engine(number: int) -> None:
            connection = await pool.checkout()
            served.append(number)
            await connection.fetchval("SELECT 1")
            if not pool.try_checkin(connection):
                await pool.checkin(connection)

        tasks = []
        for number in range(20):
            tasks.append(asyncio.create_task(user(number) if number % 3 else engine(number)))
            await waiting(pool, number + 1)
        for number in cancelled:
            tasks[number].cancel()
        await released(pool, *held)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert served == [number for number in range(20) if number not in cancelled]
        await released(pool, *await acquired(pool, 2))


async def test_a_caller_cancelled_as_it_is_served_starves_nobody(environ: Environ) -> None:
    """In the same turn of the event loop: the connection goes to the next in line."""
    async with observed_pool(environ, max_size=1) as (pool, _):
        held = await pool.checkout()
        first, second = (asyncio.create_task(pool.checkout()) for _ in range(2))
        await waiting(pool, 2)
        assert pool.try_checkin(held)
        first.cancel()
        connection = await asyncio.wait_for(second, 1.0)
        assert connection is held
        await pool.checkin(connection)
        assert first.cancelled()
