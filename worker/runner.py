"""The worker's process: the jobs of the contract and of the app, bound to their code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from config import Settings
from config.exit_codes import ExitCode
from fleet.claims import Claims
from fleet.hooks import Hooks
from fleet.jobs import EXERCISE_POOL, EXPLAIN_QUERY, PRUNE_SAMPLES, SAMPLE_CONNECTIONS, Job, NoArguments
from fleet.process import Process, open_process
from fleet.queue import address
from fleet.registry import JobCounts
from fleet.scheduled import Scheduled, Times
from worker.exercise import exercise_pool
from worker.explain import explain
from worker.job_loop import JobLoop
from worker.job_run import Handler
from worker.outage import Outage
from worker.sampling import SAMPLE_SECONDS, prune_samples, sample_connections
from worker.schedule import Schedule
from worker.serving import serve
from worker.verdict import Limits

SCHEDULED = (
    Scheduled(SAMPLE_CONNECTIONS, NoArguments(), Times(second=SAMPLE_SECONDS)),
    Scheduled(PRUNE_SAMPLES, NoArguments(), Times(hour=frozenset({3}), minute=frozenset({17}))),
)

A = TypeVar("A")
R = TypeVar("R")


async def run_worker(settings: Settings, *, burst: bool = False) -> ExitCode:
    """Take jobs from the queue until SIGTERM or SIGINT, or in a burst until no job is due.

    Raises DatabaseError or FleetError.
    """
    jobs: JobLoop | None = None

    def job_counts() -> JobCounts:
        return JobCounts() if jobs is None else jobs.counts

    async with open_process(settings, job_counts=job_counts) as process:
        app = process.app
        handlers = [*own_handlers(process), *(handler(each.job, each.code, process) for each in app.jobs)]
        jobs = build_loop(process, handlers, (*SCHEDULED, *app.scheduled), hooks=app.hooks, burst=burst)
        await serve(jobs, settings.worker.shutdown_grace)
    return ExitCode.OK


def own_handlers(process: Process) -> list[Handler]:
    """The jobs of this project."""
    return [
        handler(EXERCISE_POOL, exercise_pool, process),
        handler(EXPLAIN_QUERY, explain, process),
        handler(SAMPLE_CONNECTIONS, sample_connections, process),
        handler(PRUNE_SAMPLES, prune_samples, process),
    ]


def handler(job: Job[A, R], code: Callable[[Process, A], Awaitable[R]], process: Process) -> Handler:
    """The code of `job`, run in `process`."""

    async def call(arguments: A) -> R:
        return await code(process, arguments)

    return Handler(job, call)


def build_loop(
    process: Process,
    handlers: Sequence[Handler],
    scheduled: Sequence[Scheduled[Any]] = (),
    *,
    hooks: Hooks | None = None,
    burst: bool = False,
) -> JobLoop:
    """A loop on the process's own connections, with the limits of its settings. It handles no signals."""
    settings, redis = process.settings.worker, process.queue
    # Each process in a container has pid 1, and the host's name may be its predecessor's, too.
    owner = f"{process.id}/{uuid4().hex[:12]}"
    return JobLoop(
        redis,
        Claims(redis, owner, lease_s=settings.lease, largest_payload=settings.max_payload),
        {each.job.name: each for each in handlers},
        Schedule(redis, scheduled),
        Outage(address(process.settings.redis)),
        Limits(timeout_s=settings.job_timeout, tries=settings.max_tries, excused=settings.outage_tries),
        max_jobs=settings.max_jobs,
        # It waits in a command of Redis, which must have an answer within the time-out of commands.
        look_s=min(settings.poll_delay, process.settings.redis.socket_timeout / 2),
        hooks=hooks,
        burst=burst,
    )
