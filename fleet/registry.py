"""The list of the fleet's processes, in Redis: each announces itself with a heartbeat, everyone may read it.

Beside the entries there is the order in which their processes came.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar, cast

from arq.connections import ArqRedis
from pydantic import TypeAdapter, ValidationError
from redis.exceptions import RedisError

from fleet.errors import QueueLost, reason
from pool import PoolSnapshot

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
LIVE_S = 15.0  # three heartbeats: a process that is silent for longer is not live
# A silent process is remembered for so long, so that it can be told from one that never was. Redis' own expiry
# counts the time since the last heartbeat: no clock of any other machine takes part.
REMEMBERED_S = 60 * 60.0
GOODBYE_TIMEOUT_S = 1.0

INDEX_KEY = "fleet:processes"
ORDER_KEY = "fleet:order"  # their ids, as they entered
KEY_PREFIX = "fleet:process:"


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process this is."""

    role: str
    host: str
    pid: int

    @property
    def id(self) -> str:
        """`worker@host:123`."""
        return f"{self.role}@{self.host}:{self.pid}"

    @classmethod
    def own(cls, role: str) -> Identity:
        """That of the calling process."""
        return cls(role, socket.gethostname(), os.getpid())


@dataclass(frozen=True, slots=True)
class JobCounts:
    """Jobs of one process: `running` now, the others since it started."""

    running: int = 0
    complete: int = 0
    failed: int = 0
    retried: int = 0


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """What a process last said of itself.

    `started_at` is by its own clock and informative only; `uptime_s` and `loop_lag_s` (by how much the heartbeat was
    late, so how long the event loop was busy) are measured with a monotonic clock. `silent_s` is filled in by the
    reader: the time since the heartbeat, by Redis' clock.
    """

    role: str
    host: str
    pid: int
    started_at: datetime
    uptime_s: float
    loop_lag_s: float
    pool: PoolSnapshot
    jobs: JobCounts
    silent_s: float = field(default=0.0, compare=False)

    @property
    def id(self) -> str:
        """`worker@host:123`."""
        return Identity(self.role, self.host, self.pid).id

    @property
    def live(self) -> bool:
        """Whether it was heard of within LIVE_S."""
        return self.silent_s < LIVE_S


T = TypeVar("T")

_ENTRY = TypeAdapter(ProcessEntry)


