"""A connection of the pool: asyncpg's, which also counts its statements and knows its age."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import asyncpg

from pool.recording import current_recording
from pool.statistics import PoolStatistics

Result = TypeVar("Result")


class PoolConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """Overrides asyncpg's public statement methods to count and time them.

    Times are seconds of `time.monotonic()`. Statements of a prepared statement or a cursor are not counted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.statistics = PoolStatistics()  # asyncpg may ask the server's role before the pool has the connection
        self.idle_since = time.monotonic()
        self.expires_at = math.inf

    def join(self, statistics: PoolStatistics, lifetime_s: float) -> None:
        """From now on counts in `statistics`; the connection should be replaced after `lifetime_s`."""
        self.statistics = statistics
        self.expires_at = time.monotonic() + lifetime_s

    async def ping(self, timeout_s: float) -> None:
        """Asks the server for a sign of life, uncounted. Raises whatever asyncpg raises."""
        await super().execute("SELECT 1", timeout=timeout_s)

    async def rest(self) -> None:
        """Resets the session as asyncpg does at release, uncounted."""
        if query := self.get_reset_query():
            await super().execute(query)
        self.idle_since = time.monotonic()

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return await self._measured(super().execute(*args, **kwargs))

    async def executemany(self, *args: Any, **kwargs: Any) -> Any:
        return await self._measured(super().executemany(*args, **kwargs))

    async def fetch(self, *args: Any, **kwargs: Any) -> Any:
        return await self._measured(super().fetch(*args, **kwargs))

    async def fetchval(self, *args: Any, **kwargs: Any) -> Any:
        return await self._measured(super().fetchval(*args, **kwargs))

    async def fetchrow(self, *args: Any, **kwargs: Any) -> Any:
        return await self._measured(super().fetchrow(*args, **kwargs))

    async def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        return await self._measured(super().fetchmany(*args, **kwargs))

    async def _measured(self, statement: Awaitable[Result]) -> Result:
        self.statistics.queries += 1
        recording = current_recording()
        if recording is None:
            return await statement
        started = time.perf_counter()
        try:
            return await statement
        finally:
            recording.queries.append(time.perf_counter() - started)
