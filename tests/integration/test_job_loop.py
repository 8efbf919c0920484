from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from arq.worker import Retry

from config import Settings
from fleet.jobs import Arguments, Job, enqueue
from fleet.process import Process, open_process
from tests.waiting import until
from worker.job_loop import JobLoop
from worker.job_run import Handler
from worker.runner import build_loop


class Number(Arguments):
    """Which job it is."""

    number: int


async def test_a_job_that_is_tried_again_at_once(environ: dict[str, str]) -> None:
    """A job that goes back to the queue and is claimed again in the same moment, by the same worker, is run again."""
    tries, jobs = 20, 50
    runs: Counter[int] = Counter()

    async def code(arguments: Number) -> int:
        runs[arguments.number] += 1
        if runs[arguments.number] < tries:
            raise Retry(defer=0)
        return 0

    again = Job("again", Number, int, tries=tries)
    async with _process(environ, WORKER_MAX_JOBS="50") as process, _working(process, again, code) as loop:
        for number in range(jobs):
            await enqueue(process.queue, again, Number(number=number))
        await until(lambda: loop.counts.complete == jobs, timeout_s=15, what="the last try of each")
        assert set(runs.values()) == {tries}
        assert loop.counts.retried == jobs * (tries - 1)


async def test_slots(environ: dict[str, str]) -> None:
    """Never more jobs than WORKER_MAX_JOBS run at once, and as many if there are so many."""
    now = most = 0

    async def code(arguments: Number) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return 0

    job = Job("counted", Number, int)
    async with _process(environ, WORKER_MAX_JOBS="3") as process, _working(process, job, code) as loop:
        for number in range(60):
            await enqueue(process.queue, job, Number(number=number))
        await until(lambda: loop.counts.complete == 60, what="all jobs")
        assert (most, loop.counts.running) == (3, 0)


@asynccontextmanager
async def _process(environ: dict[str, str], **changes: str) -> AsyncIterator[Process]:
    settings = Settings.load("worker", environ | {"DB_POOL_MIN": "1", "DB_POOL_MAX": "3"} | changes)
    async with open_process(settings) as process:
        yield process


@asynccontextmanager
async def _working(
    process: Process, job: Job[Number, int], code: Callable[[Number], Awaitable[int]]
) -> AsyncIterator[JobLoop]:
    """A loop that knows one job."""
    loop = build_loop(process, [Handler(job, code)])
    running = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        loop.cancel_jobs()
        await running
