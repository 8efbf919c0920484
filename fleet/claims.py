"""Who runs which job: from the queue to a worker, and back or to its end. Each step is one atomic script.

    waits ──claim──▶ runs ──finish──▶ ended: its result is kept, and without success the job is among the dead
      ▲               │ ▲
      └───put back────┘ └─ renewed at each heartbeat: the lease

A claim is two marks. The *lease* (`arq:in-progress:ID`) expires by itself, so long after the last heartbeat; until then
the job's time in the queue is the end of its lease, so that nobody else finds it due. The *claim* (in `QUEUE:claims`)
stays until the job is finished or put back, and says whose it is. So

- a due job without a claim waits, and is anyone's;
- a due job with a claim and no lease is an *orphan*: its worker was killed, or does not reach Redis. Who finds it runs
  it again, its try counted;
- a finish or put-back tells its claim. It comes late, or twice, and the job is another's by now: then only a success
  counts, for that job is done. This is why every step may be repeated when its answer was lost on the way;
- an id may be enqueued anew as soon as its job is over. A late end therefore tells the hash of the payload that was
  run, with the moment of enqueueing in it: it does not end a later job of that id.

A claim whose answer was lost is one that its worker does not know of: it is put back at the next heartbeat.

After an outage of Redis the leases of living workers have run out, too. That must not make orphans of their jobs, so
whoever looks holds back for one and a half heartbeats, in which every living worker renews. That Redis was away is seen
by `QUEUE:alive`, which any worker's heartbeat keeps alive; for that time nobody takes orphans. A Redis that was
restarted, or failed over to a replica, does not know our script, and may have forgotten claims: for that time nobody
takes anything. (Its run id, in `QUEUE:server`, tells it from one that was always empty.)

All times are by Redis' clock.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from arq.connections import ArqRedis
from redis.exceptions import NoScriptError

from fleet.batch import Batch
from fleet.script import Script

LEASE_S = 20.0
HEARTBEATS = 4  # of a lease
HOLD_HEARTBEATS = 1.5
ALIVE_HEARTBEATS = 1.6  # more than one, and so few that a lease outlasts an outage that goes unseen
COUNTED_S = 88_400  # how long arq remembers a job's tries
LARGEST_PAYLOAD = 1_000_000  # bytes
MOST_DEAD = 1_000  # dead jobs that are kept
SHORTEST_WAIT_S = 0.001  # BLPOP takes 0 for ever

Problem = Literal["", "expired", "wrong type", "too large", "not UTF-8"]

_CLAIM = Script(
    """
local wanted, lease, claim, largest = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local held = redis.call('GET', hold) or (redis.call('EXISTS', alive) == 0 and 'orphans')
local taken, passed = {}, 0

