"""How many connections there are, and who gets them: the deadline, the line, the limit while it changes, the floor."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from typing import Any

import pytest
from tortoise.exceptions import DBConnectionError

from pool import Pool, PoolError, PoolSaturated, PoolTimeout
from tests.observer import NAME, Observer, backend, observed_pool, open_observer, proxied_pool, warm
from tests.pools import open_pool
from tests.waiting import until

Environ = dict[str, str]


async def acquired(pool: Pool, count: int) -> list[Any]:
    """So many connections, held by the calling task."""
    return [await pool.acquire() for _ in range(count)]


async def released(pool: Pool, *connections: Any) -> None:
    for connection in connections:
        await pool.release(connection)


async def waiting(pool: Pool, count: int) -> None:
    """Returns when so many callers wait."""
    await until(lambda: pool.snapshot().waiting == count, timeout_s=5, what=f"{count} callers wait", poll_s=0.001)


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
        assert all("test_pool_limits.py:" in holder[2] for holder in holders)
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


# The limit while it changes.


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

        async def look() -> int:
            looks = 0
            while not over.is_set():
                now = pool.snapshot()
                settled_limit = max(now.limit, pool._gate.taken)  # the busy ones of a larger limit are let finish
                assert now.size <= max(settled_limit, grown_at["limit"]), now
                assert now.in_use <= 6
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


# The floor.


async def floor(pool: Pool, observer: Observer, count: int) -> None:
    """Returns when the pool has so many connections, by its own account and the server's."""
    await until(lambda: pool.snapshot().size == count, timeout_s=5, what=f"{count} connections")
    await observer.count(count)


@pytest.mark.parametrize("elastic", [False, True])
async def test_the_floor_is_opened_and_refilled(environ: Environ, elastic: bool) -> None:
    """DB_POOL_MIN connections from the start, and again after the server ended them."""
    async with observed_pool(environ, max_size=4, min_size=3, elastic=elastic) as (pool, observer):
        assert pool.snapshot().size == pool.snapshot().floor == 3
        await observer.kill(*await observer.pids())
        await floor(pool, observer, 3)
        assert (pool.snapshot().in_use, pool.snapshot().acquires) == (0, 0)


async def test_the_floor_is_not_overfilled(environ: Environ) -> None:
    """However many connections end at once, only as many are opened as the floor asks for."""
    async with observed_pool(environ, max_size=6, min_size=1, elastic=True) as (pool, observer):
        await observer.kill(*await warm(pool, 6))
        await until(lambda: sum(pool.snapshot().closed.values()) == 6, timeout_s=5)
        await floor(pool, observer, 1)
        assert pool.snapshot().created == 7


async def test_the_floor_is_refilled_after_all_that_was_held_died(environ: Environ) -> None:
    """While they were out there was no place to refill through: it happens when there is."""
    async with observed_pool(environ, max_size=2, min_size=2, elastic=True) as (pool, observer):
        held = await acquired(pool, 2)
        await observer.kill(*await observer.pids())
        await until(lambda: pool.snapshot().size == 0, timeout_s=5)
        await released(pool, *held)
        await floor(pool, observer, 2)


async def test_the_floor_yields_to_the_limit(environ: Environ) -> None:
    """Below the floor the limit wins; when it grows again so does the pool, to its floor and no further."""
    async with observed_pool(environ, max_size=4, min_size=3, elastic=True) as (pool, observer):
        await pool.resize(1)
        await floor(pool, observer, 1)
        await observer.kill(*await observer.pids())
        await floor(pool, observer, 1)
        await pool.resize(4)
        await floor(pool, observer, 3)


async def test_the_floor_takes_no_connection_from_anybody(environ: Environ) -> None:
    """While a new one is being opened, and the server does not answer, those that are idle can be had."""
    async with proxied_pool(environ, max_size=3, min_size=3, elastic=True, acquire_timeout_s=1.0, timeout=3.0) as (
        pool,
        observer,
        proxy,
    ):
        proxy.deaf = True
        before = proxy.accepted
        await observer.kill(min(await observer.pids()))
        await until(lambda: proxy.accepted > before, timeout_s=5, what="a new one is being opened")
        held = [await asyncio.wait_for(pool.acquire(), 0.5) for _ in range(2)]
        proxy.deaf = False
        await released(pool, *held)


async def test_the_floor_comes_back_after_an_outage(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried again, with one warning for each try, however many connections ended."""
    async with proxied_pool(environ, max_size=4, min_size=3, elastic=True) as (pool, observer, proxy):
        await proxy.stop()
        await until(lambda: "below its floor of 3" in caplog.text, timeout_s=5)
        tries = pool.snapshot().connect_failures
        assert caplog.text.count("below its floor") == tries == 1
        await proxy.start()
        await floor(pool, observer, 3)


async def test_an_elastic_pool_opens_as_a_whole_or_not_at_all(environ: Environ) -> None:
    """A floor that cannot be opened is an error, and nothing is left open."""
    async with open_observer(environ) as observer:
        role = "three_at_most"
        await observer.value(f"DROP ROLE IF EXISTS {role}")
        await observer.value(f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 2")
        try:
            with pytest.raises(DBConnectionError, match="too many connections for role"):
                async with open_pool(
                    environ,
                    user=role,
                    password="x",
                    min_size=3,
                    max_size=3,
                    elastic=True,
                    server_settings={"application_name": NAME},
                ):
                    pass
            await observer.count(0)
        finally:
            await observer.value(f"DROP ROLE {role}")
