"""Connections that are held for too long: who holds them, and what the holder waits for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pool.stacks import stack_of

SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 0.05, 10.0

logger = logging.getLogger(__name__)


class Held(Protocol):
    """A connection in use: the task that took it, when (`time.monotonic()` seconds), and on which line."""

    @property
    def holder(self) -> asyncio.Task[Any] | None: ...
    @property
    def held_since(self) -> float: ...
    @property
    def acquired_at(self) -> str | None: ...


class Counters(Protocol):
    """Where leaks are counted."""

    leaks: int


class LeakWatch:
    """Warns once of each checkout that lasts longer than `threshold_s` seconds (DB_LEAK_THRESHOLD); 0 for never.

    `held` gives the connections in use. The warning comes at most a quarter of the threshold late, but no less
    than 0.05 s and no more than 10 s.
    """

    def __init__(self, name: str, threshold_s: float, held: Callable[[], Iterable[Held]], statistics: Counters) -> None:
        self._name = name
        self._threshold_s = threshold_s
        self._held = held
        self._statistics = statistics
        self._interval_s = min(max(threshold_s / 4, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)
        # By id, so that no connection lives longer for it; with the time, because an id is used again.
        self._reported: set[tuple[int, float]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Looks from now on, in the running event loop; harmless twice."""
        if self._threshold_s and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._look)

    def stop(self) -> None:
        """Looks no more; harmless twice, and `start` may follow."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        self.start()
        now = time.monotonic()
        overdue = {(id(held), held.held_since): held for held in self._held() if self._is_overdue(held, now)}
        for checkout, held in overdue.items():
            if checkout not in self._reported:
                self._statistics.leaks += 1
                logger.warning("%s", self._warning(held, now))
        self._reported = set(overdue)

    def _is_overdue(self, held: Held, now: float) -> bool:
        return now - held.held_since > self._threshold_s

    def _warning(self, held: Held, now: float) -> str:
        task = held.holder
        text = (
            f"pool {self._name!r}: a connection has been held for {now - held.held_since:.1f} s"
            f" (DB_LEAK_THRESHOLD={self._threshold_s:g})"
        )
        if task is not None:
            text += f" by task {task.get_name()!r}"
        if held.acquired_at is not None:
            text += f", acquired at {held.acquired_at}"
        if task is None:
            return text
        if task.done():
            return f"{text}; its task has ended without giving it back: acquire it by `async with`"
        return "\n  ".join([f"{text}; the task is now at", *stack_of(task)])
