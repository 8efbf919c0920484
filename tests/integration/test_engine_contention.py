"""Callers who contend for a pool's places: it is full, it changes, it closes, and they are cancelled at any await."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from tortoise.exceptions import DBConnectionError
from tortoise.transactions import in_transaction

from db.models import Subscriber
from pool import PoolClosed, PoolSaturated, PoolTimeout
from tests.engine_stage import ACQUIRE_S, LIMIT, TOLERANCE_S, Case, Stage, play
from tests.engines import NAME, backends, free_slots, open_tortoise
from tests.proxy import open_proxy
from tests.waiting import until

Environ = dict[str, str]

# --- a pool that is full, changes, or closes ---


async def full_pool(stage: Stage) -> BaseException | None:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(LIMIT):
            holding = asyncio.create_task(held.enter_async_context(stage.client.acquire_connection()), name="miser")
            await holding
        return await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=ACQUIRE_S)


async def saturated_pool(stage: Stage) -> BaseException | None:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(LIMIT):
            await held.enter_async_context(stage.client.acquire_connection())
        waiting = asyncio.create_task(stage.client.execute_query("SELECT 1"))
        await until(lambda: stage.client.pool.snapshot().waiting == 1)
        error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=-TOLERANCE_S)
    await waiting
    return error


async def nested_acquire(stage: Stage) -> BaseException | None:
    async def nest() -> None:
        async with in_transaction(), stage.client.acquire_connection(), stage.client.acquire_connection():
            await stage.client.execute_query("SELECT 1")

    return await stage.outcome(nest(), within_s=ACQUIRE_S)


async def resized_when_idle(stage: Stage) -> BaseException | None:
    await stage.warm()
    assert await stage.outcome(stage.client.pool.resize(1), within_s=0) is None
    assert stage.client.pool.snapshot().size == 1
    await until(stage.none_is_stray, timeout_s=5, what="the others are closed")
    return await stage.outcome(stage.client.pool.resize(LIMIT), within_s=0)


async def resized_when_awaited(stage: Stage) -> BaseException | None:
    pool = stage.client.pool
    await pool.resize(1)
    async with stage.client.acquire_connection():
        waiting = asyncio.create_task(stage.client.execute_query("SELECT 1"))
        await until(lambda: pool.snapshot().waiting == 1)
        await pool.resize(LIMIT)
        return await stage.outcome(waiting, within_s=0)


async def resized_under_load(stage: Stage) -> BaseException | None:
    pool = stage.client.pool
    over = False

    async def load() -> None:
        while not over:
            await stage.client.execute_query("SELECT 1")
            await asyncio.sleep(0)
            assert pool.snapshot().size <= LIMIT

    loads = [asyncio.create_task(load()) for _ in range(4 * LIMIT)]
    for limit in [1, LIMIT, 2, LIMIT, 1, 2] * 3:
        await pool.resize(limit)
        before = pool.snapshot().acquires
        await until(lambda limit=limit: pool.snapshot().size <= limit, timeout_s=5, what=f"no more than {limit}")
        await until(lambda before=before: pool.snapshot().acquires > before + 20, timeout_s=5, what="work goes on")
        assert pool.snapshot().in_use <= limit
        assert await backends(stage.direct) <= LIMIT
    await pool.resize(LIMIT)
    over = True
    return await stage.outcome(asyncio.gather(*loads), within_s=0)


async def closed_under_load(stage: Stage) -> BaseException | None:
    async def load() -> None:
        while True:
            await stage.client.execute_query("SELECT 1")

    loads = [asyncio.create_task(load()) for _ in range(4 * LIMIT)]
    await until(lambda: stage.client.pool.snapshot().acquires > 50)
    assert await stage.outcome(stage.client.close(), within_s=0) is None
    errors = await asyncio.gather(*(stage.outcome(load, within_s=0) for load in loads))
    assert {type(error) for error in errors} == {PoolClosed}
    await stage.check_gone()
    await stage.client.create_connection(with_db=True)
    return errors[0]


async def closed_while_somebody_waits(stage: Stage) -> BaseException | None:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(LIMIT):
            await held.enter_async_context(stage.client.acquire_connection())
        waiting = asyncio.create_task(stage.client.execute_query("SELECT 1"))
        await until(lambda: stage.client.pool.snapshot().waiting == 1)
        closing = asyncio.create_task(stage.client.close())
        error = await stage.outcome(waiting, within_s=-TOLERANCE_S)  # at once, not after the grace of those who hold
    await closing
    await stage.client.create_connection(with_db=True)
    return error


async def closed_upon_those_who_stay(stage: Stage) -> BaseException | None:
    asking = asyncio.create_task(stage.client.execute_query("SELECT pg_sleep(30)"))
    await stage.busy("pg_sleep(30)")
    assert await stage.outcome(stage.client.pool.close(grace_s=0.2), within_s=0.2) is None
    error = await stage.outcome(asking, within_s=0)
    await stage.kill()  # the server would sleep on
    await stage.client.create_connection(with_db=True)
    return error


CASES = [
    Case("full pool", full_pool, PoolTimeout, rf"{NAME}.* 1 s .*limit=3.*in use=3.*waiting=.*'miser' for .* s"),
    Case(
        "saturated pool",
        saturated_pool,
        PoolSaturated,
        rf"{NAME}.*DB_POOL_MAX_WAITING.*limit=3",
        guards={"max_waiting": 1},
    ),
    Case("nested acquire", nested_acquire, PoolTimeout, "held by this same task.*end its transaction"),
    Case("resize when idle", resized_when_idle, guards={"elastic": True}),
    Case("resize when somebody waits", resized_when_awaited, guards={"elastic": True, "acquire_timeout_s": 10.0}),
    Case("resize under load", resized_under_load, guards={"elastic": True}),
    Case("close under load", closed_under_load, PoolClosed, NAME),
    Case("close while somebody waits", closed_while_somebody_waits, PoolClosed, NAME),
    Case("close upon a long query", closed_upon_those_who_stay, DBConnectionError, "lost|closed"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_after_a_fault_the_pool_is_whole(environ: Environ, ordinary_role: str, case: Case) -> None:
    """The victim is told what happened, in time and in Tortoise's words; then all places are back, none is stray."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        await play(case, Stage(environ, proxy, ordinary_role, f"pw-of-{ordinary_role}"))