local function take(id, orphan_of)
  redis.call('HSET', claims, id, claim)
  redis.call('SET', lease_key(id), claim, 'PX', lease)
  redis.call('ZADD', queue, string.format('%.0f', now + lease), id)
  local try = redis.pcall('INCR', retry_key(id))
  if type(try) == 'table' then  -- something else that is no number
    redis.call('SET', retry_key(id), 1)
    try = 1
  end
  redis.call('EXPIRE', retry_key(id), ARGV[5])
  local excused = redis.pcall('GET', excused_key(id))
  local size = redis.pcall('STRLEN', job_key(id))
  local payload, problem = '', ''
  if type(size) == 'table' then problem = 'wrong type'
  elseif size > largest then problem = 'too large'
  else
    payload = redis.call('GET', job_key(id)) or ''
    if payload == '' then problem = 'expired' end
  end
  local aborted = redis.call('ZSCORE', aborts, id) and 1 or 0  -- it stays until the job's end: it may go back
  taken[#taken + 1] = {id, try, tonumber(excused) or 0, orphan_of or '', problem, payload, aborted}
end

while held ~= 'all' and #taken < wanted do
  local id = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', passed, 1)[1]
  if not id then break end
  local holder, lease_left = redis.call('HGET', claims, id), redis.call('PTTL', lease_key(id))
  if lease_left > 0 then  -- it runs, and another client set its time; or a worker of stock arq has it
    redis.call('ZADD', queue, string.format('%.0f', now + lease_left), id)
  elseif holder and held then
    passed = passed + 1
  else
    take(id, holder)
  end
end

local left = redis.call('ZCOUNT', queue, '-inf', now)
if left > 0 and #taken == wanted then wake() end
local later = redis.call('ZRANGEBYSCORE', queue, string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {taken, left, later[2] and math.max(0, later[2] - now) or -1, math.max(0, redis.call('PTTL', hold))}
"""
)

_MEET = Script(
    """
local before = redis.call('GET', queue .. ':server')
if before == ARGV[1] then return 0 end
redis.call('SET', queue .. ':server', ARGV[1])
if before then redis.call('SET', hold, 'all', 'PX', ARGV[2]) end
return 1
"""
)

_RENEW = Script(
    """
local lease, alive_for, hold_for, owner, answered = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local remembered = redis.call('EXISTS', alive)
if remembered == 0 and redis.call('HLEN', claims) > 0 and redis.call('EXISTS', hold) == 0 then
  redis.call('SET', hold, 'orphans', 'PX', hold_for)
end
redis.call('SET', alive, 1, 'PX', alive_for)

local failed_over = redis.call('GET', hold) == 'all'
local running, others, gone, aborted = {}, {}, {}, {}
for i = 6, #ARGV, 3 do
  local id, claim, leaves = ARGV[i], ARGV[i + 1], ARGV[i + 2] == 'leaves'
  running[id] = true
  local holder = redis.call('HGET', claims, id)
  -- A replica that took over may not have heard of the claim. At other times this is a job that went back meanwhile.
  if not holder and failed_over and not leaves and redis.call('ZSCORE', queue, id) then
    redis.call('HSET', claims, id, claim)
    holder = claim
  end
  if holder == claim then
    redis.call('SET', lease_key(id), claim, 'PX', lease)
    redis.call('ZADD', queue, 'XX', string.format('%.0f', now + lease), id)
    if redis.call('ZSCORE', aborts, id) then aborted[#aborted + 1] = id end
  elseif holder then others[#others + 1] = id
  else gone[#gone + 1] = id
  end
end

local put_back = {}
if answered >= 0 then
  local all = redis.call('HGETALL', claims)
  for i = 1, #all, 2 do
    local id, holder, number = all[i], string.match(all[i + 1], '^(%S+) (%d+)$')
    if holder == owner and tonumber(number) <= answered and not running[id] then
      redis.call('HDEL', claims, id)
      redis.call('DEL', lease_key(id))
      uncount(id)
      enqueue(id, now)
      put_back[#put_back + 1] = id
    end
  end
end
return {remembered, others, gone, aborted, put_back}
"""
)

_FINISH = Script(
    """
local id, claim, result, kept, reason, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local holder = redis.call('HGET', claims, id)
local failed, ran = ARGV[7] == 'failed', ARGV[8]
if holder ~= claim then
  if holder and failed then return 'another runs it' end
  if not redis.call('ZSCORE', queue, id) then
    if kept > 0 and result ~= '' then redis.call('SET', result_key(id), result, 'NX', 'PX', kept) end
    return 'gone'
  end
  local payload = redis.pcall('GET', job_key(id))
  if payload and (type(payload) == 'table' or redis.sha1hex(payload) ~= ran) then return 'a later job' end
  -- The dead that are tried again keep their payload, and not the count of their tries.
  if failed and redis.call('EXISTS', retry_key(id)) == 0 then return 'a later job' end
end
if kept > 0 and result ~= '' then redis.call('SET', result_key(id), result, 'PX', kept) end
if reason ~= '' and redis.call('EXISTS', job_key(id)) == 1 then
  redis.call('RENAME', job_key(id), dead_key(id))
  redis.call('PERSIST', dead_key(id))
  redis.call('ZADD', dead, string.format('%.0f', now), id)
  redis.call('HSET', reasons, id, reason)
  while redis.call('ZCARD', dead) > most do
    local oldest = redis.call('ZPOPMIN', dead)[1]
    redis.call('HDEL', reasons, oldest)
    redis.call('DEL', dead_key(oldest))
  end
end
redis.call('DEL', job_key(id), retry_key(id), excused_key(id), lease_key(id))
redis.call('HDEL', claims, id)
redis.call('ZREM', queue, id)
redis.call('ZREM', aborts, id)
return 'finished'
"""
)

_PUT_BACK = Script(
    """
local id, claim, after, counts = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
if redis.call('HGET', claims, id) ~= claim then return 0 end
redis.call('HDEL', claims, id)
redis.call('DEL', lease_key(id))
if counts ~= 'counted' then uncount(id) end
if counts == 'excused' then
  if type(redis.pcall('INCR', excused_key(id))) == 'table' then redis.call('SET', excused_key(id), 1) end
  redis.call('EXPIRE', excused_key(id), ARGV[5])
end
enqueue(id, now + after)
return 1
"""
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker may run. `mark` is what Redis knows the claim by.

    `tries` counts this one, and not the `excused` ones, which failed by no fault of the job. `orphan_of` is the worker
    that had it before and fell silent. With a `problem` there is no payload.
    """

    id: bytes
    mark: str
    tries: int
    excused: int
    orphan_of: str
    problem: Problem
    payload: bytes
    aborted: bool

    @property
    def name(self) -> str:
        """Its id for messages and for JSON; what is not UTF-8 is escaped."""
        return self.id.decode(errors="backslashreplace")


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the queue gave."""

    claims: tuple[Claim, ...]
    left: int  # due jobs that were not claimed: too many, or held back
    again_s: float | None  # until the next one is due, or holding back ends; None: not known of any


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a heartbeat found out. Ids of jobs."""

    others: tuple[bytes, ...]  # that run here, and were started elsewhere too: their leases had run out
    gone: tuple[bytes, ...]  # that run here, and are no longer in the queue
    aborted: tuple[bytes, ...]  # that run here, and are to be cancelled
    put_back: tuple[bytes, ...]  # that this worker had claimed without knowing
    forgotten: bool  # Redis lost what the last heartbeat wrote: emptied, failed over, or restarted without its data


# What becomes of the count of a job's tries when it goes back to the queue.
Counts = Literal["counted", "excused", "uncounted"]


class Claims:
    """The claims of one worker, `owner`, on the jobs of one queue. Its name must be used by no other process, ever.

    Every method raises RedisError or OSError when Redis cannot be reached, and may simply be called again.
    """

    def __init__(
        self,
        redis: ArqRedis,
        owner: str,
        *,
        lease_s: float = LEASE_S,
        largest_payload: int = LARGEST_PAYLOAD,
        most_dead: int = MOST_DEAD,
    ) -> None:
        self.heartbeat_s = lease_s / HEARTBEATS
        self._redis = redis
        self._queue = redis.default_queue_name
        self._owner = owner
        self._lease_ms = round(lease_s * 1000)
        self._hold_ms = round(HOLD_HEARTBEATS * self.heartbeat_s * 1000)
        self._alive_ms = round(ALIVE_HEARTBEATS * self.heartbeat_s * 1000)
        self._largest_payload = largest_payload
        self._most_dead = most_dead
        self._finish = Batch(redis, self._queue, _FINISH)
        self._number = 0  # of claiming; one is under way where it differs from the next
        self._answered = 0  # the last number whose claims are known, or will never be
        self._doubtful_until = 0.0  # until then there may be claims of ours that we do not know of
        self._renewed_at: float | None = None

    @property
    def doubtful(self) -> bool:
        """Whether there may be claims that this worker does not know of, for an answer was lost."""
        return time.monotonic() < self._doubtful_until

    async def meet(self) -> None:
        """To be called before the first heartbeat: finds out whether this is the Redis that workers used before."""
        run_id = (await self._redis.info("server"))["run_id"]  # another one after each start
        await _MEET(self._redis, self._queue, run_id, self._hold_ms)
        await self._redis.script_load(_CLAIM.code)

    async def claim(self, wanted: int) -> Look:
        """Claim up to so many due jobs."""
        self._number += 1
        mark = f"{self._owner} {self._number}"
        arguments = (wanted, self._lease_ms, mark, self._largest_payload, COUNTED_S)
        try:
            try:
                taken, left, later_ms, held_ms = await _CLAIM.loaded(self._redis, self._queue, *arguments)
            except NoScriptError:
                await self.meet()
                taken, left, later_ms, held_ms = await _CLAIM.loaded(self._redis, self._queue, *arguments)
        except BaseException:
            self._doubtful_until = time.monotonic() + 2 * self._lease_ms / 1000
            raise
        finally:
            self._answered = self._number
        times_ms = [ms for ms in (later_ms, held_ms or -1) if ms >= 0]
        return Look(tuple(self._read(mark, *row) for row in taken), left, min(times_ms) / 1000 if times_ms else None)

    async def wait(self, timeout_s: float) -> None:
        """Wait until somebody puts a job on the queue, for `timeout_s` at most."""
        # redis-py has it take whole seconds; Redis has taken fractions since 6.0.
        await cast(Any, self._redis).blpop([f"{self._queue}:wake"], timeout=max(timeout_s, SHORTEST_WAIT_S))

    async def renew(self, running: Mapping[bytes, str], leaving: Container[bytes] = ()) -> Renewal:
        """Renew the leases of the jobs that run here: id → mark. The heartbeat, also of a worker that is idle.

        Those that are `leaving` are being finished or put back: a claim on them that Redis lost is not restored.
        """
        started = time.monotonic()
        answered = self._answered if self.doubtful else -1
        marks: list[bytes | str] = []
        for job_id, mark in running.items():
            marks += job_id, mark, "leaves" if job_id in leaving else ""
        remembered, others, gone, aborted, put_back = await _RENEW(
            self._redis,
            self._queue,
            *(self._lease_ms, self._alive_ms, self._hold_ms, self._owner, answered),
            *marks,
        )
        expected = self._renewed_at is not None and time.monotonic() - self._renewed_at < self._alive_ms / 1000
        self._renewed_at = started
        return Renewal(
            tuple(others), tuple(gone), tuple(aborted), tuple(put_back), forgotten=expected and not remembered
        )

    async def finish(self, claim: Claim, result: bytes, *, kept_s: float, failed: bool, reason: bytes = b"") -> bool:
        """The job is over; False where it was not this worker's any more.

        `result` is kept for `kept_s` seconds, unless it is empty. With a `reason` (JSON) the job goes to the dead.
        """
        verdict = "failed" if failed else "done"
        ran = hashlib.sha1(claim.payload, usedforsecurity=False).hexdigest()
        arguments = (claim.id, claim.mark, result, round(kept_s * 1000), reason, self._most_dead, verdict, ran)
        answer = await self._finish(*arguments)
        return bool(answer == b"finished")

    async def put_back(self, claim: Claim, *, after_s: float = 0.0, counts: Counts = "uncounted") -> bool:
        """The job goes back to the queue, due in `after_s`; False where it was not this worker's any more."""
        after_ms = round(after_s * 1000)
        return bool(await _PUT_BACK(self._redis, self._queue, claim.id, claim.mark, after_ms, counts, COUNTED_S))

    @staticmethod
    def _read(
        mark: str,
        job_id: bytes,
        tries: int,
        excused: int,
        orphan_of: bytes,
        problem: bytes,
        payload: bytes,
        aborted: int,
    ) -> Claim:
        try:
            job_id.decode()
            found: Problem = problem.decode()  # type: ignore[assignment] # one of the words in the script
        except UnicodeDecodeError:
            found = "not UTF-8"
        owner = orphan_of.decode(errors="replace").partition(" ")[0]
        return Claim(job_id, mark, tries, excused, owner, found, payload, bool(aborted))
