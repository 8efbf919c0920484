"""The gate by itself: places, the line before it, and what is handed over in it. No connection anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pool.gate import Gate

FOR_EVER_S = 3600.0


class TurnedAwayError(Exception):
    """What those in line are told."""


@dataclass
class Callers:
    """Tasks that wait at a gate, and what became of them. `unclaimed` works as a pool's does."""

    limit: int = 1
    order: list[str] = field(default_factory=list)  # names, as they were served
    came_with: dict[str, str | None] = field(default_factory=dict)
    left_over: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate: Gate[str] = Gate(self.limit, self._unclaimed)

    def _unclaimed(self, thing: str | None) -> None:
        self.left_over.append(thing)
        if thing is None or not self.gate.hand_over(thing):
            self.gate.leave()

    def fill(self) -> None:
        while self.gate.try_enter():
            pass

    def waiter(self, name: str, timeout_s: float = FOR_EVER_S) -> asyncio.Task[None]:
        return asyncio.create_task(self._wait(name, timeout_s), name=name)

    async def _wait(self, name: str, timeout_s: float) -> None:
        self.came_with[name] = await self.gate.wait(timeout_s)
        self.order.append(name)


async def turns(count: int = 3) -> None:
    """Lets everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def line(callers: Callers, names: str) -> list[asyncio.Task[None]]:
    """One waiter for each letter, in line behind each other."""
    tasks = [callers.waiter(name) for name in names]
    await turns()
    assert callers.gate.waiting == len(names)
    return tasks


async def end(*tasks: asyncio.Task[None]) -> list[BaseException | None]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_so_many_places_and_no_more() -> None:
    """try_enter takes each place once, and there is one again for each that is left."""
    gate = Callers(3).gate
    assert [gate.try_enter() for _ in range(4)] == [True, True, True, False]
    gate.leave()
    assert (gate.taken, gate.try_enter(), gate.try_enter()) == (2, True, False)


async def test_the_order_of_arrival_is_the_order_of_service() -> None:
    """Each place that is left goes to the one who has waited longest; nobody slips in between."""
    callers = Callers()
    callers.fill()
    tasks = await line(callers, "abcd")
    for served in range(4):
        callers.gate.leave()
        assert not callers.gate.try_enter(), "the place has its owner, though that one is not awake yet"
        assert callers.gate.taken == 1
        await turns()
        assert callers.order == list("abcd")[: served + 1]
    callers.gate.leave()
    assert (callers.gate.taken, callers.gate.waiting) == (0, 0)
    await end(*tasks)


async def test_a_thing_goes_to_the_first_in_line() -> None:
    """hand_over gives place and thing together; with nobody in line both stay where they are."""
    callers = Callers()
    callers.fill()
    assert not callers.gate.hand_over("thing")
    assert callers.gate.taken == 1
    tasks = await line(callers, "ab")
    assert callers.gate.hand_over("thing")
    await tasks[0]
    callers.gate.leave()
    await tasks[1]
    assert callers.came_with == {"a": "thing", "b": None}
    assert callers.gate.taken == 1


async def test_above_the_limit_nothing_is_handed_over() -> None:
    """After shrinking, places that are left go to nobody until there are few enough."""
    callers = Callers(3)
    callers.fill()
    tasks = await line(callers, "a")
    callers.gate.resize(1)
    assert not callers.gate.hand_over("thing")
    for taken in (2, 1):
        callers.gate.leave()
        await turns()
        assert (callers.gate.taken, callers.order) == (taken, [])
    callers.gate.leave()
    await tasks[0]
    assert (callers.gate.taken, callers.order) == (1, ["a"])


async def test_growing_serves_those_in_line_at_once() -> None:
    """As many as there are new places, in order."""
    callers = Callers(1)
    callers.fill()
    tasks = await line(callers, "abcd")
    callers.gate.resize(3)
    assert callers.gate.taken == 3
    await turns()
    assert callers.order == ["a", "b"]
    callers.gate.resize(9)
    await end(*tasks)
    assert (callers.order, callers.gate.taken) == (list("abcd"), 5)
    assert callers.gate.try_enter()


async def test_everybody_in_line_is_turned_away() -> None:
    """With an error of their own each; who comes later waits as ever, and a place that is left is a place."""
    callers = Callers()
    callers.fill()
    tasks = await line(callers, "abc")
    callers.gate.turn_away(TurnedAwayError)
    callers.gate.leave()
    errors = await end(*tasks)
    assert [type(error) for error in errors] == [TurnedAwayError] * 3
    assert len({id(error) for error in errors}) == 3
    assert (callers.gate.taken, callers.gate.waiting) == (0, 0)
    callers.fill()
    (late,) = await line(callers, "d")
    callers.gate.leave()
    await late
    assert callers.order == ["d"]


async def test_who_was_served_is_not_turned_away() -> None:
    """Though not awake yet, a caller that has a place keeps it."""
    callers = Callers()
    callers.fill()
    tasks = await line(callers, "ab")
    callers.gate.leave()
    callers.gate.turn_away(TurnedAwayError)
    assert [type(error) for error in await end(*tasks)] == [type(None), TurnedAwayError]
    assert (callers.order, callers.gate.taken) == (["a"], 1)


async def test_waiting_has_an_end() -> None:
    """TimeoutError, not before its time; the others keep their order."""
    callers = Callers()
    callers.fill()
    loop = asyncio.get_running_loop()
    started = loop.time()
    hasty = callers.waiter("hasty", timeout_s=0.05)
    patient = callers.waiter("patient")
    with pytest.raises(TimeoutError):
        await hasty
    assert 0.05 <= loop.time() - started < 0.5
    assert callers.gate.waiting == 1
    callers.gate.leave()
    await patient
    assert (callers.order, callers.gate.taken) == (["patient"], 1)


async def test_served_in_time_means_served() -> None:
    """A caller whose deadline passes after it was served, and before it is awake, has its place."""
    callers = Callers()
    callers.fill()
    task = callers.waiter("a", timeout_s=0.0)
    await asyncio.sleep(0)  # it stands in line; its timer is due in the next turn
    callers.gate.leave()
    await task
    assert (callers.order, callers.gate.taken) == (["a"], 1)


async def test_cancelled_before_it_stood_in_line() -> None:
    """A task that never ran takes nothing."""
    callers = Callers()
    callers.fill()
    task = callers.waiter("a")
    task.cancel()
    await end(task)
    callers.gate.leave()
    assert (callers.gate.taken, callers.gate.waiting, callers.left_over) == (0, 0, [])


async def test_cancelled_while_it_waits() -> None:
    """The line closes up behind it: in the same turn already nobody is served who is gone."""
    callers = Callers()
    callers.fill()
    tasks = await line(callers, "abc")
    tasks[0].cancel()
    tasks[1].cancel()
    callers.gate.leave()
    await turns()
    assert (callers.order, callers.gate.taken, callers.left_over) == (["c"], 1, [])
    await end(*tasks)


@pytest.mark.parametrize("thing", [None, "thing"])
async def test_cancelled_in_the_turn_in_which_it_was_served(thing: str | None) -> None:
    """Its place, and what came with it, are reported once, and go to the next in line."""
    callers = Callers()
    callers.fill()
    tasks = await line(callers, "ab")
    if thing is None:
        callers.gate.leave()
    else:
        callers.gate.hand_over(thing)
    tasks[0].cancel()
    await turns()
    assert callers.left_over == [thing]
    assert (callers.order, callers.came_with["b"], callers.gate.taken) == (["b"], thing, 1)
    await end(*tasks)


async def test_cancelled_after_it_was_served_with_nobody_behind() -> None:
    """The place is free again."""
    callers = Callers()
    callers.fill()
    (task,) = await line(callers, "a")
    callers.gate.hand_over("thing")
    task.cancel()
    await end(task)
    assert (callers.left_over, callers.gate.taken, callers.gate.try_enter()) == (["thing"], 0, True)


@pytest.mark.parametrize("first", ["cancelled", "turned away"])
async def test_cancelled_and_turned_away_in_one_turn(first: str) -> None:
    """Whichever came first, nothing is lost and nothing is served twice."""
    callers = Callers()
    callers.fill()
    tasks = await line(callers, "a")
    acts: list[Callable[[], object]] = [tasks[0].cancel, lambda: callers.gate.turn_away(TurnedAwayError)]
    for act in acts if first == "cancelled" else reversed(acts):
        act()
    callers.gate.leave()
    assert [type(error) for error in await end(*tasks)] == [asyncio.CancelledError]
    assert (callers.gate.taken, callers.gate.waiting, callers.left_over) == (0, 0, [])


class GateMachine(RuleBasedStateMachine):
    """Any sequence of what callers may do, beside a model of it: a list in order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.in_line: list[str] = []  # names, in order of arrival
        self.served: list[str] = []  # names, in the order in which the model served them
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.things: set[str] = set()  # handed over, and not yet with anybody
        self.numbers = iter(range(1_000_000))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    @initialize(limit=st.integers(1, 4))
    def open(self, limit: int) -> None:
        self.callers = Callers(limit)
        self.gate = self.callers.gate
        self.taken = 0

    def serve(self) -> None:
        """The model's rule: the first in line gets a place while there are places."""
        while self.in_line and self.taken < self.gate.limit:
            self.taken += 1
            self.served.append(self.in_line.pop(0))

    @rule(turns_after=st.integers(0, 3))
    def come(self, turns_after: int) -> None:
        name = str(next(self.numbers))

        async def come() -> None:
            if self.gate.try_enter():
                assert not self.in_line
                self.taken += 1
                return
            self.tasks[name] = self.callers.waiter(name)
            self.in_line.append(name)
            await asyncio.sleep(0)  # now it stands in line
            await turns(turns_after)

        self.run(come())

    @precondition(lambda self: self.taken)
    @rule(with_thing=st.booleans(), then_cancel=st.booleans(), turns_after=st.integers(0, 3))
    def leave(self, with_thing: bool, then_cancel: bool, turns_after: int) -> None:
        thing = f"thing {next(self.numbers)}"
        first = self.in_line[0] if self.in_line else None

        async def leave() -> None:
            handed = with_thing and self.gate.hand_over(thing)
            assert handed == bool(with_thing and first is not None and self.taken <= self.gate.limit)
            if not handed:
                self.gate.leave()
            self.taken -= 1
            self.serve()
            if then_cancel and first is not None and first in self.served:
                self.tasks[first].cancel()
                self.served.remove(first)
                self.taken -= 1
                self.serve()
                await turns()
            await turns(turns_after)

        self.run(leave())

    @precondition(lambda self: self.in_line)
    @rule(data=st.data(), turns_after=st.integers(0, 3))
    def cancel(self, data: st.DataObject, turns_after: int) -> None:
        name = data.draw(st.sampled_from(self.in_line))
        self.in_line.remove(name)

        async def cancel() -> None:
            self.tasks[name].cancel()
            await turns(turns_after)

        self.run(cancel())

    @rule(limit=st.integers(1, 5))
    def resize(self, limit: int) -> None:
        async def resize() -> None:
            self.gate.resize(limit)
            self.serve()

        self.run(resize())

    @rule()
    def turn_away(self) -> None:
        async def turn_away() -> None:
            self.gate.turn_away(TurnedAwayError)
            self.in_line.clear()

        self.run(turn_away())

    @invariant()
    def as_the_model_says(self) -> None:
        if not hasattr(self, "gate"):
            return
        self.run(turns())
        assert self.gate.taken == self.taken
        assert self.gate.waiting == len(self.in_line)
        assert self.callers.order == self.served
        assert not (self.in_line and self.taken < self.gate.limit), "somebody waits before a free place"

    def teardown(self) -> None:
        async def leave_all() -> None:
            while self.taken:
                self.gate.leave()
                self.taken -= 1
                self.serve()
                await turns()
            await end(*self.tasks.values())

        if hasattr(self, "gate"):
            self.run(leave_all())
            assert (self.gate.taken, self.gate.waiting) == (0, 0)
        self.runner.close()


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
