"""One atomic step on the queue, in Lua; and the names of the keys that the steps share.

arq's keys, as its clients know them: the queue (a sorted set: job id → the time in ms from which it is due), and for
each job `arq:job:ID` (what is to be done), `arq:retry:ID` (how often it was tried), `arq:in-progress:ID` (its lease),
`arq:result:ID`; `arq:abort` (ids of the jobs to be aborted). Ours, beside them:

QUEUE:claims        job id → the claim of the worker that runs it, "OWNER NUMBER" (fleet/claims.py)
QUEUE:alive         kept alive by the workers' heartbeats
QUEUE:server        the run id of the Redis that workers last met: another one after each start
QUEUE:hold          while it exists, workers hold back: from all jobs, or from those of silent workers
QUEUE:wake          a list on which idle workers wait; an element wakes one of them
QUEUE:dead          the dead jobs: id → when, in ms (fleet/dead_letters.py)
QUEUE:dead:reasons  id → why, JSON
QUEUE:schedule      the key of a scheduled job → the time of its latest run, in ms (worker/schedule.py)
arq:dead:ID         what was to be done
arq:excused:ID      how often a try failed that was not the job's fault
"""

from __future__ import annotations

import hashlib
from typing import Any, cast

from arq.connections import ArqRedis
from arq.constants import (
    abort_jobs_ss,
    in_progress_key_prefix,
    job_key_prefix,
    result_key_prefix,
    retry_key_prefix,
)
from redis.exceptions import NoScriptError

EXCUSED_KEY_PREFIX = "arq:excused:"
DEAD_KEY_PREFIX = "arq:dead:"

Argument = str | bytes | int | float

_SHARED = f"""
local queue = KEYS[1]
local claims, alive, hold = queue .. ':claims', queue .. ':alive', queue .. ':hold'
local dead, reasons = queue .. ':dead', queue .. ':dead:reasons'
local aborts = '{abort_jobs_ss}'
local function job_key(id) return '{job_key_prefix}' .. id end
local function retry_key(id) return '{retry_key_prefix}' .. id end
local function excused_key(id) return '{EXCUSED_KEY_PREFIX}' .. id end
local function lease_key(id) return '{in_progress_key_prefix}' .. id end
local function result_key(id) return '{result_key_prefix}' .. id end
local function dead_key(id) return '{DEAD_KEY_PREFIX}' .. id end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function wake()
  if redis.call('EXISTS', queue .. ':wake') == 0 then redis.call('LPUSH', queue .. ':wake', 1) end
end
local function uncount(id)  -- a job that was not tried yet has no count
  local tries = redis.pcall('DECR', retry_key(id))
  if type(tries) == 'number' and tries < 1 then redis.call('DEL', retry_key(id)) end
end
local function enqueue(id, at)
  redis.call('ZADD', queue, string.format('%.0f', at), id)
  wake()
end
"""


class Script:
    """A step, as Lua code that uses what all steps share.

    It needs all its keys on one server: no Redis Cluster. Redis loads it at its first call.
    """

    def __init__(self, code: str) -> None:
        self.code = _SHARED + code
        self.sha = hashlib.sha1(self.code.encode(), usedforsecurity=False).hexdigest()  # what Redis calls it by

    async def __call__(self, redis: ArqRedis, queue: str, *arguments: Argument) -> Any:
        """What it returns. Raises RedisError."""
        try:
            return await self.loaded(redis, queue, *arguments)
        except NoScriptError:
            return await cast(Any, redis).eval(self.code, 1, queue, *arguments)  # typed as if of text alone

    async def loaded(self, redis: ArqRedis, queue: str, *arguments: Argument) -> Any:
        """As a call, but NoScriptError where this server does not know it."""
        return await cast(Any, redis).evalsha(self.sha, 1, queue, *arguments)
