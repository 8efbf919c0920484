"""One process's pool: an ordinary asyncpg.Pool with a deadline, a health check, an age limit and counters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from typing import Any

import asyncpg

from pool.connection import PoolConnection
from pool.errors import PoolError, PoolTimeout
from pool.recording import current_recording
from pool.statistics import PoolSnapshot, PoolStatistics

PING_AFTER_IDLE_S = 1.0
PING_TIMEOUT_S = 1.0
RELEASE_TIMEOUT_S = 1.0  # without one, release waited over 20 s for a server that had gone silent
CLOSE_TIMEOUT_S = 5.0
LIFETIME_JITTER = 0.1  # so that connections opened together are not replaced together

logger = logging.getLogger(__name__)


class Pool:
    """Hands out connections and takes them back; has what Tortoise calls on a pool.

    `name` is for errors and log lines. `acquire_timeout_s` bounds an acquire as a whole: waiting for a free
    connection, checking it, opening a new one. With `pre_ping`, a connection that was idle for more than a
    second is asked for a sign of life first. `max_lifetime_s` is the greatest age of a connection, looked at when
    it is handed out; 0 for none. All other arguments are those of `asyncpg.create_pool`.
    """

    def __init__(
        self,
        name: str,
        *,
        acquire_timeout_s: float,
        pre_ping: bool,
        max_lifetime_s: float,
        **asyncpg_arguments: Any,
    ) -> None:
        self.name = name
        self.statistics = PoolStatistics()
        self._acquire_timeout_s = acquire_timeout_s
        self._pre_ping = pre_ping
        self._max_lifetime_s = max_lifetime_s or math.inf
        self._handed_out: set[Any] = set()
        self._pool = asyncpg.create_pool(
            None,
            connect=self._connect,
            reset=PoolConnection.rest,
            **(asyncpg_arguments | {"connection_class": PoolConnection}),
        )

    async def open(self) -> None:
        """Opens as many connections as the floor says. Raises what asyncpg raises, with nothing left open."""
        await self._pool

    def snapshot(self) -> PoolSnapshot:
        """The pool now."""
        counted = self.statistics
        return PoolSnapshot(
            name=self.name,
            floor=self._pool.get_min_size(),
            limit=self._pool.get_max_size(),
            size=self._pool.get_size(),
            idle=self._pool.get_idle_size(),
            in_use=len(self._handed_out),
            waiting=counted.waiting,
            peak=counted.peak,
            acquires=counted.acquires,
            timeouts=counted.timeouts,
            queries=counted.queries,
            wait_p95_s=counted.wait_quantile(0.95),
        )

    async def acquire(self) -> Any:
        """A connection that is fit for use; to be given back with `release`.

        Raises PoolTimeout after the acquire deadline, PoolError if the pool is closed, and what asyncpg raises
        if a new connection is needed and cannot be opened.
        """
        if self._pool.is_closing():
            raise PoolError(f"pool {self.name!r} is closed: whatever still asks it for connections outlived it")
        counted = self.statistics
        if len(self._handed_out) + counted.waiting >= self._pool.get_max_size():
            counted.waits += 1
        started = time.perf_counter()
        counted.waiting += 1
        try:
            async with asyncio.timeout(self._acquire_timeout_s) as deadline:
                connection = await self._fit_connection()
        except TimeoutError as error:
            if not deadline.expired():  # the server's silence while connecting, not ours
                raise
            counted.timeouts += 1
            raise self._timeout() from error
        finally:
            counted.waiting -= 1
        self._handed_out.add(connection)
        self._count_acquire(time.perf_counter() - started)
        return connection

    async def release(self, connection: Any) -> None:
        """Takes a connection back. Does nothing where it came back already, or was cut off by `close`.

        Never raises for a connection that breaks on its way back: what its user asked of it is done or failed
        by now, and asyncpg replaces it.
        """
        self._handed_out.discard(connection)
        try:
            await self._pool.release(connection, timeout=RELEASE_TIMEOUT_S)
        except Exception as error:
            logger.info("pool %r: a connection broke at release: %s: %s", self.name, type(error).__name__, error)

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Waits for connections in use to come back, and closes all; cuts off what is left after `timeout_s`.

        Harmless twice.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._pool.close()
        except TimeoutError:
            logger.warning(
                "pool %r: cut off after %g s of closing, %d connections still in use",
                self.name,
                timeout_s,
                len(self._handed_out),
            )
        except Exception as error:  # asyncpg has terminated all connections by now
            logger.info("pool %r: a connection broke at closing: %s: %s", self.name, type(error).__name__, error)
        finally:
            self._handed_out.clear()

    def terminate(self) -> None:
        """Closes all connections at once, those in use too."""
        self._pool.terminate()
        self._handed_out.clear()

    async def expire_connections(self) -> None:
        """Has every connection replaced before it is handed out again."""
        await self._pool.expire_connections()

    async def _connect(self, *args: Any, **kwargs: Any) -> PoolConnection:
        connection: PoolConnection = await asyncpg.connect(*args, **kwargs)
        jitter = 1 - LIFETIME_JITTER * random.random()  # noqa: S311 - not for secrets
        connection.join(self.statistics, self._max_lifetime_s * jitter)
        return connection

    async def _fit_connection(self) -> Any:
        """A connection that is neither too old nor dead.

        Each turn closes one that is, and a new one is fit, so there are no more turns than connections.
        """
        while True:
            connection = await self._pool.acquire()
            fit = False
            try:
                fit = await self._is_fit(connection)
            finally:
                if not fit:  # or cancelled while asking
                    with contextlib.suppress(asyncpg.InterfaceError):  # closed by now, and back in the pool
                        connection.terminate()
                    await self._pool.release(connection)
            if fit:
                return connection

    async def _is_fit(self, connection: Any) -> bool:
        now = time.monotonic()
        if now >= connection.expires_at:
            return False
        if self._pre_ping and now - connection.idle_since > PING_AFTER_IDLE_S:
            try:
                await connection.ping(PING_TIMEOUT_S)
            except Exception as error:
                logger.info("pool %r: replaced a dead connection: %s: %s", self.name, type(error).__name__, error)
                return False
        return True

    def _count_acquire(self, wait_s: float) -> None:
        counted = self.statistics
        counted.acquires += 1
        counted.peak = max(counted.peak, len(self._handed_out))
        counted.wait_s.observe(wait_s)
        recording = current_recording()
        if recording is not None:
            recording.waits.append(wait_s)

    def _timeout(self) -> PoolTimeout:
        now = self.snapshot()
        if now.in_use < now.limit:
            remedy = "a new connection could not be opened in time: does the database answer?"
        else:
            remedy = "raise DB_POOL_MAX, run fewer jobs at once, or hold connections for a shorter time"
        return PoolTimeout(
            f"pool {now.name!r}: no connection within {self._acquire_timeout_s:g} s (DB_POOL_TIMEOUT);"
            f" limit={now.limit}, size={now.size}, in use={now.in_use}, idle={now.idle}, waiting={now.waiting}:"
            f" {remedy}"
        )
