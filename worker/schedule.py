"""Jobs that are due at certain times: whichever worker is first puts them on the queue, once in the fleet.

Redis remembers for each the time of its latest run (`QUEUE:schedule`), and its clock says what time it is: a worker
that is late, or whose own clock is wrong, enqueues nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from arq.connections import ArqRedis

from fleet.jobs import job_payload
from fleet.scheduled import Scheduled, Times
from fleet.script import Script

logger = logging.getLogger(__name__)

LATE_S = 60.0  # a run that is missed for longer is left out
LONGEST_NAP_S = 10.0  # then Redis' clock is asked again

_ENQUEUE_ONCE = Script(
    """
local key, at, id, payload, missed = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5] == '1'
local latest = tonumber(redis.call('HGET', queue .. ':schedule', key))
if latest and at <= latest then return 0 end
if missed and not latest then return 0 end
redis.call('HSET', queue .. ':schedule', key, string.format('%.0f', at))
if redis.call('SET', job_key(id), payload, 'NX') then enqueue(id, at) end
return 1
"""
)


class Schedule:
    """The scheduled jobs, as one worker looks after them."""

    def __init__(self, redis: ArqRedis, scheduled: Sequence[Scheduled[Any]]) -> None:
        self._redis = redis
        self._scheduled = scheduled
        self._next: dict[str, datetime] = {}

    async def enqueue_due(self) -> float:
        """Put on the queue what is due and is not there yet; after how many seconds to do so again.

        The first call makes up for a run that all workers missed, unless it never ran before. Raises RedisError or
        OSError, and may then be called again.
        """
        seconds, microseconds = await self._redis.time()
        now = datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)
        nap_s = LONGEST_NAP_S
        for scheduled in self._scheduled:
            due = self._next.get(scheduled.key)
            missed = due is None
            if due is None:
                due = _latest(scheduled.times, now)
            if due <= now:
                if (late_s := (now - due).total_seconds()) > LATE_S:
                    logger.warning(
                        "the run of %s at %s is left out: this worker is %.0f s late", scheduled.key, due, late_s
                    )
                else:
                    await self._enqueue(scheduled, due, missed)
                due = scheduled.times.after(now)
            self._next[scheduled.key] = due
            nap_s = min(nap_s, (due - now).total_seconds())
        return max(nap_s, 0.001)

    async def _enqueue(self, scheduled: Scheduled[Any], due: datetime, missed: bool) -> None:
        key, at_ms = scheduled.key, round(due.timestamp() * 1000)
        payload = job_payload(scheduled.job, scheduled.arguments)
        arguments = (key, at_ms, f"{key}:{at_ms}", payload, int(missed))
        await _ENQUEUE_ONCE(self._redis, self._redis.default_queue_name, *arguments)


def _latest(times: Times, now: datetime) -> datetime:
    """The last time in the LATE_S before `now`, else the next one."""
    due = times.after(now - timedelta(seconds=LATE_S))
    while (following := times.after(due)) <= now:
        due = following
    return due
