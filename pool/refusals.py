"""Why a caller gets no connection, in words for the person who reads them at night."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator

from tortoise.exceptions import DBConnectionError

from pool.connection import PoolConnection
from pool.errors import PoolClosed, PoolError, PoolSaturated, PoolTimeout, TooManyClients, translate_connecting
from pool.options import PoolOptions
from pool.statistics import PoolSnapshot

SHOWN_HOLDERS = 3


class Refusals:
    """The errors of one pool. `snapshot` and `held` are the pool now, and its connections in use."""

    def __init__(
        self,
        name: str,
        options: PoolOptions,
        snapshot: Callable[[], PoolSnapshot],
        held: Collection[PoolConnection],
    ) -> None:
        self._name = name
        self._options = options
        self._snapshot = snapshot
        self._held = held

    def saturated(self) -> PoolSaturated:
        """Too many are waiting already."""
        return PoolSaturated(
            f"pool {self._name!r}: as many callers wait already as may (DB_POOL_MAX_WAITING="
            f"{self._options.max_waiting}); {self._state()}: {self._remedy()}"
        )

    def timeout(self) -> PoolTimeout:
        """None came free in time; the caller has just left the line."""
        return PoolTimeout(
            f"pool {self._name!r}: no connection came free within {self._options.acquire_timeout_s:g} s"
            f" (DB_POOL_TIMEOUT); {self._state(and_waiting=1)}: {self._remedy()}"
        )

    def too_slow(self, cause: Exception) -> DBConnectionError:
        """One could not be opened in time."""
        failure = DBConnectionError(
            f"pool {self._name!r}: a new connection could not be opened within {self._options.acquire_timeout_s:g} s"
            f" (DB_POOL_TIMEOUT); {self._state()}: does the database answer?"
        )
        failure.__cause__ = cause
        return failure

    def cannot_connect(self, cause: Exception, slots: int) -> Exception:
        """Tortoise's error for what asyncpg raised. `slots`: what the server has for ordinary roles; 0 = not known."""
        failure = translate_connecting(cause)
        if isinstance(failure, TooManyClients):
            now = self._snapshot()
            failure = TooManyClients(
                f"pool {self._name!r} with {now.size} of its {now.limit} connections {failure}"
                + (f" (the server has {slots} for ordinary roles)" if slots else "")
            )
        if failure is not cause:
            failure.__cause__ = cause
        return failure

    def closed(self) -> PoolClosed:
        """The pool was closed."""
        return PoolClosed(f"pool {self._name!r} is closed: whatever still asks it for connections outlived it")

    def not_open(self) -> PoolError:
        """The pool was never opened."""
        return PoolError(f"pool {self._name!r} is not open")

    def other_loop(self) -> PoolError:
        """The caller runs in an event loop that is not the pool's."""
        return PoolError(f"pool {self._name!r} belongs to another event loop: open one in each (open_database)")

    def _state(self, and_waiting: int = 0) -> str:
        now = self._snapshot()
        waiting = now.waiting + and_waiting
        return f"limit={now.limit}, size={now.size}, in use={now.in_use}, idle={now.idle}, waiting={waiting}" + "".join(
            f"; held by {holder}" for holder in self._longest_holders()
        )

    def _longest_holders(self) -> Iterator[str]:
        now, this = time.monotonic(), asyncio.current_task()
        for connection in sorted(self._held, key=lambda held: held.held_since)[:SHOWN_HOLDERS]:
            task = connection.holder
            name = "this same task" if task is this else f"task {task.get_name()!r}" if task else "no task"
            place = f" at {connection.acquired_at}" if connection.acquired_at else ""
            yield f"{name} for {now - connection.held_since:.1f} s{place}"

    def _remedy(self) -> str:
        this = asyncio.current_task()
        if any(connection.holder is this for connection in self._held):
            return "use the connection that this task has (`using_db=`), or end its transaction before"
        return "raise DB_POOL_MAX, run fewer jobs at once, or hold connections for a shorter time"