# --- callers that are cancelled ---

CANCELLATIONS = 160  # of each kind
AT_ONCE = 2 * LIMIT


@dataclass
class Sweep:
    """Callers, each cancelled a little later in its work than the one before; what became of them."""

    client: Any
    reached: Counter[str] = field(default_factory=Counter)  # how far they had come when they were cancelled
    finished: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)  # cancelled when everything was done but COMMIT and release

    async def transact(self, number: int) -> None:
        """BEGIN, INSERT, COMMIT, release."""
        chat, place = f"{number}", "BEGIN"
        try:
            async with in_transaction():
                place = "INSERT"
                await Subscriber.create(chat=chat)
                place = "COMMIT"
        except asyncio.CancelledError:
            self.reached[place] += 1
            if place == "COMMIT":
                self.leaving.add(chat)
            raise
        self.finished.add(chat)

    async def read(self, number: int) -> None:
        """What the ORM reads."""
        try:
            await Subscriber.filter(chat=f"{number}").count()
        except asyncio.CancelledError:
            self.reached["read"] += 1
            raise

    async def reset(self, number: int) -> None:
        """A connection in the user's hands, which must be reset at release."""
        place = "acquire"
        try:
            async with self.client.acquire_connection() as connection:
                place = "SET"
                await connection.execute("SET work_mem = '8MB'")
                place = "reset"
        except asyncio.CancelledError:
            self.reached[place] += 1
            raise

    async def reconnect(self, number: int) -> None:
        """A connection that has to be opened first."""
        await self.client.pool.expire_connections()
        place = "connect"
        try:
            async with self.client.acquire_connection():
                place = "release"
        except asyncio.CancelledError:
            self.reached[place] += 1
            raise

    async def run(self, work: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        """Runs `work` CANCELLATIONS times and more, AT_ONCE at a time, and checks the pool after each time."""
        started = time.monotonic()
        await asyncio.gather(*(work(-number) for number in range(1, AT_ONCE + 1)))
        whole_s = time.monotonic() - started
        cancelled = 0
        for number in itertools.count(step=AT_ONCE):
            tasks = [asyncio.create_task(work(number + each)) for each in range(AT_ONCE)]
            for each, task in enumerate(tasks):
                # a stride that is prime to the count: callers of one time are cancelled at different places
                share = (number + each) * 37 % CANCELLATIONS / CANCELLATIONS
                asyncio.get_running_loop().call_later(share * whole_s, task.cancel)
            async with asyncio.timeout(10):
                results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}, results
            cancelled += sum(task.cancelled() for task in tasks)
            assert await free_slots(self.client, LIMIT) == LIMIT
            now = self.client.pool.snapshot()
            assert (now.in_use, now.waiting) == (0, 0)
            if cancelled >= CANCELLATIONS:
                return
            assert number < 10 * CANCELLATIONS, "they were too fast to be cancelled"


