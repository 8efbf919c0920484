"""The contract between those who enqueue jobs and the workers: names, arguments and results. No code of a job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Generic, TypeVar, cast
from uuid import uuid4

from arq.connections import ArqRedis
from arq.jobs import Job as QueuedJob
from arq.jobs import serialize_job
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from db.explain import Explanation
from fleet.backoff import Backoff
from fleet.queue import Queue
from fleet.script import Script
from fleet.wire import dumps

RESULT_KEPT_S = 3600.0
BACKOFF = Backoff()
Milliseconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class Arguments(BaseModel):
    """A job's arguments: checked when made, so that a wrong one fails at the caller and not in a worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NoArguments(Arguments):
    """For a job that takes none."""


class ExercisePool(Arguments):
    """A load on one worker's pool: `queries` units, spread over `concurrency` tasks.

    Every second unit is a transaction that holds its connection for `hold_ms`; the others are single reads.
    """

    queries: int = Field(default=50, ge=1, le=100_000)
    concurrency: int = Field(default=10, ge=1, le=1_000)
    hold_ms: float = Field(default=5.0, ge=0, le=60_000, allow_inf_nan=False)


class ExerciseResult(BaseModel):
    """What `exercise_pool` measured in one worker. `reads + transactions + errors` is the number of units asked for.

    A wait is the time for which a checkout waited for its connection; a query is one statement's round trip.
    """

    # A caller that is older than the worker passes over what it does not know.
    model_config = ConfigDict(frozen=True)

    process: str  # as in the registry: "worker@host:123"
    reads: Count
    transactions: Count
    errors: Count
    first_error: str | None = None
    elapsed_ms: Milliseconds
    checkouts: Count
    wait_p50_ms: Milliseconds
    wait_p95_ms: Milliseconds
    wait_p99_ms: Milliseconds
    queries: Count
    query_p50_ms: Milliseconds
    query_p95_ms: Milliseconds
    query_p99_ms: Milliseconds


class ExplainQuery(Arguments):
    """One SELECT, or WITH … SELECT, whose plan is wanted. It is not run."""

    sql: str


class ExplainResult(BaseModel):
    """What `explain_query` found, or why the text is not explained: one of them is there."""

    model_config = ConfigDict(frozen=True)

    explanation: Explanation | None = None
    refused: str | None = None


A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Job(Generic[A, R]):
    """What is agreed on a job between those who enqueue it and the workers. No code.

    Arguments and result are pydantic models, dataclasses, or (the result) plain values of JSON.
    """

    name: str  # on the wire
    arguments: type[A]
    result: type[R]
    timeout_s: float | None = None  # of one try; None: WORKER_JOB_TIMEOUT
    tries: int | None = None  # at most; None: WORKER_MAX_TRIES. What is not the job's fault counts apart
    retry_on: tuple[type[Exception], ...] = ()  # after these it is tried again; after others it is over
    retry_on_timeout: bool = False
    backoff: Backoff = BACKOFF  # between its tries
    result_kept_s: float = RESULT_KEPT_S  # 0: not at all
    dead_kept: bool = True  # among the dead, where it ends without success; False where nobody would try it again
    # Of jobs with equal keys only one waits or runs at a time; enqueueing another gives that one.
    unique_key: Callable[[A], str] | None = None

    def read_arguments(self, raw: dict[str, Any]) -> A:
        """Arguments as they came from the wire. Raises pydantic's ValidationError."""
        return cast("A", _adapter(cast(Any, self.arguments)).validate_python(raw))

    def write_arguments(self, arguments: A) -> dict[str, Any]:
        """Arguments for the wire, checked once more. Raises TypeError, or pydantic's ValidationError."""
        if not isinstance(arguments, self.arguments):
            raise TypeError(f"job {self.name} takes {self.arguments.__name__}, not {type(arguments).__name__}")
        written = _adapter(cast(Any, self.arguments)).dump_python(arguments, mode="json", warnings=False)
        self.read_arguments(written)  # a dataclass accepts everything when it is made
        return cast("dict[str, Any]", written)

    def read_result(self, raw: Any) -> R:
        """The result as arq's `Job.result()` gives it. Raises pydantic's ValidationError."""
        return cast("R", _adapter(cast(Any, self.result)).validate_python(raw))


