"""Any sequence of what callers, a resizer and a broken network may do to a pool, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pool import Pool, PoolClosed
from tests.observer import Observer, check_counters, observed_pool
from tests.waiting import until

Environ = dict[str, str]

CEILING = 4
SETTLED_WITHIN_S = 5.0  # a release of a connection whose server process died takes up to a second

# How far the event loop runs after a step: some turns only, so that steps meet half way, or until all is quiet.
TURNS = st.one_of(st.none(), st.integers(0, 6))
# Whom a step concerns, modulo those there are: what is drawn may not hang on how fast the server was.
WHICH = st.integers(0, 5)


@dataclass(eq=False)
class Caller:
    """Somebody who wants a connection, and what became of it."""

    number: int  # in the order of arrival
    is_user: bool  # else the engine
    task: asyncio.Task[Any] | None = None
    connection: Any = None
    cancelled: bool = False

    @property
    def waits(self) -> bool:
        return self.task is not None and not self.task.done() and not self.cancelled


class PoolMachine(RuleBasedStateMachine):
    """Rules are what may happen; a step ends after some turns of the event loop, or when all is quiet."""

    environ: Mapping[str, str] = {}

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.stack = contextlib.AsyncExitStack()
        self.callers: list[Caller] = []
        self.holders: list[Caller] = []
        self.leaving: list[asyncio.Task[None]] = []
        self.arrivals = 0

    pool: Pool
    observer: Observer

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize(
        limit=st.integers(1, CEILING),
        floor=st.integers(0, 2),
        mode=st.sampled_from(["pool", "pool", "pool", "none"]),
        reset=st.sampled_from(["auto", "auto", "always"]),
        max_lifetime_s=st.sampled_from([0.0, 0.05]),
        max_queries=st.sampled_from([50_000, 3]),
        pre_ping_idle_s=st.sampled_from([1.0, 0.0]),
    )
    def open(self, limit: int, **options: Any) -> None:
        async def open_it() -> None:
            options["min_size"] = options.pop("floor")
            self.pool, self.observer = await self.stack.enter_async_context(
                observed_pool(self.environ, max_size=CEILING, elastic=True, acquire_timeout_s=20.0, **options)
            )
            await self.pool.resize(limit)

        self.run(open_it())
        self.most = CEILING  # the largest limit since all was quiet and nothing above the limit

    async def go_on(self, turns: int | None) -> None:
        if turns is None:
            await until(self.quiet, timeout_s=SETTLED_WITHIN_S, what="all is quiet", poll_s=0.001)
            self.check_quiet()
        for _ in range(turns or 0):
            await asyncio.sleep(0)

    def quiet(self) -> bool:
        """Nobody is on the way in or out; whoever waits does so before a full pool."""
        gate = self.pool._gate
        return (
            not self.pool._preparing
            and all(task.done() for task in self.leaving)
            and all(caller.task.done() for caller in self.callers if caller.cancelled and caller.task)
            and gate.taken == len(self.pool._held) == len(self.holders)
            and (not gate.waiting or gate.taken >= gate.limit)
            and not [task for task in self.pool._tasks if task is not self.pool._refilling]
        )

    def check_quiet(self) -> None:
        now = self.pool.snapshot()
        assert now.size <= max(now.limit, now.in_use), now
        assert now.waiting == sum(caller.waits for caller in self.callers), now
        waiting = [caller.number for caller in self.callers if caller.waits]
        served = [caller.number for caller in self.holders]
        assert not waiting or not served or max(served) < min(waiting), f"{served} served before {waiting}"
        if now.in_use <= now.limit:
            self.most = now.limit

    # What callers do.

    @rule(is_user=st.booleans(), how_many=st.integers(1, 3), turns=TURNS)
    def come(self, is_user: bool, how_many: int, turns: int | None) -> None:
        async def come() -> None:
            for _ in range(how_many):
                caller = Caller(self.arrivals, is_user)
                self.arrivals += 1
                caller.task = asyncio.create_task(self.acquire(caller))
                self.callers.append(caller)
            await asyncio.sleep(0)  # so that they arrive in this order
            await self.go_on(turns)

        self.run(come())

    async def acquire(self, caller: Caller) -> None:
        caller.connection = await (self.pool.acquire() if caller.is_user else self.pool.checkout())
        self.holders.append(caller)

    def leave(self, caller: Caller, *, failed: bool = False) -> None:
        self.holders.remove(caller)
        self.leaving.append(asyncio.create_task(self.give_back(caller, failed=failed)))

    async def give_back(self, caller: Caller, *, failed: bool) -> None:
        if caller.is_user:
            await self.pool.release(caller.connection)
        elif failed or not self.pool.try_checkin(caller.connection):
            await self.pool.checkin(caller.connection)

    @rule(which=WHICH, how_many=st.integers(1, 3), cancel=st.booleans(), turns=TURNS)
    def release(self, which: int, how_many: int, cancel: bool, turns: int | None) -> None:
        """Cancelling a release does not stop it."""
        leavers = [*self.holders[which:], *self.holders[:which]][:how_many]
        if not leavers:
            return

        async def release() -> None:
            for caller in leavers:
                self.leave(caller)
            await asyncio.sleep(0)
            if cancel:
                self.leaving[-1].cancel()
            await self.go_on(turns)

        self.run(release())

    @rule(which=WHICH, turns=TURNS)
    def cancel(self, which: int, turns: int | None) -> None:
        waiting = [caller for caller in self.callers if caller.waits]
        if not waiting:
            return
        caller = waiting[which % len(waiting)]

        async def cancel() -> None:
            assert caller.task is not None
            caller.cancelled = caller.task.cancel()
            await self.go_on(turns)

        self.run(cancel())

    @rule(
        which=WHICH,
        query=st.sampled_from(["SELECT 1", "SELECT pg_sleep(0.01)", "SET work_mem = '77MB'", "SELEKT", "BEGIN"]),
        cancel_after=st.one_of(st.none(), st.integers(0, 5)),
        turns=TURNS,
    )
    def use(self, which: int, query: str, cancel_after: int | None, turns: int | None) -> None:
        """A statement, as it is run or cancelled meanwhile; after a failure the connection goes back at once."""
        if not self.holders:
            return
        caller = self.holders[which % len(self.holders)]

        async def use() -> None:
            task = asyncio.create_task(self.execute(caller, query))
            if cancel_after is not None:
                for _ in range(cancel_after):
                    await asyncio.sleep(0)
                task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, BaseException):
                assert isinstance(
                    result, asyncio.CancelledError | asyncpg.PostgresError | asyncpg.InterfaceError | OSError
                )
                self.leave(caller, failed=True)
            await self.go_on(turns)

        self.run(use())

    async def execute(self, caller: Caller, query: str) -> None:
        await caller.connection.execute(query)
        if query == "BEGIN":
            await caller.connection.execute("ROLLBACK")

    # What happens to the pool.

    @rule(limit=st.integers(1, CEILING), wait=st.booleans(), turns=TURNS)
    def resize(self, limit: int, wait: bool, turns: int | None) -> None:
        async def resize() -> None:
            self.most = max(self.most, limit)
            resizing = asyncio.create_task(self.pool.resize(limit))
            self.leaving.append(resizing)
            await asyncio.sleep(0)
            if wait:
                await resizing
            await self.go_on(turns)

        self.run(resize())

    @rule(which=WHICH, turns=TURNS)
    def kill(self, which: int, turns: int | None) -> None:
        async def kill() -> None:
            if pids := sorted(await self.observer.pids()):
                await self.observer.kill(pids[which % len(pids)])
            await self.go_on(turns)

        self.run(kill())

    @rule()
    def expire(self) -> None:
        self.run(self.pool.expire_connections())

    @rule()
    def settle(self) -> None:
        self.run(self.go_on(None))

    # What is always so.

    @invariant()
    def never_above_the_limit(self) -> None:
        if not hasattr(self, "pool"):
            return
        now = self.pool.snapshot()
        assert now.in_use <= self.most, now
        assert now.size <= self.most, now
        assert now.acquires == now.releases + now.in_use, now
        assert sum(now.wait_s.counts) == now.acquires
        assert sum(now.use_s.counts) == now.releases
        assert sum(now.create_s.counts) == now.created

    def teardown(self) -> None:
        async def end() -> None:
            if hasattr(self, "pool"):
                await self.end()
            await self.stack.aclose()

        try:
            self.run(end())
        finally:
            self.runner.close()

    async def end(self) -> None:
        for caller in self.callers:
            if caller.waits and caller.task is not None:
                caller.cancelled = caller.task.cancel()
        for caller in [*self.holders]:
            self.leave(caller)
        await asyncio.sleep(0)
        for caller in [*self.holders]:  # served in the moment in which they were cancelled
            self.leave(caller)
        await asyncio.gather(*(caller.task for caller in self.callers if caller.task), return_exceptions=True)
        assert not self.holders
        await self.go_on(None)
        started = time.monotonic()
        held = [await self.pool.acquire() for _ in range(self.pool.limit)]
        assert time.monotonic() - started < 1.0, "a place was lost"
        assert [await connection.fetchval("SELECT 1") for connection in held] == [1] * len(held)
        late = asyncio.create_task(self.pool.acquire())
        await until(lambda: self.pool.snapshot().waiting == 1, timeout_s=2, what="one more waits")
        closing = asyncio.create_task(self.pool.close())
        await asyncio.sleep(0)
        for connection in held:
            await self.pool.release(connection)
        await closing
        with pytest.raises(PoolClosed):
            await late
        await check_counters(self.pool)
        assert not self.pool._tasks


FEW = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # the server is not fast enough to shrink by
)


def test_any_sequence(environ: Environ) -> None:
    """Never more than the limit, served in order, numbers that add up, no place lost."""
    run_any_sequence(environ, FEW)


@pytest.mark.slow
def test_many_long_sequences(environ: Environ) -> None:
    run_any_sequence(environ, settings(FEW, max_examples=300, stateful_step_count=60))


def run_any_sequence(environ: Environ, how: settings) -> None:
    machine = type("Machine", (PoolMachine,), {"environ": environ})
    run_state_machine_as_test(machine, settings=how)
