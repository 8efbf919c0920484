"""The leak watch: real tasks that hold what they took, small thresholds."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from pool.leaks import LeakWatch
from tests.waiting import until

THRESHOLD_S = 0.1


@dataclass(eq=False)
class Taken:
    """A connection that somebody has taken; long ago, unless it is said when."""

    holder: asyncio.Task[Any] | None = None
    held_since: float = field(default_factory=lambda: time.monotonic() - 60.0)
    acquired_at: str | None = None


@dataclass
class Counters:
    leaks: int = 0


class Watched:
    """A pool's side of the watch: what is held, and how many times the watch looked."""

    def __init__(self, *held: Taken, threshold_s: float = THRESHOLD_S) -> None:
        self.held = list(held)
        self.looks = 0
        self.statistics = Counters()
        self.watch = LeakWatch("tested", threshold_s, self._look, self.statistics)

    def _look(self) -> Iterable[Taken]:
        self.looks += 1
        return iter(self.held)

    async def looked(self, times: int = 1) -> None:
        """Returns after so many whole looks more."""
        seen = self.looks
        await until(lambda: self.looks >= seen + times, what="the watch looks")


@asynccontextmanager
async def watching(*held: Taken, threshold_s: float = THRESHOLD_S) -> AsyncIterator[Watched]:
    watched = Watched(*held, threshold_s=threshold_s)
    watched.watch.start()
    try:
        yield watched
    finally:
        watched.watch.stop()


@asynccontextmanager
async def holding(name: str = "send-mail") -> AsyncIterator[asyncio.Task[None]]:
    """A task that waits for something else while it holds a connection."""

    async def send() -> None:
        await upload()

    async def upload() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(send(), name=name)
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_names_who_where_and_what_for(caplog: pytest.LogCaptureFixture) -> None:
    """One warning: pool, task, seconds, where it acquired, and below it the task's stack, a frame a line."""
    async with holding() as task, watching(Taken(task, acquired_at="app/jobs.py:41 in send")) as watched:
        await watched.looked()
        (record,) = caplog.records
    assert (record.name, record.levelno) == ("pool.leaks", logging.WARNING)
    first, *frames = record.getMessage().split("\n")
    assert first.startswith("pool 'tested': a connection has been held for 60.")
    assert first.endswith(
        " s (DB_LEAK_THRESHOLD=0.1) by task 'send-mail', acquired at app/jobs.py:41 in send; the task is now at"
    )
    assert [frame.rpartition(".")[2] for frame in frames] == ["send", "upload", "wait"]
    assert all(frame.startswith("  ") for frame in frames)
    assert watched.statistics.leaks == 1


async def test_each_checkout_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """However long it lasts; the next checkout of the same connection is another."""
    async with holding() as task, watching(Taken(task), Taken(task)) as watched:
        await watched.looked(4)
        assert (len(caplog.records), watched.statistics.leaks) == (2, 2)
        watched.held[0].held_since = time.monotonic() - 30.0
        await watched.looked(4)
        assert (len(caplog.records), watched.statistics.leaks) == (3, 3)
        assert "for 30." in caplog.records[2].getMessage()


async def test_only_those_over_the_threshold(caplog: pytest.LogCaptureFixture) -> None:
    """One that is held for less is left alone until its time has come."""
    async with holding("long") as long, holding("short") as short:
        fresh = Taken(short, held_since=time.monotonic() + 60.0)
        async with watching(fresh, Taken(long)) as watched:
            await watched.looked(3)
            assert ["task 'long'" in record.getMessage() for record in caplog.records] == [True]
            fresh.held_since = taken = time.monotonic()
            await until(lambda: len(caplog.records) == 2, what="the second is reported")
            assert time.monotonic() - taken > THRESHOLD_S
            assert "task 'short'" in caplog.records[1].getMessage()


async def test_one_that_came_back_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """The watch keeps neither the connection nor its task alive."""
    async with holding() as task, watching() as watched:
        watched.held.append(Taken(task))
        await until(lambda: caplog.records, what="it is reported")
        connection = weakref.ref(watched.held.pop())
        gc.collect()
        assert connection() is None
        await watched.looked(2)
        assert len(caplog.records) == 1


async def test_a_task_that_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    """Its connection is lost for good, which is said."""
    async with holding() as task:
        pass
    async with watching(Taken(task, acquired_at="app/jobs.py:41 in send")) as watched:
        await watched.looked()
    (record,) = caplog.records
    assert record.getMessage().endswith(
        " by task 'send-mail', acquired at app/jobs.py:41 in send; its task has ended without giving it back:"
        " acquire it by `async with`"
    )


async def test_without_a_task_or_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """What is not known is left out."""
    async with watching(Taken()) as watched:
        await watched.looked()
    (record,) = caplog.records
    assert record.getMessage().startswith("pool 'tested': a connection has been held for 60.")
    assert record.getMessage().endswith(" s (DB_LEAK_THRESHOLD=0.1)")


async def test_stop_and_zero_mean_no_looks() -> None:
    """Neither a stopped watch nor one with threshold 0 looks; a stopped one can be started again."""
    off = Watched(Taken(), threshold_s=0.0)
    off.watch.start()
    off.watch.stop()
    off.watch.start()
    async with watching(Taken()) as stopped, watching(Taken()) as other:
        await stopped.looked()
        stopped.watch.stop()
        stopped.watch.stop()
        looks = stopped.looks
        await other.looked(4)
        assert (off.looks, stopped.looks) == (0, looks)
        stopped.watch.start()
        await stopped.looked()


async def test_a_second_start_is_not_a_second_timer() -> None:
    """Started twice it looks as often as started once, and one stop ends it."""
    async with watching() as twice, watching() as other:
        twice.watch.start()
        await twice.looked()
        twice.watch.stop()
        looks = twice.looks
        await other.looked(4)
        assert twice.looks == looks


async def test_an_error_while_looking_is_not_the_last_look() -> None:
    """Should a look fail, the event loop says so and the watch goes on."""
    loop = asyncio.get_running_loop()
    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context.get("exception")))
    broken = True

    def held() -> Iterable[Taken]:
        if broken:
            raise RuntimeError("the pool is being rebuilt")
        return [Taken()]

    statistics = Counters()
    watch = LeakWatch("tested", THRESHOLD_S, held, statistics)
    watch.start()
    try:
        await until(lambda: len(errors) >= 2, what="two looks fail")
        broken = False
        await until(lambda: statistics.leaks == 1, what="the watch goes on")
    finally:
        watch.stop()
    assert all(isinstance(error, RuntimeError) for error in errors)


@pytest.mark.parametrize(("threshold_s", "interval_s"), [(0.01, 0.05), (2.0, 0.5), (1000.0, 10.0)])
def test_looks_four_times_in_a_threshold(threshold_s: float, interval_s: float) -> None:
    """At least every 10 s, at most every 0.05 s."""
    delays = []

    class Loop(asyncio.SelectorEventLoop):
        def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            delays.append(delay)
            return super().call_later(delay, callback, *args, **kwargs)

    async def main() -> None:
        async with watching(threshold_s=threshold_s):
            pass

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
    assert delays == [interval_s]