EXERCISE_POOL = Job("exercise_pool", ExercisePool, ExerciseResult)
EXPLAIN_QUERY = Job("explain_query", ExplainQuery, ExplainResult, timeout_s=60.0)
SAMPLE_CONNECTIONS = Job("sample_connections", NoArguments, int, timeout_s=25.0, dead_kept=False)  # connections
PRUNE_SAMPLES = Job("prune_samples", NoArguments, int, dead_kept=False)  # samples deleted
OWN_JOBS: tuple[Job[Any, Any], ...] = (EXERCISE_POOL, EXPLAIN_QUERY, SAMPLE_CONNECTIONS, PRUNE_SAMPLES)


_ENQUEUE = Script(
    """
local id, payload, at, after, again = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
if redis.call('EXISTS', job_key(id)) == 1 then return 0 end
if redis.call('EXISTS', result_key(id)) == 1 then
  if not again then return 0 end
  redis.call('DEL', result_key(id))
end
redis.call('SET', job_key(id), payload)
enqueue(id, at or now + after)
return 1
"""
)

_ABORT = Script(
    """
local id = ARGV[1]
if not redis.call('ZSCORE', queue, id) then return 0 end
redis.call('ZADD', aborts, string.format('%.0f', now), id)
if not redis.call('HGET', claims, id) then enqueue(id, now) end
return 1
"""
)


async def enqueue(
    queue: ArqRedis,
    job: Job[A, R],
    arguments: A,
    *,
    job_id: str | None = None,
    at: datetime | None = None,
    after_s: float = 0.0,
) -> QueuedJob:
    """Put a job on the queue: to be run now, `at` a time, or `after_s` seconds from now.

    Of several with the same `job_id`, one is run, and all callers get its result, for as long as that is kept. A job
    with a unique key has its id from that.

    `await queued.result()` gives what `job.read_result` takes, or raises `fleet.wire.JobFailed`. Raises TypeError for
    arguments of another job, pydantic's ValidationError for wrong ones, ValueError for those that are larger than the
    workers take (WORKER_MAX_PAYLOAD) and for an `at` without time zone, and redis' RedisError where the queue cannot be
    reached; then the job may be on the queue or not: a `job_id` of the caller's makes it safe to try again.
    """
    unique = job.unique_key is not None and job_id is None
    if at is not None and at.tzinfo is None:
        raise ValueError(f"at={at} of job {job.name} has no time zone: give one, as in datetime.now(UTC)")
    payload = job_payload(job, arguments)
    if isinstance(queue, Queue) and len(payload) > queue.largest_payload:
        raise ValueError(
            f"job {job.name} with its arguments has {len(payload)} bytes, more than "
            f"WORKER_MAX_PAYLOAD={queue.largest_payload}: enqueue where they are to be found, or raise it everywhere"
        )
    if unique and job.unique_key is not None:
        job_id = f"{job.name}:{job.unique_key(arguments)}"
    job_id = job_id or uuid4().hex
    at_ms = "" if at is None else round(at.timestamp() * 1000)
    name = queue.default_queue_name
    await _ENQUEUE(queue, name, job_id, payload, at_ms, round(after_s * 1000), int(unique))
    # arq gives no handle for a job that is known already, though its result is there to be waited for.
    return QueuedJob(job_id, queue, _queue_name=name, _deserializer=queue.job_deserializer)


async def abort(queue: ArqRedis, job_id: str) -> bool:
    """End a job: one that waits at once, one that runs at its worker's next heartbeat, by cancelling it.

    Its result is then the failure `JobAborted`. False if no such job waits or runs. Raises redis' RedisError.
    """
    return bool(await _ABORT(queue, queue.default_queue_name, job_id))


def job_payload(job: Job[A, R], arguments: A) -> bytes:
    """What arq keeps of a job until it is run. Raises TypeError or pydantic's ValidationError for wrong arguments."""
    written = job.write_arguments(arguments)
    return serialize_job(job.name, (), written, None, round(time.time() * 1000), serializer=dumps)


@cache
def _adapter(described: Any) -> TypeAdapter[Any]:
    """pydantic's reader and writer of a type; making one takes a millisecond."""
    return TypeAdapter(described)
