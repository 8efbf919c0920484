"""`python -m benchmarks.job_worker CONTENDER HOST PORT`: a worker of `benchmarks.jobs`; password: REDIS_PASSWORD."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from arq.connections import RedisSettings
from arq.worker import Worker, func

from benchmarks.jobs import MAX_JOBS, OWN, PAUSE, Pause
from config import Settings
from fleet.claims import Claims
from fleet.queue import open_queue
from worker.job_loop import JobLoop
from worker.job_run import Handler
from worker.outage import Outage
from worker.schedule import Schedule
from worker.verdict import Limits


async def pause(ctx: dict[str, Any], ms: float = 0.0) -> None:
    """What a job of the benchmark does, in arq."""
    if ms:
        await asyncio.sleep(ms / 1000)


def run_stock(host: str, port: int) -> None:
    """arq's own worker as it is out of the box, but for the server's address."""
    redis = RedisSettings(host, port, password=os.environ["REDIS_PASSWORD"])
    asyncio.set_event_loop(asyncio.new_event_loop())  # it asks for one that is there
    Worker([func(pause, name=PAUSE.name)], redis_settings=redis).run()


async def run_own() -> None:
    """This project's, without a database."""
    settings = Settings.load("worker")

    async def code(arguments: Pause) -> None:
        await pause({}, arguments.ms)

    async with open_queue(settings) as redis:
        loop = JobLoop(
            redis,
            Claims(redis, f"worker@benchmark:{os.getpid()}/0"),
            {PAUSE.name: Handler(PAUSE, code)},
            Schedule(redis, []),
            Outage("the benchmark's"),
            Limits(timeout_s=300, tries=5, excused=20),
            max_jobs=MAX_JOBS,
            look_s=settings.worker.poll_delay,
        )
        await loop.run()


if __name__ == "__main__":
    if sys.argv[1] == OWN:
        asyncio.run(run_own())
    else:
        run_stock(sys.argv[2], int(sys.argv[3]))
