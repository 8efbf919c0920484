"""One process's pool: asyncpg's connections behind a gate, with a deadline, a limit and numbers."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from tortoise.exceptions import DBConnectionError

from pool.connection import PoolConnection
from pool.connections import Connections
from pool.errors import PoolError, describe
from pool.gate import Gate
from pool.hot import HotConnections
from pool.leaks import LeakWatch
from pool.options import PoolOptions
from pool.pooler import Kind
from pool.recording import current_recording
from pool.refusals import Refusals
from pool.stacks import call_site
from pool.statistics import PoolSnapshot, PoolStatistics

CLOSE_GRACE_S = 5.0
FLOOR_RETRY_S = (1.0, 60.0)  # first and longest pause

logger = logging.getLogger(__name__)


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
        self._held: set[PoolConnection] = set()
        self._lent: dict[Any, PoolConnection] = {}  # by the proxy that a user of `acquire` has
        self._gate: Gate[PoolConnection] = Gate(self.ceiling, self._unclaimed)
        self._hot = HotConnections(self._cool)
        self._connections = Connections(
            name,
            options,
            self.statistics,
            # asyncpg would refill the floor of a pool that is to be resized beyond its limit
            asyncpg_arguments | {"min_size": 0 if options.elastic else self.floor, "max_size": self.ceiling},
            self._on_closed,
        )
        self._refusals = Refusals(name, options, self.snapshot, self._held)
        self._leak_watch = LeakWatch(name, options.leak_threshold_s, lambda: self._held, self.statistics)
        self._tasks: set[asyncio.Task[None]] = set()
        self._refilling: asyncio.Task[None] | None = None
        self._preparing = 0  # callers past the gate whose connection is being checked or opened
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._closed = asyncio.Event()

    async def open(self) -> None:
        """Opens as many connections as the floor says. Raises DBConnectionError, with nothing left open."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._connections.open()
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
        return self._connections.pooler

    def snapshot(self) -> PoolSnapshot:
        """The pool now."""
        counted = self.statistics
        size, in_use = self._connections.size, len(self._held)
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
        self._connections.expire()

    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """Refuses new checkouts, waits for those out, and closes all; cuts off what is left after `grace_s`.

        Harmless twice, and never raises for a connection that breaks meanwhile.
        """
        if self._closing or self._loop is None:
            self._closing = True
            if self._loop is not None:
                await self._closed.wait()
            return
        self._stop()
        try:
            async with asyncio.timeout(grace_s):
                while self._hot:
                    await self._connections.discard(self._hot.pop(), "closing")
                await self._connections.close()
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
        self._connections.terminate_all()
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
        elif self._connections.known >= self._gate.taken:
            connection = await self._from_idle()
        now = time.monotonic()
        if connection is None or doubtful or self._connections.doubts(connection, now) is not None:
            connection = await self._make_fit(connection, asked + self.options.acquire_timeout_s, doubtful=doubtful)
            now = time.monotonic()
        self._hold(connection, now, waited_s=now - asked)
        return connection

    def try_checkin(self, connection: PoolConnection) -> bool:
        """Takes a connection back at once, for the next checkout. False where it must go all the way: `checkin`."""
        now = time.monotonic()
        if self._closing or self._is_surplus() or not self._connections.may_stay_hot(connection, now):
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
            raise self._refusals.saturated()
        counted.waits += 1
        counted.peak_waiting = max(counted.peak_waiting, self._gate.waiting + 1)
        try:
            return await self._gate.wait(options.acquire_timeout_s)
        except TimeoutError as error:
            counted.timeouts += 1
            raise self._refusals.timeout() from error

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
                        connection = await self._connections.take()
                    unfit_because = await self._connections.examine(connection, doubtful=doubtful)
                    if unfit_because is None:
                        fit = True
                        return connection
                    unfit, connection = connection, None
                    await self._connections.discard(unfit, unfit_because)
                raise DBConnectionError(f"pool {self.name!r}: every new connection was dead before its first use")
        except Exception as error:
            failure = self._explained(error, timed_out=patience.expired())
            self._share(failure)  # while it has its place: with that the first in line would try the same
            raise failure  # noqa: B904 - it has its cause
        finally:
            self._preparing -= 1
            if not fit:
                if connection is not None:  # cancelled while asking it
                    self._connections.terminate(connection, "error")
                self._gate.leave()

    async def _from_idle(self) -> PoolConnection:
        """A connection that is idle in asyncpg's pool, which hands it out at once: no timer for the usual case.

        There is one where more are open than places are taken. Gives up the caller's place where it fails.
        """
        try:
            return await self._connections.take()
        except BaseException as error:  # it died this moment, and so did what asyncpg put in its place
            self._gate.leave()
            if isinstance(error, Exception):
                raise self._explained(error, timed_out=False)  # noqa: B904 - it has its cause
            raise

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
            self._connections.event("check-out", connection)
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
            self._connections.event("check-in", connection)

    async def _return(self, connection: PoolConnection) -> None:
        """All the way to asyncpg; the place at the gate is free when that is done."""
        await self._connections.put_back(connection, self._leave, surplus=self._is_surplus())

    def _leave(self) -> None:
        """Gives up a place whose connection asyncpg has back: one too many, where the limit shrank meanwhile."""
        surplus = self._is_surplus()
        self._gate.leave()
        if surplus:
            self._spawn(self._close_surplus())

    def _is_surplus(self) -> bool:
        """Whether more are out than the limit allows by now."""
        return self._gate.taken > self._gate.limit

    def _unclaimed(self, connection: PoolConnection | None) -> None:
        """The gate's hook: who was to have this place was cancelled."""
        if connection is None:
            self._gate.leave()
        elif self._closing or self._is_surplus():
            self._spawn(self._return(connection))
        elif not self._gate.hand_over(connection):
            self._keep_hot(connection)

    def _keep_hot(self, connection: PoolConnection) -> None:
        self._hot.add(connection)
        self._gate.leave()

    def _cool(self, connection: PoolConnection) -> bool:
        """Gives asyncpg what has been hot for long enough.

        With a place of its own, or a checkout meanwhile would open one more than the limit. There is one: what is
        hot and what is taken are never more than the limit together.
        """
        if not self._gate.try_enter():
            return False
        self._spawn(self._return(connection))
        return True

    def _on_closed(self, connection: PoolConnection) -> None:
        self._hot.forget(connection)
        self._refill()

    # The size of an elastic pool.

    def _committed(self) -> int:
        """Connections that nobody has, and places taken, each of which has or may open one: at most the limit."""
        return len(self._hot) + self._connections.idle + self._gate.taken

    async def _close_surplus(self) -> None:
        while not self._closing and self._committed() > self.limit:
            entered = self._gate.try_enter()
            try:
                if self._hot:
                    connection = self._hot.pop()
                elif self._connections.idle:
                    connection = await self._connections.take()  # live ones come first, and at once
                else:
                    return
                await self._connections.discard(connection, "shrink")
            finally:
                if entered:
                    self._gate.leave()

    def _below_floor(self) -> bool:
        return self._connections.size < min(self.floor, self.limit)

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
            while self._connections.idle and self._gate.try_enter():
                idle.append(await self._connections.take())
            opening = self._spawn(self._open_one())
            for connection in idle:
                self._spawn(self._return(connection))
            await opening

    async def _open_one(self) -> None:
        """Opens a connection for later, with a place that was taken for it."""
        try:
            connection = await self._connections.take()
        except BaseException:
            self._gate.leave()
            raise
        await self._return(connection)

    # Errors.

    def _explained(self, error: Exception, *, timed_out: bool) -> Exception:
        """What a checkout raises because of `error`, which is its cause."""
        if self._closing:
            failure: Exception = self._refusals.closed()
            failure.__cause__ = error
            return failure
        return self._refusals.too_slow(error) if timed_out else self._cannot_connect(error)

    def _cannot_connect(self, error: Exception) -> Exception:
        return self._refusals.cannot_connect(error, self._connections.slots)

    def _refusal(self) -> PoolError:
        """Why nobody gets a connection."""
        if self._closing:
            return self._refusals.closed()
        return self._refusals.not_open() if self._loop is None else self._refusals.other_loop()

    def _share(self, failure: Exception) -> None:
        """With no connection at all, everybody in line would find the same, one after the other."""

        def another() -> Exception:
            shared = type(failure)(*failure.args)
            shared.__cause__ = failure.__cause__
            return shared

        if isinstance(failure, DBConnectionError) and not self._connections.size:
            self._gate.turn_away(another)

    def _stop(self) -> None:
        self._closing = True
        self._gate.turn_away(self._refusals.closed)
        self._leak_watch.stop()
        self._hot.stop()
        if self._refilling is not None:
            self._refilling.cancel()
        self._connections.expect_closing()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
