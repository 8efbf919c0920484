"""A number of exercise jobs: put on the queue, followed until they are done, summed up."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from statistics import median

from arq.connections import ArqRedis
from arq.constants import result_key_prefix
from arq.jobs import Job as QueuedJob

from fleet.errors import ExerciseStopped
from fleet.jobs import EXERCISE_POOL, ExercisePool, ExerciseResult, enqueue
from fleet.registry import read_fleet

POLL_S = 0.2
NO_WORKER_PATIENCE_S = 10.0  # a worker that is restarted is back by then


class Exercise:
    """Jobs of one exercise. `results` and `failures` (one text a failed job) grow while it is followed."""

    def __init__(self, queue: ArqRedis, jobs: int, arguments: ExercisePool) -> None:
        self.jobs = jobs
        self.results: list[ExerciseResult] = []
        self.failures: list[str] = []
        self._queue = queue
        self._arguments = arguments
        self._pending: list[QueuedJob] = []

    @property
    def done(self) -> int:
        """Jobs that ended, well or not."""
        return len(self.results) + len(self.failures)

    async def follow(self, *, deadline_s: float, patience_s: float = NO_WORKER_PATIENCE_S) -> AsyncGenerator[int, None]:
        """Enqueue all jobs; then `done` each time it has changed, until it is `jobs`.

        Raises ExerciseStopped after `deadline_s` seconds, and when no worker is alive: at the start, or for
        `patience_s` seconds later on. Jobs that are not done stay on the queue.
        """
        if not await self._workers():
            raise ExerciseStopped("no worker is alive, so nobody would run the jobs: start one, `python -m worker`")
        end = time.monotonic() + deadline_s
        self._pending = [await enqueue(self._queue, EXERCISE_POOL, self._arguments) for _ in range(self.jobs)]
        worker_seen = time.monotonic()
        while True:
            if await self._collect():
                yield self.done
            if not self._pending:
                return
            now = time.monotonic()
            if await self._workers():
                worker_seen = now
            if now - worker_seen > patience_s:
                raise self._stopped("no worker is alive any more")
            if now > end:
                raise self._stopped(f"gave up after {deadline_s:g} s")
            await asyncio.sleep(POLL_S)

    async def _workers(self) -> int:
        return sum(entry.role == "worker" for entry in await read_fleet(self._queue))

    async def _collect(self) -> bool:
        """Takes the results that have come; whether there was one."""
        # One round trip however many jobs there are; arq's own way would be one for each.
        async with self._queue.pipeline(transaction=False) as pipe:
            for job in self._pending:
                pipe.exists(result_key_prefix + job.job_id)
            ended = await pipe.execute()
        jobs, self._pending = self._pending, []
        for job, has_ended in zip(jobs, ended, strict=True):
            if not has_ended:
                self._pending.append(job)
            elif (outcome := await job.result_info()) is None:
                self.failures.append("its result expired before it was read")
            elif outcome.success:
                self.results.append(EXERCISE_POOL.read_result(outcome.result))
            else:
                self.failures.append(str(outcome.result))
        return any(ended)

    def _stopped(self, reason: str) -> ExerciseStopped:
        return ExerciseStopped(
            f"{reason}: {self.done} of {self.jobs} done, the other {len(self._pending)} stay on the queue"
        )


def summary(results: Sequence[ExerciseResult], failures: Sequence[str]) -> str:
    """A few lines: counts summed over the jobs; p50 as the median of the jobs, p95 and p99 of the worst job."""
    lines = []
    if results:
        by_process = Counter(result.process for result in results)
        lines += [
            "jobs by worker: " + ", ".join(f"{process} {count}" for process, count in sorted(by_process.items())),
            ", ".join(
                f"{sum(getattr(result, counted) for result in results)} {counted}"
                for counted in ("queries", "reads", "transactions", "errors")
            ),
            _quantiles("wait for a connection", [(r.wait_p50_ms, r.wait_p95_ms, r.wait_p99_ms) for r in results]),
            _quantiles("query", [(r.query_p50_ms, r.query_p95_ms, r.query_p99_ms) for r in results]),
        ]
        errors = [result.first_error for result in results if result.first_error is not None]
        lines += [f"first error: {errors[0]}"] if errors else []
    if failures:
        lines.append(f"failed jobs: {len(failures)}, the first: {failures[0]}")
    return "\n".join(lines)


def _quantiles(name: str, each_ms: Sequence[tuple[float, float, float]]) -> str:
    p50, p95, p99 = zip(*each_ms, strict=True)
    return f"{name}: p50 {median(p50):.1f} ms (median job), p95 {max(p95):.1f} ms, p99 {max(p99):.1f} ms (worst job)"
