"""Connections that came back and did not go on to asyncpg yet: the next checkout takes them as they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pool.connection import PoolConnection
from pool.connections import HOT_S


class HotConnections:
    """Last in, first out.

    What nobody has taken when asyncpg has not had it for HOT_S seconds is offered to `cool`, which takes it, or
    returns False: then it is offered again later.
    """

    def __init__(self, cool: Callable[[PoolConnection], bool]) -> None:
        self._cool = cool
        self._hot: list[PoolConnection] = []
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._hot)

    def add(self, connection: PoolConnection) -> None:
        """Keeps a connection."""
        self._hot.append(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HOT_S, self._offer)

    def pop(self) -> PoolConnection:
        """The one that came last."""
        return self._hot.pop()

    def forget(self, connection: PoolConnection) -> None:
        """It was closed; harmless where it is not here."""
        if connection in self._hot:
            self._hot.remove(connection)

    def stop(self) -> None:
        """Offers nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def clear(self) -> None:
        """Forgets all."""
        self._hot.clear()

    def _offer(self) -> None:
        self._timer = None
        now = time.monotonic()
        self._hot = [hot for hot in self._hot if now - hot.hot_since < HOT_S or not self._cool(hot)]
        if self._hot:
            self._timer = asyncio.get_running_loop().call_later(HOT_S, self._offer)