@pytest.mark.slow
async def test_cancelled_at_any_await_nobody_takes_a_place_along(environ: Environ, ordinary_role: str) -> None:
    """640 cancellations, swept through acquire, connect, ping, BEGIN, query, COMMIT, reset and release."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        proxy.delay_s = 0.001
        stage = Stage(environ, proxy, ordinary_role, f"pw-of-{ordinary_role}")
        guards = {"acquire_timeout_s": 10.0, "pre_ping_idle_s": 0.0}
        credentials = {"port": proxy.listens_on, "user": stage.role, "password": stage.password, "maxsize": LIMIT}
        async with open_tortoise(environ, guards=guards, **credentials) as stage.client:
            sweep = Sweep(stage.client)
            for work in (sweep.transact, sweep.read, sweep.reset, sweep.reconnect):
                await sweep.run(work)
            rows = set(await Subscriber.all().values_list("chat", flat=True))
            assert sweep.finished <= rows <= sweep.finished | sweep.leaving
            for place in ("BEGIN", "INSERT", "COMMIT", "read", "acquire", "SET", "reset", "connect"):
                assert sweep.reached[place] >= 5, sweep.reached
            await stage.check_whole()
        await stage.check_gone()


async def hold(client: Any, over: asyncio.Event) -> None:
    """A connection in the user's hands: the way back is asyncpg's."""
    async with client.acquire_connection():
        await over.wait()


async def hold_in_a_transaction(client: Any, over: asyncio.Event) -> None:
    """A connection in the engine's hands: it is passed on."""
    async with in_transaction():
        await over.wait()


@pytest.mark.parametrize("holding", [hold, hold_in_a_transaction])
async def test_cancelled_in_the_moment_of_being_served_nobody_takes_a_place_along(
    environ: Environ, holding: Callable[[Any, asyncio.Event], Coroutine[Any, Any, None]]
) -> None:
    """The only connection comes back, and who waits for it is cancelled so many steps of the event loop later."""
    async with open_tortoise(environ, guards={"acquire_timeout_s": ACQUIRE_S}, minsize=1, maxsize=1) as client:
        for steps in range(30):
            over = asyncio.Event()
            holder = asyncio.create_task(holding(client, over))
            await until(lambda: client.pool.snapshot().in_use == 1, poll_s=0)
            waiter = asyncio.create_task(client.execute_query("SELECT 1"))
            await until(lambda: client.pool.snapshot().waiting == 1, poll_s=0)
            over.set()
            if steps % 2:  # the same, but counted from the moment that the place is the waiter's
                await until(lambda: client.pool.snapshot().waiting == 0, poll_s=0)
            for _ in range(steps // 2):
                await asyncio.sleep(0)
            waiter.cancel()
            await asyncio.gather(holder, waiter, return_exceptions=True)
            assert await free_slots(client, 1) == 1