class Registry:
    """This process's own entry. `pool` and `jobs` are asked at each heartbeat."""

    def __init__(
        self,
        queue: ArqRedis,
        identity: Identity,
        pool: Callable[[], PoolSnapshot],
        jobs: Callable[[], JobCounts] = JobCounts,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self.identity = identity
        self._queue = queue
        self._pool = pool
        self._jobs = jobs
        self._heartbeat_s = heartbeat_s
        self._started_at = datetime.now(UTC)
        self._started_s = time.monotonic()

    @asynccontextmanager
    async def announced(self) -> AsyncIterator[None]:
        """Be in the registry while inside: entered with the first heartbeat, left with a goodbye.

        Raises QueueLost if the first heartbeat fails. Later failures are logged once per outage, and the heartbeat
        goes on.
        """
        try:
            await self._beat(loop_lag_s=0.0, enters=True)
        except (RedisError, OSError) as error:
            raise QueueLost(
                f"{self.identity.id} cannot enter the registry ({reason(error)}): Redis must be reachable and writable"
            ) from None
        heartbeat = asyncio.create_task(self._beat_forever(), name="registry heartbeat")
        try:
            yield
        finally:
            heartbeat.cancel()
            await asyncio.wait({heartbeat}, timeout=GOODBYE_TIMEOUT_S)
            # In a task of its own: in Python 3.11.2 (Debian 12) a timeout inside a cancelled task, redis-py's own among
            # them, ends as another cancellation, and nobody would say goodbye.
            await asyncio.wait({asyncio.create_task(self._goodbye())}, timeout=2 * GOODBYE_TIMEOUT_S)

    async def _beat_forever(self) -> None:
        failing = False
        while True:
            due = time.monotonic() + self._heartbeat_s
            await asyncio.sleep(self._heartbeat_s)
            try:
                await self._beat(loop_lag_s=max(0.0, time.monotonic() - due))
            except Exception as error:
                # Whatever it is, a heartbeat must not end the process, nor end itself.
                if not failing:
                    logger.warning("heartbeat of %s failed, going on: %s", self.identity.id, reason(error))
                failing = True
            else:
                if failing:
                    logger.info("heartbeat of %s is back", self.identity.id)
                failing = False

    async def _beat(self, loop_lag_s: float, *, enters: bool = False) -> None:
        entry = ProcessEntry(
            role=self.identity.role,
            host=self.identity.host,
            pid=self.identity.pid,
            started_at=self._started_at,
            uptime_s=time.monotonic() - self._started_s,
            loop_lag_s=loop_lag_s,
            pool=self._pool(),
            jobs=self._jobs(),
        )
        raw = _ENTRY.dump_json(entry, exclude={"silent_s"})
        async with self._queue.pipeline(transaction=True) as pipe:
            pipe.set(KEY_PREFIX + entry.id, raw, px=int(REMEMBERED_S * 1000))
            pipe.sadd(INDEX_KEY, entry.id)
            if enters:
                pipe.lrem(ORDER_KEY, 0, entry.id)  # of a dead one of the same id, as each in a container has pid 1
                pipe.rpush(ORDER_KEY, entry.id)
            await pipe.execute()

    async def _goodbye(self) -> None:
        try:
            async with asyncio.timeout(GOODBYE_TIMEOUT_S), self._queue.pipeline(transaction=True) as pipe:
                pipe.delete(KEY_PREFIX + self.identity.id)
                pipe.srem(INDEX_KEY, self.identity.id)
                pipe.lrem(ORDER_KEY, 0, self.identity.id)
                await pipe.execute()
        except (RedisError, OSError) as error:
            logger.warning("%s could not leave the registry: %s", self.identity.id, reason(error))


async def read_fleet(queue: ArqRedis) -> list[ProcessEntry]:
    """The live processes of the fleet, by id. Raises RedisError where Redis cannot be reached."""
    return [entry for entry in await read_registry(queue) if entry.live]


async def read_earlier(queue: ArqRedis, identity: Identity) -> list[ProcessEntry]:
    """The live processes without those that entered after `identity`, which is among them itself, by id.

    Of two that enter at the same moment one sees the other, whichever of them looks first. A process of this host that
    is gone is left out, though it said no goodbye. Raises RedisError where Redis cannot be reached.
    """
    fleet = await read_fleet(queue)
    order = [raw.decode(errors="replace") for raw in await _answer(queue.lrange(ORDER_KEY, 0, -1))]
    later = order[order.index(identity.id) + 1 :] if identity.id in order else []
    here = socket.gethostname()
    return [entry for entry in fleet if entry.id not in later and (entry.host != here or pid_exists(entry.pid))]


async def read_registry(queue: ArqRedis) -> list[ProcessEntry]:
    """The live processes, and those that fell silent without goodbye within REMEMBERED_S, by id.

    Raises RedisError where Redis cannot be reached.
    """
    members: set[bytes] = await _answer(queue.smembers(INDEX_KEY))
    ids = sorted(raw.decode(errors="replace") for raw in members)
    async with queue.pipeline(transaction=True) as pipe:  # so that an entry and its age belong together
        for process_id in ids:
            pipe.get(KEY_PREFIX + process_id)
            pipe.pttl(KEY_PREFIX + process_id)
        answers = await pipe.execute()
    entries = []
    for process_id, raw, remaining_ms in zip(ids, answers[::2], answers[1::2], strict=True):
        if raw is None:  # forgotten: should it live after all, its next heartbeat puts it back
            await _answer(queue.srem(INDEX_KEY, process_id))
            await _answer(queue.lrem(ORDER_KEY, 0, process_id))
        elif (entry := _read(process_id, raw, REMEMBERED_S - remaining_ms / 1000)) is not None:
            entries.append(entry)
    return entries


def pid_exists(pid: int) -> bool:
    """Whether this host has such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _read(process_id: str, raw: bytes, silent_s: float) -> ProcessEntry | None:
    try:
        return replace(_ENTRY.validate_json(raw), silent_s=max(0.0, silent_s))
    except ValidationError as error:  # of another version of this project, or not of it at all
        logger.warning("the registry's entry of %s is unreadable: %d faults", process_id, error.error_count())
        return None


async def _answer(command: Awaitable[T] | T) -> T:
    """A command's answer. redis-py types a command for its blocking client and for this one at once."""
    return await cast("Awaitable[T]", command)
