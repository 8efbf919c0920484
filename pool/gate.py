"""The gate before a pool: so many places and no more, first come, first served."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Gate(Generic[Thing]):
    """Counts places; who finds none free waits in line, and is served in the order of arrival.

    Who leaves may hand a `Thing` to the next in line together with the place. Knows nothing of connections. All
    but `wait` is synchronous, so nothing can come between a look and the act.

    `unclaimed` is called with what a waiter was served and could not take, as it was cancelled in that moment; the
    place is then the callee's.
    """

    def __init__(self, limit: int, unclaimed: Callable[[Thing | None], None]) -> None:
        self.limit = limit
        self.taken = 0
        self._unclaimed = unclaimed
        self._line: OrderedDict[asyncio.Future[Thing | None], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Callers in line."""
        return len(self._line)

    def try_enter(self) -> bool:
        """Takes a place if one is free. Nobody is in line then."""
        if self.taken >= self.limit:
            return False
        self.taken += 1
        return True

    async def wait(self, timeout_s: float) -> Thing | None:
        """Waits in line for a place, and returns what comes with it. Raises TimeoutError, and what `turn_away` says."""
        loop = asyncio.get_running_loop()
        place: asyncio.Future[Thing | None] = loop.create_future()
        self._line[place] = None
        # A timer that answers, instead of one that cancels: being served and being late can't both happen.
        timer = loop.call_later(timeout_s, self._turn_away, place, TimeoutError())
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._unclaimed(place.result())
            raise
        finally:
            timer.cancel()
            self._line.pop(place, None)

    def hand_over(self, thing: Thing) -> bool:
        """Gives one's own place, and `thing` with it, to the first in line. False where nobody is, or limit is less."""
        return self.taken <= self.limit and self._serve_next(thing)

    def leave(self) -> None:
        """Gives up a place: to the first in line, if the limit still allows for it."""
        if self.taken > self.limit or not self._serve_next(None):
            self.taken -= 1

    def resize(self, limit: int) -> None:
        """Changes the limit. More places go to those in line at once; fewer only as they are left."""
        self.limit = limit
        while self.taken < self.limit and self._serve_next(None):
            self.taken += 1

    def turn_away(self, error: Callable[[], Exception]) -> None:
        """Everybody in line gets an error of their own."""
        for place in list(self._line):
            self._turn_away(place, error())

    def _serve_next(self, thing: Thing | None) -> bool:
        while self._line:
            place, _ = self._line.popitem(last=False)
            if not place.done():  # cancelled, and not yet awake to leave the line
                place.set_result(thing)
                return True
        return False

    @staticmethod
    def _turn_away(place: asyncio.Future[Thing | None], error: Exception) -> None:
        if not place.done():
            place.set_exception(error)
