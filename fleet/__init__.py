"""All processes together, over Redis: the job queue, the contract of the jobs, the registry.

async with open_process(settings) as process:       # database, queue and registry, opened and closed in order
    await enqueue(process.queue, EXERCISE_POOL, ExercisePool(queries=100))
    await read_fleet(process.queue)
"""

from __future__ import annotations

from fleet.app import App, JobCode
from fleet.backoff import Backoff
from fleet.errors import AppRefused, FleetError, QueueLost, QueueUnreachable, RefusedByRedis, WrongRedisPassword
from fleet.hooks import Hooks
from fleet.jobs import (
    EXERCISE_POOL,
    EXPLAIN_QUERY,
    PRUNE_SAMPLES,
    SAMPLE_CONNECTIONS,
    Arguments,
    ExercisePool,
    ExerciseResult,
    ExplainQuery,
    ExplainResult,
    Job,
    NoArguments,
    abort,
    enqueue,
)
from fleet.outbox import say
from fleet.process import Process, open_process
from fleet.queue import open_queue
from fleet.registry import JobCounts, ProcessEntry, read_fleet
from fleet.scheduled import Scheduled, Times
from fleet.wire import JobFailed

__all__ = [
    "EXERCISE_POOL",
    "EXPLAIN_QUERY",
    "PRUNE_SAMPLES",
    "SAMPLE_CONNECTIONS",
    "App",
    "AppRefused",
    "Arguments",
    "Backoff",
    "ExercisePool",
    "ExerciseResult",
    "ExplainQuery",
    "ExplainResult",
    "FleetError",
    "Hooks",
    "Job",
    "JobCode",
    "JobCounts",
    "JobFailed",
    "NoArguments",
    "Process",
    "ProcessEntry",
    "QueueLost",
    "QueueUnreachable",
    "RefusedByRedis",
    "Scheduled",
    "Times",
    "WrongRedisPassword",
    "abort",
    "enqueue",
    "open_process",
    "open_queue",
    "read_fleet",
    "say",
]
