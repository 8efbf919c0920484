"""The limit on a pool's connections while it changes."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from pool import PoolError
from tests.observer import backend, observed_pool, open_observer, proxied_pool, warm
from tests.pools import acquired, released, waiting
from tests.waiting import until

Environ = dict[str, str]


async def test_a_fixed_pool_is_not_resized(environ: Environ) -> None:
    """It would not keep its limit: asyncpg fills its floor without asking. To its own size is fine."""
    async with observed_pool(environ, max_size=3) as (pool, _):
        with pytest.raises(PoolError, match=r"fixed at 3 connections: open it with elastic=True"):
            await pool.resize(2)
        await pool.resize(3)
        assert pool.limit == 3


@pytest.mark.parametrize("limit", [0, -1, 4])
async def test_a_limit_is_from_one_to_the_ceiling(environ: Environ, limit: int) -> None:
    """What is out of bounds is refused by name, and nothing changes."""
    async with observed_pool(environ, max_size=3, elastic=True) as (pool, _):
        with pytest.raises(ValueError, match=f"limit {limit} is not between 1 and its ceiling, 3"):
            await pool.resize(limit)
        assert pool.limit == 3


async def test_growing_serves_those_in_line_at_once(environ: Environ) -> None:
    """As many as there are new places, in order, without anybody giving a connection back."""
    async with observed_pool(environ, max_size=5, elastic=True) as (pool, observer):
        await pool.resize(1)
        held = await pool.acquire()
        served: list[int] = []

        async def take(number: int) -> Any:
            connection = await pool.acquire()
            served.append(number)
            return connection

        tasks = [asyncio.create_task(take(number)) for number in range(4)]
        await waiting(pool, 4)
        await pool.resize(3)
        await until(lambda: len(served) == 2, timeout_s=2, what="two more are served")
        assert sorted(served) == [0, 1]
        now = pool.snapshot()
        assert (now.limit, now.ceiling, now.size, now.in_use, now.waiting) == (3, 5, 3, 3, 2)
        await observer.count(3)
        await pool.resize(5)
        await released(pool, held, *await asyncio.gather(*tasks))


async def test_shrinking_closes_idle_connections_now(environ: Environ) -> None:
    """Those that asyncpg has and those that are hot; counted by their reason."""
    async with observed_pool(environ, max_size=5, elastic=True) as (pool, observer):
        await warm(pool, 5)
        hot = [await pool.checkout() for _ in range(2)]
        assert all(pool.try_checkin(connection) for connection in hot)
        await pool.resize(1)
        assert (pool.snapshot().size, pool.snapshot().limit) == (1, 1)
        await until(lambda: pool.snapshot().closed == {"shrink": 4}, timeout_s=2)
        await observer.count(1)
        await backend(pool)


async def test_shrinking_closes_busy_connections_when_they_come_back(environ: Environ) -> None:
    """Nobody's query is disturbed; those that come back first are closed, until there are few enough."""
    async with observed_pool(environ, max_size=4, elastic=True) as (pool, observer):
        users = await acquired(pool, 2)
        engine = [await pool.checkout() for _ in range(2)]
        await pool.resize(1)
        assert pool.snapshot().size == 4
        assert [await connection.fetchval("SELECT 1") for connection in [*users, *engine]] == [1] * 4
        assert not pool.try_checkin(engine[0]), "it must not stay"
        await pool.checkin(engine[0])
        await pool.release(users[0])
        await observer.count(2)
        assert pool.snapshot().size == 2
        await pool.release(users[1])
        assert pool.snapshot().size == 1
        assert pool.try_checkin(engine[1]), "the last one stays"
        await until(lambda: pool.snapshot().closed == {"shrink": 3}, timeout_s=2)
        await observer.count(1)


async def test_a_shrunken_pool_serves_nobody_above_its_limit(environ: Environ) -> None:
    """Who waits goes on waiting until there are fewer in use than the new limit."""
    async with observed_pool(environ, max_size=3, elastic=True) as (pool, _):
        held = await acquired(pool, 3)
        task = asyncio.create_task(pool.acquire())
        await waiting(pool, 1)
        await pool.resize(1)
        await released(pool, *held[:2])
        assert not task.done()
        assert pool.snapshot().waiting == 1
        await released(pool, held[2])
        await released(pool, await task)


async def test_shrinking_while_a_connection_is_being_opened(environ: Environ) -> None:
    """It counts already: the idle one is closed, and when it is there the pool is not above its limit."""
    async with proxied_pool(environ, max_size=2, elastic=True) as (pool, observer, proxy):
        one = await pool.acquire()
        proxy.delay_s = 0.1
        opening = asyncio.create_task(pool.acquire())
        await waiting(pool, 1)
        await pool.release(one)
        assert pool.snapshot().size == 1
        await pool.resize(1)
        other = await opening
        assert pool.snapshot().size == 1
        await observer.count(1)
        await pool.release(other)
        proxy.delay_s = 0.0
        assert (pool.snapshot().size, pool.snapshot().in_use) == (1, 0)


