"""Jobs that are due at certain times: whichever worker is first puts them on the queue, once in the fleet.

Redis remembers for each the time of its latest run (`QUEUE:schedule`), and its clock says what time it is: a worker
that is late, or whose own clock is wrong, enqueues nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from arq.connections import ArqRedis
from arq.cron import next_cron

from fleet.jobs import Job, job_payload
from fleet.script import Script

logger = logging.getLogger(__name__)

LATE_S = 60.0  # a run that is missed for longer is left out
LONGEST_NAP_S = 10.0  # then Redis' clock is asked again

_ENQUEUE_ONCE = Script(
    """
local name, at, id, payload = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local latest = tonumber(redis.call('HGET', queue .. ':schedule', name) or 0)
if at <= latest then return 0 end
redis.call('HSET', queue .. ':schedule', name, string.format('%.0f', at))
if redis.call('SET', job_key(id), payload, 'NX') then enqueue(id, at) end
return 1
"""
)


@dataclass(frozen=True, slots=True)
class Times:
    """When a job is due, in UTC; None: at each."""

    second: frozenset[int] = frozenset({0})
    minute: frozenset[int] | None = None
    hour: frozenset[int] | None = None

    def after(self, moment: datetime) -> datetime:
        """The first time after `moment`."""
        return next_cron(moment, second=set(self.second), minute=_set(self.minute), hour=_set(self.hour), microsecond=0)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A job of the contract, its arguments, and its times."""

    job: Job[Any, Any]
    arguments: Any
    times: Times


class Schedule:
    """The scheduled jobs, as one worker looks after them."""

    def __init__(self, redis: ArqRedis, scheduled: Sequence[Scheduled]) -> None:
        self._redis = redis
        self._scheduled = scheduled
        self._next: dict[str, datetime] = {}

    async def enqueue_due(self) -> float:
        """Put on the queue what is due and is not there yet; after how many seconds to do so again.

        Raises RedisError or OSError, and may then be called again.
        """
        seconds, microseconds = await self._redis.time()
        now = datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)
        nap_s = LONGEST_NAP_S
        for scheduled in self._scheduled:
            name = scheduled.job.name
            due = self._next.setdefault(name, scheduled.times.after(now))
            if due <= now:
                if (late_s := (now - due).total_seconds()) > LATE_S:
                    logger.warning("the run of %s at %s is left out: this worker is %.0f s late", name, due, late_s)
                else:
                    await self._enqueue(scheduled, due)
                due = self._next[name] = scheduled.times.after(now)
            nap_s = min(nap_s, (due - now).total_seconds())
        return max(nap_s, 0.001)

    async def _enqueue(self, scheduled: Scheduled, due: datetime) -> None:
        name, at_ms = scheduled.job.name, round(due.timestamp() * 1000)
        payload = job_payload(scheduled.job, scheduled.arguments)
        await _ENQUEUE_ONCE(self._redis, self._redis.default_queue_name, name, at_ms, f"{name}:{at_ms}", payload)


def _set(numbers: frozenset[int] | None) -> set[int] | None:
    return None if numbers is None else set(numbers)
