"""One process's pool: an ordinary asyncpg.Pool behind a gate, with guards for what asyncpg leaves to its user."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
from tortoise.exceptions import DBConnectionError

from pool.connection import RELEASE_TIMEOUT_S, PoolConnection
from pool.errors import (
    PoolClosed,
    PoolError,
    PoolSaturated,
    PoolTimeout,
    TooManyClients,
    describe,
    translate_connecting,
)
from pool.gate import Gate
from pool.leaks import LeakWatch
from pool.options import PoolOptions
from pool.pooler import Connector, Kind
from pool.recording import current_recording
from pool.stacks import call_site
from pool.statistics import CloseReason, PoolSnapshot, PoolStatistics

PING_TIMEOUT_S = 1.0
RELEASE_POLL_S = 0.005
CLOSE_GRACE_S = 5.0
HOT_S = 1.0  # the longest that asyncpg's release is put off: its recycling and its idle timer hang on it
LIFETIME_JITTER = 0.1  # so that connections opened together are not replaced together
FLOOR_RETRY_S = (1.0, 60.0)  # first and longest pause

logger = logging.getLogger(__name__)
events = logging.getLogger("pool.events")


class Pool:
    """Hands out connections and takes them back; has what Tortoise calls on a pool.

    `name` is for errors and log lines. The arguments are those of `asyncpg.create_pool`: `min_size` is the floor,
    `max_size` the ceiling. The limit is the ceiling, or in an elastic pool what `resize` says.

    `acquire` and `release` are for everybody, and go all the way through asyncpg's pool, whose proxies guard against
    a user that still holds on to a connection after its release. `checkout` and `checkin` are for the engine, which
    does not: they may pass a connection on while asyncpg believes it is still out. Such a connection is *hot*.
    """

    def __init__(self, name: str, options: PoolOptions | None = None, **asyncpg_arguments: Any) -> None:
        self.name = name
        self.options = options = options or PoolOptions()
        self.statistics = PoolStatistics()
        self.ceiling: int = asyncpg_arguments.get("max_size", 10)
        self.floor: int = asyncpg_arguments.get("min_size", self.ceiling) if options.mode == "pool" else 0
        self._arguments = asyncpg_arguments | {
            # asyncpg would refill the floor of a pool that is to be resized beyond its limit
            "min_size": 0 if options.elastic else self.floor,
            "max_size": self.ceiling,
            "connection_class": PoolConnection,
        }
        self._max_queries: int = asyncpg_arguments.get("max_queries", 50_000)
        self._gate: Gate[PoolConnection] = Gate(self.ceiling, self._unclaimed)
        self._connections: set[PoolConnection] = set()
        self._held: set[PoolConnection] = set()
        self._lent: dict[Any, PoolConnection] = {}  # by the proxy that a user of `acquire` has
        self._hot: list[PoolConnection] = []
        self._on_end = self._on_closed  # one bound method for all of them
        self._connector = Connector(name, options.pooler)
        self._resets = options.reset
        self._stays_hot = options.mode == "pool" and options.reset != "always"
        self._cooling: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._refilling: asyncio.Task[None] | None = None
        self._preparing = 0  # callers past the gate whose connection is being checked or opened
        self._generation = 0
        self._closing = False
        self._closed = asyncio.Event()
        self._pool: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leak_watch = LeakWatch(name, options.leak_threshold_s, lambda: self._held, self.statistics)

    async def open(self) -> None:
        """Opens as many connections as the floor says. Raises DBConnectionError, with nothing left open."""
        self._loop = asyncio.get_running_loop()
        self._pool = asyncpg.create_pool(None, connect=self._connect, reset=self._reset, **self._arguments)
        try:
            await self._pool
            if self.options.elastic:
                await self._fill_floor()
        except BaseException as error:
            self.terminate()
            if isinstance(error, Exception):
                raise self._cannot_connect(error)  # noqa: B904 - it has its cause
            raise
        if self.options.leak_threshold_s:
            self._leak_watch.start()

    # What everybody may ask.

    @property
    def limit(self) -> int:
        """How many connections it may hold now."""
        return self._gate.limit

    @property
    def pooler(self) -> Kind:
        """What stands before the server: "none", or a pooler in mode "transaction" or "session".

        Known from the first connection on; "none" until then.
        """
        return self._connector.pooler.kind

    def snapshot(self) -> PoolSnapshot:
        """The pool now."""
        counted = self.statistics
        size, in_use = self._size(), len(self._held)
        return PoolSnapshot(
            name=self.name,
            floor=self.floor,
            limit=self.limit,
            ceiling=self.ceiling,
            size=size,
            idle=max(0, size - in_use),
            in_use=in_use,
            waiting=self._gate.waiting + self._preparing,
            peak=counted.peak,
            peak_waiting=counted.peak_waiting,
            acquires=counted.acquires,
            releases=counted.releases,
            waits=counted.waits,
            timeouts=counted.timeouts,
            shed=counted.shed,
            created=counted.created,
            connect_failures=counted.connect_failures,
            closed=dict(counted.closed),
            resets=counted.resets,
            resets_skipped=counted.resets_skipped,
            handovers=counted.handovers,
            retries=counted.retries,
            leaks=counted.leaks,
            queries=counted.queries,
            wait_s=counted.wait_s.snapshot(),
            use_s=counted.use_s.snapshot(),
            create_s=counted.create_s.snapshot(),
            wait_p95_s=counted.wait_s.quantile(0.95),
        )

    async def acquire(self) -> Any:
        """A connection that is fit for use, as asyncpg's proxy of it; to be given back with `release`.

        Raises PoolTimeout after the acquire deadline if the pool is full, PoolSaturated if too many are waiting,
        PoolClosed, and DBConnectionError if a new connection is needed and cannot be opened.
        """
        connection = await self.checkout()
        self._lent[connection.proxy] = connection
        return connection.proxy

    async def release(self, proxy: Any, *, failed: bool = False) -> None:
        """Takes a connection back. Does nothing where it came back already, or was cut off by `close`.

        `failed`: its use ended with an exception, so its session is reset.

        Never raises for a connection that breaks on its way back: what its user asked of it is done or failed
        by now, and it is replaced.
        """
        connection = self._lent.pop(proxy, None)
        if connection is not None and connection in self._held:
            connection.changed |= failed
            self._let_go(connection, time.monotonic())
            await self._return(connection)

    async def resize(self, limit: int) -> None:
        """Changes the limit, from 1 to the ceiling. Callers in line are served at once as far as it grows.

        Where it shrinks, idle connections are closed now and busy ones when they come back. Raises PoolError for a
        pool that is not elastic, ValueError for a limit out of bounds.
        """
        if not 1 <= limit <= self.ceiling:
            raise ValueError(f"pool {self.name!r}: limit {limit} is not between 1 and its ceiling, {self.ceiling}")
        if not self.options.elastic and limit != self.ceiling:
            raise PoolError(f"pool {self.name!r} is fixed at {self.ceiling} connections: open it with elastic=True")
        shrinks = limit < self._gate.limit
        self._gate.resize(limit)
        if shrinks:  # also where the caller is cancelled meanwhile
            await asyncio.shield(self._spawn(self._close_surplus()))
        self._refill()

    async def expire_connections(self) -> None:
        """Has every connection replaced before it is handed out again."""
        self._generation += 1

    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """Refuses new checkouts, waits for those out, and closes all; cuts off what is left after `grace_s`.

        Harmless twice, and never raises for a connection that breaks meanwhile.
        """
        if self._closing or self._pool is None:
            self._closing = True
            if self._pool is not None:
                await self._closed.wait()
            return
        self._stop()
        try:
            async with asyncio.timeout(grace_s):
                while self._hot:
                    await self._discard(self._hot.pop(), "closing")
                await self._pool.close()
        except TimeoutError:
            logger.warning(
                "pool %r: cut off after %g s of closing, %d connections still in use",
                self.name,
                grace_s,
                len(self._held),
            )
        except Exception as error:  # asyncpg has terminated all connections by now
            logger.info("pool %r: a connection broke at closing: %s", self.name, describe(error))
        finally:
            self.terminate()

    def terminate(self) -> None:
        """Closes all connections at once, those in use too."""
        self._stop()
        if self._pool is not None:
            self._pool.terminate()
        for connection in [*self._connections]:  # asyncpg's pool knows no connection that is just being opened
            connection.terminate()
        now = time.monotonic()
        for connection in [*self._held]:
            self._let_go(connection, now)
        self._hot.clear()
        self._lent.clear()
        self._closed.set()

    # What the engine asks.

    async def checkout(self, *, doubtful: bool = False) -> PoolConnection:
        """A connection that is fit for use; to be given back with `try_checkin` or `checkin`. Raises as `acquire`.

        `doubtful`: a connection just died under the caller, so others may be dead too: ask each before its use.
        """
        asked = time.monotonic()
        connection: PoolConnection | None = None
        if self._closing or asyncio.get_running_loop() is not self._loop:
            raise self._refusal()
        if not self._gate.try_enter():
            connection = await self._stand_in_line()
        elif self._hot:
            connection = self._hot.pop()
        elif len(self._connections) >= self._gate.taken:
            connection = await self._from_idle()
        now = time.monotonic()
        if connection is None or doubtful or self._doubts(connection, now) is not None:
            connection = await self._make_fit(connection, asked + self.options.acquire_timeout_s, doubtful=doubtful)
            now = time.monotonic()
        self._hold(connection, now, waited_s=now - asked)
        return connection

    def try_checkin(self, connection: PoolConnection) -> bool:
        """Takes a connection back at once, for the next checkout. False where it must go all the way: `checkin`."""
        now = time.monotonic()
        if not (
            self._stays_hot
            and now - connection.hot_since < HOT_S
            and not (connection.changed and self._resets != "never")
            and not self._closing
            and self._gate.taken <= self._gate.limit
            and now < connection.expires_at
            and connection.generation == self._generation
            and connection.statements < self._max_queries
            and not connection.is_closed()
            and not connection.is_in_transaction()
        ):
            return False
        self._let_go(connection, now)
        self.statistics.handovers += 1
        if not self._gate.hand_over(connection):
            self._keep_hot(connection)
        return True

    async def checkin(self, connection: PoolConnection) -> None:
        """Takes a connection back, all the way through asyncpg's pool. Never raises, but for a cancellation.

        A caller that is cancelled meanwhile does not stop it.
        """
        if connection in self._held:
            self._let_go(connection, time.monotonic())
            await self._return(connection)

    # Going in.

    async def _stand_in_line(self) -> PoolConnection | None:
        counted, options = self.statistics, self.options
        if options.max_waiting and self._gate.waiting >= options.max_waiting:
            counted.shed += 1
            raise PoolSaturated(
                f"pool {self.name!r}: as many callers wait already as may (DB_POOL_MAX_WAITING="
                f"{options.max_waiting}); {self._state()}: {self._remedy()}"
            )
        counted.waits += 1
        counted.peak_waiting = max(counted.peak_waiting, self._gate.waiting + 1)
        try:
            return await self._gate.wait(options.acquire_timeout_s)
        except TimeoutError as error:
            counted.timeouts += 1
            raise PoolTimeout(
                f"pool {self.name!r}: no connection came free within {options.acquire_timeout_s:g} s"
                f" (DB_POOL_TIMEOUT); {self._state(1)}: {self._remedy()}"
            ) from error

    async def _make_fit(self, connection: PoolConnection | None, deadline: float, *, doubtful: bool) -> PoolConnection:
        """`connection`, or another that is neither too old nor dead. Gives up the caller's place where it fails.

        Each turn closes one that is, and a new one is fit, so there are no more turns than connections.
        """
        self._preparing += 1
        fit = False
        patience = asyncio.timeout_at(deadline)
        try:
            async with patience:
                for _ in range(self._gate.limit + 1):
                    if connection is None:
                        connection = await self._from_asyncpg()
                    unfit_because = await self._examine(connection, doubtful=doubtful)
                    if unfit_because is None:
                        fit = True
                        return connection
                    unfit, connection = connection, None
                    await self._discard(unfit, unfit_because)
                raise DBConnectionError(f"pool {self.name!r}: every new connection was dead before its first use")
        except Exception as error:
            failure = self._explained(error, timed_out=patience.expired())
            self._share(failure)  # while it has its place: with that the first in line would try the same
            raise failure  # noqa: B904 - it has its cause
        finally:
            self._preparing -= 1
            if not fit:
                if connection is not None:  # cancelled while asking it
                    self._terminate(connection, "error")
                self._gate.leave()

    async def _from_idle(self) -> PoolConnection:
        """A connection that is idle in asyncpg's pool, which hands it out at once: no timer for the usual case.

        There is one where more are open than places are taken. Gives up the caller's place where it fails.
        """
        try:
            return await self._from_asyncpg()
        except BaseException as error:  # it died this moment, and so did what asyncpg put in its place
            self._gate.leave()
            if isinstance(error, Exception):
                raise self._explained(error, timed_out=False)  # noqa: B904 - it has its cause
            raise

    async def _from_asyncpg(self) -> PoolConnection:
        proxy = await self._pool.acquire()
        connection: PoolConnection = proxy.itself
        connection.proxy = proxy
        connection.returning = connection.unseen = False
        connection.hot_since = time.monotonic()
        return connection

    def _doubts(self, connection: PoolConnection, now: float) -> CloseReason | None:
        """Why a connection may not be used as it is; "pre-ping" where only the server knows."""
        options = self.options
        if connection.is_closed():
            return "error"
        if connection.generation != self._generation:
            return "expired"
        if now >= connection.expires_at:
            return "age"
        if options.pre_ping and now - connection.idle_since > options.pre_ping_idle_s:
            return "pre-ping"
        return None

    async def _examine(self, connection: PoolConnection, *, doubtful: bool) -> CloseReason | None:
        """Why a connection is unfit for use, asking the server where there is doubt."""
        doubts = self._doubts(connection, time.monotonic())
        if doubts == "pre-ping" or (doubts is None and doubtful):
            try:
                await connection.ping(PING_TIMEOUT_S)
            except Exception as error:
                logger.info("pool %r: replaced a dead connection: %s", self.name, describe(error))
                return "pre-ping"
            return None
        return doubts

    def _hold(self, connection: PoolConnection, now: float, waited_s: float) -> None:
        counted = self.statistics
        counted.acquires += 1
        counted.wait_s.observe(waited_s)
        connection.holder = asyncio.current_task()
        connection.held_since = now
        self._held.add(connection)
        if len(self._held) > counted.peak:
            counted.peak = len(self._held)
        if self.options.leak_threshold_s:
            connection.acquired_at = call_site()
        if self.options.log:
            self._event("check-out", connection)
        recording = current_recording()
        if recording is not None:
            recording.waits.append(waited_s)

    # Coming back.

    def _let_go(self, connection: PoolConnection, now: float) -> None:
        self._held.discard(connection)
        self.statistics.releases += 1
        self.statistics.use_s.observe(now - connection.held_since)
        connection.idle_since = now
        connection.holder = None
        connection.acquired_at = None
        if self.options.log:
            self._event("check-in", connection)

    async def _return(self, connection: PoolConnection) -> None:
        """Gives a connection back to asyncpg, or closes it; its place at the gate is free when that is done.

        From asyncpg's pool it may be taken again before this task goes on, so nothing of it is touched afterwards.
        """
        proxy, connection.proxy = connection.proxy, None
        connection.returning = True
        try:
            close_because = self._close_on_return(connection)
            if close_because is not None:
                await self._discard(connection, close_because)
            else:
                # Where nothing will be sent there is nothing to wait for; a timer is a good part of the cost.
                timeout_s = None if self._is_quiet(connection) else RELEASE_TIMEOUT_S
                await self._pool.release(proxy, timeout=timeout_s)
        except asyncio.CancelledError:  # asyncpg goes on in a task of its own
            self._spawn(self._leave_after(proxy))
            raise
        except Exception as error:
            logger.info("pool %r: a connection broke at release: %s", self.name, describe(error))
            self._terminate(connection, "error")  # asyncpg has done so, unless a warning was made an error
        self._leave()

    def _is_quiet(self, connection: PoolConnection) -> bool:
        """Whether asyncpg's release will send nothing on it, nor find a cancellation under way."""
        return (
            not connection.changed
            and not connection.unseen
            and self._resets != "always"
            and connection.statements < self._max_queries
            and not connection.is_in_transaction()
        )

    async def _leave_after(self, proxy: Any) -> None:
        """Leaves the gate when asyncpg has taken a connection back, which its proxy shows by refusing every call."""
        with contextlib.suppress(asyncpg.InterfaceError):
            while True:
                proxy.is_closed()
                await asyncio.sleep(RELEASE_POLL_S)
        self._leave()

    def _leave(self) -> None:
        """Gives up a place whose connection asyncpg has back: one too many, where the limit shrank meanwhile."""
        above = self._gate.taken > self._gate.limit
        self._gate.leave()
        if above:
            self._spawn(self._close_surplus())

    def _close_on_return(self, connection: PoolConnection) -> CloseReason | None:
        if connection.is_closed():
            return "error"
        if self._gate.taken > self._gate.limit:
            return "shrink"
        if connection.generation != self._generation:
            return "expired"
        if time.monotonic() >= connection.expires_at:
            return "age"
        return "no pool" if self.options.mode == "none" else None

    async def _discard(self, connection: PoolConnection, reason: CloseReason) -> None:
        """Closes a connection, which frees its slot in asyncpg's pool: politely unless it is dead anyhow."""
        if reason in ("pre-ping", "error"):
            self._terminate(connection, reason)
            return
        connection.close_reason = reason
        try:
            await connection.close(timeout=RELEASE_TIMEOUT_S)
        except Exception as error:  # it is aborted then
            logger.info("pool %r: a connection broke at closing: %s", self.name, describe(error))

    @staticmethod
    def _terminate(connection: PoolConnection, reason: CloseReason) -> None:
        connection.close_reason = connection.close_reason or reason
        connection.terminate()

    async def _reset(self, connection: PoolConnection) -> None:
        """asyncpg's hook at release; it has rolled back an open transaction by then."""
        wanted = self._resets == "always" or (self._resets == "auto" and connection.changed)
        if wanted:
            self.statistics.resets += 1
            await connection.reset_session()
        else:
            self.statistics.resets_skipped += 1

    def _unclaimed(self, connection: PoolConnection | None) -> None:
        """The gate's hook: who was to have this place was cancelled."""
        if connection is None:
            self._gate.leave()
        elif self._closing or self._gate.taken > self._gate.limit:
            self._spawn(self._return(connection))
        elif not self._gate.hand_over(connection):
            self._keep_hot(connection)

    def _keep_hot(self, connection: PoolConnection) -> None:
        self._hot.append(connection)
        self._gate.leave()
        if self._cooling is None:
            self._cooling = asyncio.get_running_loop().call_later(HOT_S, self._cool)

    def _cool(self) -> None:
        """Gives asyncpg what has been hot for long enough."""
        self._cooling = None
        now = time.monotonic()
        for connection in [hot for hot in self._hot if now - hot.hot_since >= HOT_S]:
            # A place of its own, or a checkout meanwhile would open one more than the limit. There is one: what is
            # hot and what is taken are never more than the limit together.
            if self._gate.try_enter():
                self._hot.remove(connection)
                self._spawn(self._return(connection))
        if self._hot:
            self._cooling = asyncio.get_running_loop().call_later(HOT_S, self._cool)

    # Connections.

    async def _connect(self, *args: Any, **kwargs: Any) -> PoolConnection:
        """asyncpg's hook for a new connection."""
        started = time.monotonic()
        try:
            connection = await self._connector.connect(*args, **kwargs)
        except BaseException:
            self.statistics.connect_failures += 1
            raise
        if self.pooler == "transaction":
            # A reset reaches any of the server's connections, and would unlock what another client has locked.
            self._resets = "never"
            self._stays_hot = self.options.mode == "pool"
        now = time.monotonic()
        self.statistics.created += 1
        self.statistics.create_s.observe(now - started)
        jitter = 1 - LIFETIME_JITTER * random.random()  # noqa: S311 - not for secrets
        connection.statistics = self.statistics
        connection.idle_since = now
        connection.expires_at = now + (self.options.max_lifetime_s or math.inf) * jitter
        connection.generation = self._generation
        connection.watch_end(self._on_end)
        self._connections.add(connection)
        if self.options.log:
            connection.backend = connection.get_server_pid()  # asyncpg does not know it any more at the end
            self._event("connect", connection)
        return connection

    def _on_closed(self, connection: PoolConnection) -> None:
        """A connection was closed, by whomever."""
        reason = connection.close_reason or "error"
        self.statistics.closed[reason] += 1
        self._connections.discard(connection)
        if connection in self._hot:
            self._hot.remove(connection)
        if self.options.log:
            self._event(f"close ({reason})", connection)
        self._refill()

    def _size(self) -> int:
        return sum(not connection.is_closed() for connection in self._connections)

    def _committed(self) -> int:
        """Connections that nobody has, and places taken, each of which has or may open one: at most the limit."""
        committed: int = len(self._hot) + self._pool.get_idle_size() + self._gate.taken
        return committed

    async def _close_surplus(self) -> None:
        while not self._closing and self._committed() > self.limit:
            entered = self._gate.try_enter()
            try:
                if self._hot:
                    connection = self._hot.pop()
                elif self._pool.get_idle_size():
                    connection = await self._from_asyncpg()  # live ones come first, and at once
                else:
                    return
                await self._discard(connection, "shrink")
            finally:
                if entered:
                    self._gate.leave()

    def _below_floor(self) -> bool:
        return self._size() < min(self.floor, self.limit)

    def _refill(self) -> None:
        """Has the floor of an elastic pool kept; asyncpg keeps that of a fixed one."""
        if self.options.elastic and not self._closing and self._refilling is None and self._below_floor():
            self._refilling = self._spawn(self._keep_floor())

    async def _keep_floor(self) -> None:
        shortest_s, longest_s = FLOOR_RETRY_S
        pause_s = shortest_s
        try:
            while self._below_floor():
                try:
                    await self._fill_floor()
                    pause_s = shortest_s
                except Exception as error:
                    logger.warning("pool %r: below its floor of %d: %s", self.name, self.floor, describe(error))
                if self._below_floor():  # all places are taken, or it failed
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, longest_s)
        finally:
            self._refilling = None

    async def _fill_floor(self) -> None:
        while self._below_floor() and self._committed() < self.limit and self._gate.try_enter():
            # asyncpg hands out what is idle first, so it is not to see that until it has begun to connect
            idle: list[PoolConnection] = []
            while self._pool.get_idle_size() and self._gate.try_enter():
                idle.append(await self._from_asyncpg())
            opening = self._spawn(self._open_one())
            for connection in idle:
                self._spawn(self._return(connection))
            await opening

    async def _open_one(self) -> None:
        """Opens a connection for later, with a place that was taken for it."""
        try:
            connection = await self._from_asyncpg()
        except BaseException:
            self._gate.leave()
            raise
        await self._return(connection)

    # Words.

    def _state(self, and_waiting: int = 0) -> str:
        """The pool now; `and_waiting`: callers who have just left the line to raise an error with this in it."""
        now = self.snapshot()
        waiting = now.waiting + and_waiting
        return f"limit={now.limit}, size={now.size}, in use={now.in_use}, idle={now.idle}, waiting={waiting}" + "".join(
            f"; held by {holder}" for holder in self._longest_holders()
        )

    def _longest_holders(self) -> Iterator[str]:
        now, this = time.monotonic(), asyncio.current_task()
        held = sorted((held for held in self._held if held.holder is not None), key=lambda each: each.held_since)
        for connection in held[:3]:
            task = connection.holder
            name = "this same task" if task is this else f"task {task.get_name()!r}" if task else "no task"
            place = f" at {connection.acquired_at}" if connection.acquired_at else ""
            yield f"{name} for {now - connection.held_since:.1f} s{place}"

    def _remedy(self) -> str:
        this = asyncio.current_task()
        if any(connection.holder is this for connection in self._held):
            return "use the connection that this task has (`using_db=`), or end its transaction before"
        return "raise DB_POOL_MAX, run fewer jobs at once, or hold connections for a shorter time"

    def _explained(self, error: Exception, *, timed_out: bool) -> Exception:
        """What a checkout raises because of `error`, which is its cause."""
        if not self._closing and not timed_out:
            return self._cannot_connect(error)
        failure: Exception = self._closed_error()
        if not self._closing:
            failure = DBConnectionError(
                f"pool {self.name!r}: a new connection could not be opened within {self.options.acquire_timeout_s:g} s"
                f" (DB_POOL_TIMEOUT); {self._state()}: does the database answer?"
            )
        failure.__cause__ = error
        return failure

    def _cannot_connect(self, error: Exception) -> Exception:
        failure = translate_connecting(error)
        if isinstance(failure, TooManyClients):
            slots = self._connector.slots
            failure = TooManyClients(
                f"pool {self.name!r} with {self._size()} of its {self.limit} connections {failure}"
                + (f" (the server has {slots} for ordinary roles)" if slots else "")
            )
        failure.__cause__ = failure.__cause__ if failure is error else error
        return failure

    def _refusal(self) -> PoolError:
        """Why nobody gets a connection."""
        if self._closing:
            return self._closed_error()
        if self._loop is None:
            return PoolError(f"pool {self.name!r} is not open")
        return PoolError(f"pool {self.name!r} belongs to another event loop: open one in each (open_database)")

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(f"pool {self.name!r} is closed: whatever still asks it for connections outlived it")

    def _event(self, what: str, connection: PoolConnection) -> None:
        events.debug("pool %r: %s, backend %s", self.name, what, connection.backend)

    # The rest.

    def _share(self, failure: Exception) -> None:
        """With no connection at all, everybody in line would find the same, one after the other."""

        def another() -> Exception:
            shared = type(failure)(*failure.args)
            shared.__cause__ = failure.__cause__
            return shared

        if isinstance(failure, DBConnectionError) and not self._size():
            self._gate.turn_away(another)

    def _stop(self) -> None:
        self._closing = True
        self._gate.turn_away(self._closed_error)
        self._leak_watch.stop()
        if self._cooling is not None:
            self._cooling.cancel()
            self._cooling = None
        if self._refilling is not None:
            self._refilling.cancel()
        for connection in self._connections:
            connection.close_reason = connection.close_reason or "closing"

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