async def test_shrinking_while_a_connection_goes_to_somebody_who_is_cancelled(environ: Environ) -> None:
    """A connection on its way between two callers is closed as well, where it is one too many."""
    async with observed_pool(environ, max_size=2, elastic=True) as (pool, observer):
        held = [await pool.checkout() for _ in range(2)]
        task = asyncio.create_task(pool.checkout())
        await waiting(pool, 1)
        assert pool.try_checkin(held[0])
        task.cancel()
        await pool.resize(1)
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: pool.snapshot().closed == {"shrink": 1}, timeout_s=2, what="one is closed")
        await observer.count(1)
        await pool.checkin(held[1])
        assert pool.snapshot().size == 1


async def test_resizing_twice_at_once(environ: Environ) -> None:
    """The last word counts: a shrinking that is still closing connections stops where the limit has grown."""
    async with proxied_pool(environ, max_size=6, elastic=True) as (pool, observer, proxy):
        await warm(pool, 6)
        proxy.delay_s = 0.1
        shrinking = asyncio.create_task(pool.resize(1))
        await until(lambda: pool.snapshot().size < 6, timeout_s=5, what="it closes", poll_s=0.001)
        await pool.resize(6)
        await shrinking
        assert pool.limit == 6
        assert pool.snapshot().size >= 4
        await observer.count(pool.snapshot().size)


async def test_resizing_a_pool_that_closes(environ: Environ) -> None:
    """Whoever steers the limit hears nothing of it: there is nothing left to resize."""
    async with observed_pool(environ, max_size=3, elastic=True) as (pool, observer):
        await warm(pool, 3)
        held = await pool.acquire()
        closing = asyncio.create_task(pool.close(grace_s=5.0))
        await until(lambda: asyncio.current_task() is not None and pool.snapshot().size > 0)
        await pool.resize(1)
        await pool.release(held)
        await closing
        await pool.resize(2)
        await observer.count(0)


async def test_never_above_the_limit_under_load(environ: Environ) -> None:
    """200 random resizes while 12 tasks work in every way: the pool and the server, looked at all the time, agree."""
    chance = random.Random(11)
    async with (
        observed_pool(environ, max_size=6, elastic=True, min_size=2, max_lifetime_s=0.2, max_queries=40) as (pool, _),
        open_observer(environ) as sampler,
    ):
        over = asyncio.Event()
        grown_at = {"limit": 6}  # the largest limit since the last look that found the pool settled

        async def user() -> None:
            connection = await pool.acquire()
            try:
                await connection.fetchval("SELECT pg_sleep($1)", chance.choice([0.0, 0.0, 0.002]))
            finally:
                await pool.release(connection)

        async def engine() -> None:
            connection = await pool.checkout()
            try:
                await connection.fetchval(
                    "SELECT 1" if chance.random() < 0.9 else "SELECT set_config('a.b', 'c', false)"
                )
            except BaseException:
                await pool.checkin(connection)
                raise
            if not pool.try_checkin(connection):
                await pool.checkin(connection)

        async def work() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(chance.choice([1.0, 1.0, 0.001])):
                        await chance.choice([user, engine])()

        def fits() -> bool:
            now = pool.snapshot()
            settled_limit = max(now.limit, pool._gate.taken)  # the busy ones of a larger limit are let finish
            return now.size <= max(settled_limit, grown_at["limit"])

        async def look() -> int:
            looks = 0
            while not over.is_set():
                # What was on its way back while the limit shrank is closed as soon as it is there: that takes a moment.
                await until(fits, timeout_s=1, what="no more than the limit")
                assert pool.snapshot().in_use <= 6
                assert len(await sampler.pids()) <= 6
                looks += 1
            return looks

        tasks = [asyncio.create_task(work()) for _ in range(12)]
        looking = asyncio.create_task(look())
        for _ in range(200):
            limit = chance.randint(1, 6)
            grown_at["limit"] = max(limit, pool.limit)
            await pool.resize(limit)
            assert pool.snapshot().size <= max(limit, pool._gate.taken), pool.snapshot()
            grown_at["limit"] = limit
            await asyncio.sleep(chance.uniform(0, 0.01))
            if looking.done():
                break
        over.set()
        await asyncio.gather(*tasks)
        assert await looking > 50
        await pool.resize(3)
        await until(lambda: pool.snapshot().size <= 3, timeout_s=2)
        held = await acquired(pool, 3)
        await released(pool, *held)
