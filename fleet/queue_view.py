"""The queue at one moment: what is due, deferred, running, dead."""

from __future__ import annotations

from dataclasses import dataclass

from arq.connections import ArqRedis

from fleet.job_id import id_text
from fleet.script import Script

_READ = Script(
    """
local oldest = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1)
local running = redis.call('HGETALL', claims)
return {
  redis.call('ZCOUNT', queue, '-inf', now),
  oldest[2] and math.max(0, now - oldest[2]) or 0,
  redis.call('ZCARD', queue),
  redis.call('ZCARD', dead),
  running
}
"""
)


@dataclass(frozen=True, slots=True)
class QueueView:
    """Counts of jobs. `oldest_s` is for how long the first one is due, `running` job id → the worker that has it.

    Both texts are escaped as by `id_text`.
    """

    due: int
    oldest_s: float
    deferred: int
    running: dict[str, str]
    dead: int


async def read_queue(redis: ArqRedis) -> QueueView:
    """Raises RedisError."""
    due, oldest_ms, all_jobs, dead, running = await _READ(redis, redis.default_queue_name)
    texts = [id_text(raw) for raw in running]
    owners = {job_id: claim.partition("/")[0] for job_id, claim in zip(texts[::2], texts[1::2], strict=True)}
    # A job that runs is in the queue, due at the end of its lease.
    return QueueView(due, oldest_ms / 1000, max(0, all_jobs - due - len(owners)), owners, dead)
