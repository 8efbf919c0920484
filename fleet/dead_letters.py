"""Jobs that ended without success: kept with their arguments and the reason, to be read and tried again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from arq.connections import ArqRedis

from fleet.job_id import id_bytes, id_text
from fleet.script import Script
from fleet.wire import loads

# A payload of the wrong type is a dead job, too: none of these steps may end on it.
_READ = Script(
    """
local ids = redis.call('ZREVRANGE', dead, ARGV[1], ARGV[2], 'WITHSCORES')
local rows = {}
for i = 1, #ids, 2 do
  local size, payload = redis.pcall('STRLEN', dead_key(ids[i])), ''
  if type(size) == 'number' and size <= tonumber(ARGV[3]) then payload = redis.call('GET', dead_key(ids[i])) or '' end
  rows[#rows + 1] = {ids[i], ids[i + 1], redis.call('HGET', reasons, ids[i]) or '', payload}
end
return {redis.call('ZCARD', dead), rows}
"""
)

_RETRY = Script(
    """
local id = ARGV[1]
if redis.call('EXISTS', dead_key(id)) == 0 then return 'not among the dead' end
if redis.call('EXISTS', job_key(id)) == 1 then return 'on the queue already' end
redis.call('RENAME', dead_key(id), job_key(id))
redis.call('ZREM', dead, id)
redis.call('HDEL', reasons, id)
redis.call('DEL', result_key(id))
enqueue(id, now)
return ''
"""
)

LARGEST_SHOWN = 1_000_000  # bytes of a payload


@dataclass(frozen=True, slots=True)
class DeadJob:
    """A job that ended without success. `job` and `arguments` are None where its payload cannot be read.

    `id` is escaped as by `id_text`; the other texts are as they came, control characters included.
    """

    id: str
    at: datetime
    job: str | None
    arguments: dict[str, Any] | None
    type: str  # of the error
    message: str
    traceback: str | None
    tries: int


async def read_dead(redis: ArqRedis, *, most: int = 100) -> tuple[int, list[DeadJob]]:
    """How many there are, and the latest of them, the last one first. Raises RedisError."""
    count, rows = await _READ(redis, redis.default_queue_name, 0, most - 1, LARGEST_SHOWN)
    return count, [_dead_job(*row) for row in rows]


async def retry_dead(redis: ArqRedis, job_id: str) -> str | None:
    """Put a dead job back on the queue, with all its tries before it; why that cannot be, or None.

    `job_id` is as in DeadJob, escapes included. Raises ValueError for an escape that is none, RedisError.
    """
    answer: bytes = await _RETRY(redis, redis.default_queue_name, id_bytes(job_id))
    return answer.decode() or None


def _dead_job(job_id: bytes, at_ms: bytes, reason: bytes, payload: bytes) -> DeadJob:
    why: dict[str, Any] = json.loads(reason) if reason else {}
    try:
        what = loads(payload)
        job, arguments = str(what["f"]), dict(what["k"])
    except (ValueError, TypeError, KeyError):
        job, arguments = None, None
    return DeadJob(
        id=id_text(job_id),
        at=datetime.fromtimestamp(float(at_ms) / 1000, UTC),
        job=job,
        arguments=arguments,
        type=str(why.get("type", "")),
        message=str(why.get("message", "")),
        traceback=why.get("traceback"),
        tries=int(why.get("tries", 0)),
    )
