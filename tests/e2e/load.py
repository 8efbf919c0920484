"""Runs inside a container: puts exercise jobs on the queue and follows them to the end, however long that takes.

    python - JOBS QUERIES CONCURRENCY HOLD_MS < load.py

Prints a JSON line when all are queued, one each time more have ended, and in the end one with what became of each.
It asks Redis only, so no connection to the database is its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import redis
from arq.connections import ArqRedis
from arq.constants import result_key_prefix
from arq.jobs import Job as QueuedJob

from config import Settings
from fleet import EXERCISE_POOL, ExercisePool, enqueue, open_queue

POLL_S = 0.25


async def main(number: int, arguments: ExercisePool) -> None:
    """Put `number` jobs on the queue, and say how they end."""
    async with open_queue(Settings.load("poolctl")) as queue:
        jobs = [await enqueue(queue, EXERCISE_POOL, arguments) for _ in range(number)]
        say(queued=number, done=0)
        outcomes: dict[str, Any] = {}
        while len(outcomes) < number:
            try:
                ended = await collect(queue, [job for job in jobs if job.job_id not in outcomes])
            except redis.ConnectionError:
                ended = {}  # Redis may be what a test restarts
            if ended:
                outcomes |= ended
                say(queued=number, done=len(outcomes))
            await asyncio.sleep(POLL_S)
        say(queued=number, done=number, outcomes=list(outcomes.values()))


async def collect(queue: ArqRedis, pending: list[QueuedJob]) -> dict[str, Any]:
    """What became of those that have ended, by their id."""
    async with queue.pipeline(transaction=False) as pipe:
        for job in pending:
            pipe.exists(result_key_prefix + job.job_id)
        exist = await pipe.execute()
    return {job.job_id: await outcome(job) for job, has_result in zip(pending, exist, strict=True) if has_result}


async def outcome(job: QueuedJob) -> dict[str, Any]:
    """How one job ended, in which worker, at which try, with how many of its units failed."""
    info = await job.result_info()
    if info is None or not info.success:
        return {"failure": str(info and info.result), "tries": info and info.job_try}
    result = EXERCISE_POOL.read_result(info.result)
    return {
        "failure": None,
        "tries": info.job_try,
        "process": result.process,
        "units": result.reads + result.transactions,
        "errors": result.errors,
        "first_error": result.first_error,
    }


def say(**values: Any) -> None:
    """One line of JSON."""
    print(json.dumps(values), flush=True)  # noqa: T201 this is what it is for


if __name__ == "__main__":
    jobs, queries, concurrency, hold_ms = map(int, sys.argv[1:])
    asyncio.run(main(jobs, ExercisePool(queries=queries, concurrency=concurrency, hold_ms=hold_ms)))
