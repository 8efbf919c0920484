"""The worker's process: the jobs of the contract, bound to their code and run by arq."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC
from typing import Any, TypeVar

from arq.cron import cron
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func

from config import Settings
from config.exit_codes import ExitCode
from fleet.jobs import EXERCISE_POOL, PRUNE_SAMPLES, SAMPLE_CONNECTIONS, Arguments, Job
from fleet.process import Process, open_process
from fleet.queue import address
from fleet.registry import JobCounts
from fleet.wire import dumps, loads
from worker.exercise import exercise_pool
from worker.sampling import SAMPLE_SECONDS, SAMPLE_TIMEOUT_S, prune_samples, sample_connections
from worker.serving import serve

# So long a scheduled job's result blocks a second run by a worker whose clock or event loop is late.
CRON_RESULT_KEPT_S = 300.0
HEALTH_KEY_INTERVAL_S = 30.0  # of arq's own health key; `--health` asks the registry

A = TypeVar("A", bound=Arguments)
R = TypeVar("R")


async def run_worker(settings: Settings) -> ExitCode:
    """Take jobs from the queue until SIGTERM or SIGINT. Raises DatabaseError or FleetError."""
    worker: Worker | None = None

    def job_counts() -> JobCounts:
        return JobCounts() if worker is None else _job_counts(worker)

    async with open_process(settings, job_counts=job_counts) as process:
        worker = build_worker(process)
        await serve(worker, settings.worker.shutdown_grace, address(settings.redis))
    return ExitCode.OK


def build_worker(process: Process) -> Worker:
    """An arq worker on the process's own connections; it handles no signals and is not to be closed by arq.

    No function has a timeout above WORKER_JOB_TIMEOUT: the greatest one + 10 s is how long the job of a killed worker
    waits for the next one.
    """
    settings = process.settings.worker
    return Worker(
        functions=[func(_bind(EXERCISE_POOL, exercise_pool, process), name=EXERCISE_POOL.name)],
        cron_jobs=[
            cron(
                _bind(SAMPLE_CONNECTIONS, sample_connections, process),
                name=SAMPLE_CONNECTIONS.name,
                second=set(SAMPLE_SECONDS),
                timeout=min(SAMPLE_TIMEOUT_S, settings.job_timeout),
                keep_result=CRON_RESULT_KEPT_S,
                max_tries=settings.max_tries,
            ),
            cron(
                _bind(PRUNE_SAMPLES, prune_samples, process),
                name=PRUNE_SAMPLES.name,
                hour=3,
                minute=17,
                keep_result=CRON_RESULT_KEPT_S,
                max_tries=settings.max_tries,
            ),
        ],
        timezone=UTC,  # the same times for workers of all time zones
        redis_pool=process.queue,
        queue_name=settings.queue,
        job_serializer=dumps,
        job_deserializer=loads,
        handle_signals=False,
        max_jobs=settings.max_jobs,
        job_timeout=settings.job_timeout,
        max_tries=settings.max_tries,
        poll_delay=settings.poll_delay,
        health_check_key=f"{settings.queue}:health-check:{process.id}",
        health_check_interval=HEALTH_KEY_INTERVAL_S,
    )


def _bind(job: Job[A, R], code: Callable[[Process, A], Awaitable[R]], process: Process) -> WorkerCoroutine:
    """What arq calls for `job`: checks the arguments from the wire, and runs `code` in this process."""

    async def run(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> R:
        return await code(process, job.read_arguments(kwargs))

    return run


def _job_counts(worker: Worker) -> JobCounts:
    return JobCounts(
        running=sum(not task.done() for task in worker.tasks.values()),
        complete=worker.jobs_complete,
        failed=worker.jobs_failed,
        retried=worker.jobs_retried,
    )
