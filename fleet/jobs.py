"""The contract between those who enqueue jobs and the workers: names, arguments and results. No code of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar
from uuid import uuid4

from arq.connections import ArqRedis
from arq.jobs import Job as QueuedJob
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

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


A = TypeVar("A", bound=Arguments)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Job(Generic[A, R]):
    """A job's name on the wire and the types of its arguments and of its result."""

    name: str
    arguments: type[A]
    result: type[R]

    def read_arguments(self, raw: dict[str, Any]) -> A:
        """Arguments as they came from the wire. Raises pydantic's ValidationError."""
        return self.arguments.model_validate(raw)

    def read_result(self, raw: Any) -> R:
        """The result as arq's `Job.result()` gives it. Raises pydantic's ValidationError."""
        return TypeAdapter(self.result).validate_python(raw)


EXERCISE_POOL = Job("exercise_pool", ExercisePool, ExerciseResult)
SAMPLE_CONNECTIONS = Job("sample_connections", NoArguments, int)  # connections that the server has
PRUNE_SAMPLES = Job("prune_samples", NoArguments, int)  # samples deleted


async def enqueue(queue: ArqRedis, job: Job[A, R], arguments: A, *, job_id: str | None = None) -> QueuedJob:
    """Put a job on the queue. Of several with the same `job_id`, one is run, and all callers get its result.

    `await queued.result()` gives what `job.read_result` takes, or raises `fleet.wire.JobFailed`. Raises TypeError for
    arguments of another job, and redis' RedisError where the queue cannot be reached.
    """
    if not isinstance(arguments, job.arguments):
        raise TypeError(f"job {job.name} takes {job.arguments.__name__}, not {type(arguments).__name__}")
    job_id = job_id or uuid4().hex
    await queue.enqueue_job(job.name, _job_id=job_id, **arguments.model_dump(mode="json"))
    # arq gives no handle for a job that is known already, though its result is there to be waited for.
    return QueuedJob(job_id, queue, _queue_name=queue.default_queue_name, _deserializer=queue.job_deserializer)
