"""The connections of a pool, in asyncpg's: opened, examined, reset and closed. Knows nothing of those who want them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Any

import asyncpg

from pool.connection import RELEASE_TIMEOUT_S, PoolConnection
from pool.errors import describe
from pool.options import PoolOptions
from pool.pooler import Connector, Kind
from pool.statistics import CloseReason, PoolStatistics

PING_TIMEOUT_S = 1.0
RELEASE_POLL_S = 0.005
HOT_S = 1.0  # the longest that asyncpg's release is put off: its recycling and its idle timer hang on it
LIFETIME_JITTER = 0.1  # so that connections opened together are not replaced together

logger = logging.getLogger(__name__)
events = logging.getLogger("pool.events")


class Connections:
    """An asyncpg.Pool, and what it leaves to its user: age, health, poolers, and whether a session must be reset.

    `name` is the pool's. `arguments` are those of `asyncpg.create_pool`. `on_closed` is called, soon after, for each
    connection that was closed, by whomever.
    """

    def __init__(
        self,
        name: str,
        options: PoolOptions,
        statistics: PoolStatistics,
        arguments: dict[str, Any],
        on_closed: Callable[[PoolConnection], None],
    ) -> None:
        self._name = name
        self._options = options
        self._statistics = statistics
        self._arguments = arguments | {"connection_class": PoolConnection}
        self._max_queries: int = arguments.get("max_queries", 50_000)
        self._notify = on_closed
        self._on_end = self._ended  # one bound method for all of them
        self._connector = Connector(name, options.pooler)
        self._resets = options.reset
        self._stays_hot = options.mode == "pool" and options.reset != "always"
        self._generation = 0
        self._open: set[PoolConnection] = set()
        self._waits_for_release: set[asyncio.Task[None]] = set()
        self._pool: Any = None

    async def open(self) -> None:
        """Opens asyncpg's pool, and its floor. Raises what asyncpg raises."""
        self._pool = asyncpg.create_pool(None, connect=self._connect, reset=self._reset, **self._arguments)
        await self._pool

    @property
    def pooler(self) -> Kind:
        """What stands before the server; "none" until the first connection."""
        return self._connector.pooler.kind

    @property
    def slots(self) -> int:
        """How many connections the server has for ordinary roles; 0 where that is not known."""
        return self._connector.slots

    @property
    def known(self) -> int:
        """Connections that are open, or were a moment ago."""
        return len(self._open)

    @property
    def size(self) -> int:
        """Connections that are open."""
        return sum(not connection.is_closed() for connection in self._open)

    @property
    def idle(self) -> int:
        """Connections that asyncpg has, open and idle: `take` gives one of them, at once."""
        idle: int = self._pool.get_idle_size()
        return idle

    async def take(self) -> PoolConnection:
        """A connection from asyncpg: the idle one that was used last, or a new one. Raises what asyncpg raises."""
        proxy = await self._pool.acquire()
        connection: PoolConnection = proxy.itself
        connection.proxy = proxy
        connection.returning = connection.unseen = False
        connection.hot_since = time.monotonic()
        return connection

    def doubts(self, connection: PoolConnection, now: float) -> CloseReason | None:
        """Why a connection may not be used as it is; "pre-ping" where only the server knows."""
        options = self._options
        if connection.is_closed():
            return "error"
        if connection.generation != self._generation:
            return "expired"
        if now >= connection.expires_at:
            return "age"
        if options.pre_ping and now - connection.idle_since > options.pre_ping_idle_s:
            return "pre-ping"
        return None

    async def examine(self, connection: PoolConnection, *, doubtful: bool) -> CloseReason | None:
        """Why a connection is unfit for use, asking the server where there is doubt, or `doubtful` says so."""
        doubts = self.doubts(connection, time.monotonic())
        if doubts == "pre-ping" or (doubts is None and doubtful):
            try:
                await connection.ping(PING_TIMEOUT_S)
            except Exception as error:
                logger.info("pool %r: replaced a dead connection: %s", self._name, describe(error))
                return "pre-ping"
            return None
        return doubts

    def may_stay_hot(self, connection: PoolConnection, now: float) -> bool:
        """Whether the next one may have it as it is, without asyncpg's release."""
        return (
            self._stays_hot
            and now - connection.hot_since < HOT_S
            and not (connection.changed and self._resets != "never")
            and now < connection.expires_at
            and connection.generation == self._generation
            and connection.statements < self._max_queries
            and not connection.is_closed()
            and not connection.is_in_transaction()
        )

    async def put_back(self, connection: PoolConnection, done: Callable[[], None], *, surplus: bool = False) -> None:
        """Gives a connection back to asyncpg, or closes it where it is too old, dead, or one too many (`surplus`).

        Calls `done` when asyncpg has it, or its slot: also where the caller is cancelled meanwhile. Never raises
        otherwise. From asyncpg's pool it may be taken again before this task goes on: nothing of it is touched then.
        """
        proxy, connection.proxy = connection.proxy, None
        connection.returning = True
        try:
            close_because = self._close_on_return(connection) or ("shrink" if surplus else None)
            if close_because is not None:
                await self.discard(connection, close_because)
            else:
                # Where nothing will be sent there is nothing to wait for; a timer is a good part of the cost.
                timeout_s = None if self._is_quiet(connection) else RELEASE_TIMEOUT_S
                await self._pool.release(proxy, timeout=timeout_s)
        except asyncio.CancelledError:  # asyncpg goes on in a task of its own
            waiting = asyncio.get_running_loop().create_task(self._wait_for_release(proxy, done))
            self._waits_for_release.add(waiting)
            waiting.add_done_callback(self._waits_for_release.discard)
            raise
        except Exception as error:
            logger.info("pool %r: a connection broke at release: %s", self._name, describe(error))
            self.terminate(connection, "error")  # asyncpg has done so, unless a warning was made an error
        done()

    async def discard(self, connection: PoolConnection, reason: CloseReason) -> None:
        """Closes a connection, which frees its slot in asyncpg's pool: politely unless it is dead anyhow."""
        if reason in ("pre-ping", "error"):
            self.terminate(connection, reason)
            return
        connection.close_reason = reason
        try:
            await connection.close(timeout=RELEASE_TIMEOUT_S)
        except Exception as error:  # it is aborted then
            logger.info("pool %r: a connection broke at closing: %s", self._name, describe(error))

    @staticmethod
    def terminate(connection: PoolConnection, reason: CloseReason) -> None:
        """Closes a connection at once."""
        connection.close_reason = connection.close_reason or reason
        connection.terminate()

    def expire(self) -> None:
        """Has every connection replaced before it is used again."""
        self._generation += 1

    def expect_closing(self) -> None:
        """From now on connections are closed because the pool is."""
        for connection in self._open:
            connection.close_reason = connection.close_reason or "closing"

    async def close(self) -> None:
        """Waits for those that are out, and closes all. Raises what asyncpg raises."""
        await self._pool.close()

    def terminate_all(self) -> None:
        """Closes all at once, those that are out too."""
        if self._pool is not None:
            self._pool.terminate()
        for connection in [*self._open]:  # asyncpg's pool knows no connection that is just being opened
            connection.terminate()

    def event(self, what: str, connection: PoolConnection) -> None:
        """A line for DB_POOL_LOG."""
        events.debug("pool %r: %s, backend %s", self._name, what, connection.backend)

    async def _connect(self, *args: Any, **kwargs: Any) -> PoolConnection:
        """asyncpg's hook for a new connection."""
        started = time.monotonic()
        try:
            connection = await self._connector.connect(*args, **kwargs)
        except BaseException:
            self._statistics.connect_failures += 1
            raise
        if self.pooler == "transaction":
            # A reset reaches any of the server's connections, and would unlock what another client has locked.
            self._resets = "never"
            self._stays_hot = self._options.mode == "pool"
        now = time.monotonic()
        self._statistics.created += 1
        self._statistics.create_s.observe(now - started)
        jitter = 1 - LIFETIME_JITTER * random.random()  # noqa: S311 - not for secrets
        connection.statistics = self._statistics
        connection.idle_since = now
        connection.expires_at = now + (self._options.max_lifetime_s or math.inf) * jitter
        connection.generation = self._generation
        connection.watch_end(self._on_end)
        self._open.add(connection)
        if self._options.log:
            connection.backend = connection.get_server_pid()  # asyncpg does not know it any more at the end
            self.event("connect", connection)
        return connection

    async def _reset(self, connection: PoolConnection) -> None:
        """asyncpg's hook at release; it has rolled back an open transaction by then."""
        if self._resets == "always" or (self._resets == "auto" and connection.changed):
            self._statistics.resets += 1
            await connection.reset_session()
        else:
            self._statistics.resets_skipped += 1

    def _ended(self, connection: PoolConnection) -> None:
        reason = connection.close_reason or "error"
        self._statistics.closed[reason] += 1
        self._open.discard(connection)
        if self._options.log:
            self.event(f"close ({reason})", connection)
        self._notify(connection)

    def _close_on_return(self, connection: PoolConnection) -> CloseReason | None:
        if connection.is_closed():
            return "error"
        if connection.generation != self._generation:
            return "expired"
        if time.monotonic() >= connection.expires_at:
            return "age"
        return "no pool" if self._options.mode == "none" else None

    def _is_quiet(self, connection: PoolConnection) -> bool:
        """Whether asyncpg's release will send nothing on it, nor find a cancellation under way."""
        return (
            not connection.changed
            and not connection.unseen
            and self._resets != "always"
            and connection.statements < self._max_queries
            and not connection.is_in_transaction()
        )

    @staticmethod
    async def _wait_for_release(proxy: Any, done: Callable[[], None]) -> None:
        """Until asyncpg has taken a connection back, which its proxy shows by refusing every call."""
        with contextlib.suppress(asyncpg.InterfaceError):
            while True:
                proxy.is_closed()
                await asyncio.sleep(RELEASE_POLL_S)
        done()
