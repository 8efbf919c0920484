"""A connection of the pool: asyncpg's, which also knows its age, its holder, and whether its session may differ."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg

from pool.recording import current_recording
from pool.session_state import may_change_session
from pool.statistics import CloseReason, PoolStatistics

LARGE_RESULT = 1000  # rows
RELEASE_TIMEOUT_S = 1.0  # without one, release waited over 20 s for a server that had gone silent
UNSENT = "connection was closed before this statement was sent"

Result = TypeVar("Result")


class PoolConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """Overrides asyncpg's public statement methods to see what passes.

    Times are seconds of `time.monotonic()`. Statements of a prepared statement or a cursor are not counted; what
    they may do to the session is looked at when they are made.
    """

    __slots__ = (
        "acquired_at",
        "backend",
        "changed",
        "close_reason",
        "expires_at",
        "generation",
        "held_since",
        "holder",
        "hot_since",
        "idle_since",
        "last_status",
        "on_end",
        "on_statement",
        "proxy",
        "returning",
        "statements",
        "statistics",
        "unseen",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.statistics = PoolStatistics()  # asyncpg may ask the server's role before the pool has the connection
        self.backend = 0  # the server process
        self.statements = 0
        self.last_status = ""
        self.changed = False  # the session may differ from a new one
        self.unseen = False  # statements may have run in this checkout that are not seen here
        self.proxy: Any = None  # asyncpg's, while the connection is checked out of asyncpg's pool
        self.idle_since = self.hot_since = time.monotonic()
        self.expires_at = math.inf
        self.generation = 0
        self.returning = False
        self.close_reason: CloseReason | None = None
        self.holder: asyncio.Task[Any] | None = None
        self.held_since = 0.0
        self.acquired_at: str | None = None  # `file:line in function`, where leaks are watched for
        self.on_end: Callable[[PoolConnection], None] | None = None
        self.on_statement: Callable[[str], None] | None = None

    @property
    def itself(self) -> PoolConnection:
        """The connection: asyncpg's proxy of it passes every attribute on."""
        return self

    def watch_end(self, on_end: Callable[[PoolConnection], None]) -> None:
        """Has `on_end` called with this connection soon after it was closed, by whomever."""
        self.on_end = on_end
        self.add_termination_listener(self._ended)

    def _ended(self, _: object) -> None:
        """asyncpg's hook, which may get a proxy that leads nowhere any more."""
        if self.on_end is not None:
            self.on_end(self)

    async def ping(self, timeout_s: float) -> None:
        """Asks the server for a sign of life, uncounted. Raises whatever asyncpg raises."""
        await self._doubted(super().execute("SELECT 1", timeout=timeout_s))

    def get_reset_query(self) -> str:
        """asyncpg's, and what that leaves to the next user: another role, and temporary tables."""
        query: str = super().get_reset_query()
        return f"SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; {query} DISCARD TEMP;" if query else ""

    async def reset_session(self) -> None:
        """Sends the reset query, uncounted."""
        if query := self.get_reset_query():
            await self._doubted(super().execute(query))
        self.changed = False

    async def close(self, *, timeout: float | None = None) -> None:
        if self.close_reason is None:  # asyncpg's pool closes by itself on return, after DB_MAX_QUERIES
            self.close_reason = "queries" if self.returning else "error"
        if timeout is None and self.returning:
            timeout = RELEASE_TIMEOUT_S
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        if self.close_reason is None:  # … and terminates by itself what was idle for DB_MAX_IDLE_TIME
            self.close_reason = "error" if self.is_closed() or self.proxy is not None else "idle"
        super().terminate()

    async def execute(self, query: str, *args: Any, **kwargs: Any) -> Any:
        status = self.last_status = await self._seen(super().execute(self._look_at(query), *args, **kwargs))
        return status

    async def executemany(self, command: str, *args: Any, **kwargs: Any) -> Any:
        return await self._seen(super().executemany(self._look_at(command), *args, **kwargs))

    async def fetch(self, query: str, *args: Any, **kwargs: Any) -> Any:
        rows = await self._seen(super().fetch(self._look_at(query), *args, **kwargs))
        if len(rows) > LARGE_RESULT:
            self.changed = True  # asyncpg keeps the last result until the next statement, which the reset will be
        return rows

    async def fetchval(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return await self._seen(super().fetchval(self._look_at(query), *args, **kwargs))

    async def fetchrow(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return await self._seen(super().fetchrow(self._look_at(query), *args, **kwargs))

    async def fetchmany(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return await self._seen(super().fetchmany(self._look_at(query), *args, **kwargs))

    async def prepare(self, query: str, *args: Any, **kwargs: Any) -> Any:
        self.unseen = True
        return await self._doubted(super().prepare(self._look_at(query), *args, **kwargs))

    def cursor(self, query: str, *args: Any, **kwargs: Any) -> Any:
        self.changed = True  # it may be left open
        return super().cursor(self._look_at(query), *args, **kwargs)

    async def copy_from_query(self, query: str, *args: Any, **kwargs: Any) -> Any:
        self.changed = True  # asyncpg puts the arguments into its text, which is not seen here
        return await super().copy_from_query(str(query), *args, **kwargs)

    async def copy_from_table(self, *args: Any, **kwargs: Any) -> Any:
        self.unseen = True
        return await self._doubted(super().copy_from_table(*args, **kwargs))

    async def copy_to_table(self, *args: Any, **kwargs: Any) -> Any:
        self.unseen = True
        return await self._doubted(super().copy_to_table(*args, **kwargs))

    async def copy_records_to_table(self, *args: Any, **kwargs: Any) -> Any:
        self.unseen = True
        return await self._doubted(super().copy_records_to_table(*args, **kwargs))

    def _look_at(self, query: str) -> str:
        """The query as asyncpg takes it, which wants exactly a str: the ORM's are of a subclass, for their mark."""
        if not self.changed and may_change_session(query):
            self.changed = True
        if self.on_statement is not None:
            self.on_statement(query)
        return str(query)

    async def _seen(self, statement: Awaitable[Result]) -> Result:
        self.statements += 1
        self.statistics.queries += 1
        recording = current_recording()
        started = time.perf_counter() if recording is not None else 0.0
        try:
            return await self._doubted(statement)
        finally:
            if recording is not None:
                recording.queries.append(time.perf_counter() - started)

    async def _doubted(self, statement: Awaitable[Result]) -> Result:
        try:
            return await statement
        except BaseException as error:
            # asyncpg switches jit off while it asks for a type, and on again only if all goes well.
            self.changed = True
            # A server that ends a session says so first, and hangs up when it has cleaned up. asyncpg does not expect
            # a word between statements: the next one fails on an internal state, unsent, and asyncpg hangs up itself.
            if isinstance(error, asyncpg.InternalClientError) and self.is_closed():
                raise asyncpg.ConnectionDoesNotExistError(UNSENT) from None
            raise
