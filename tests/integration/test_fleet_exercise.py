from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
from arq.connections import ArqRedis

from config import Settings
from fleet.errors import ExerciseStopped
from fleet.exercise import Exercise
from fleet.jobs import ExercisePool
from fleet.queue import open_queue
from fleet.registry import Identity, Registry
from pool import PoolSnapshot
from tests.processes import Spawner
from tests.waiting import until

SMALL = ExercisePool(queries=4, concurrency=2, hold_ms=0)


@pytest.fixture
async def queue(environ: dict[str, str]) -> AsyncIterator[ArqRedis]:
    """The queue, empty."""
    async with open_queue(Settings.load("bot", environ)) as opened:
        yield opened


def idle_worker(queue: ArqRedis) -> AbstractAsyncContextManager[None]:
    """In the registry while inside: a worker that takes no job."""
    pool = PoolSnapshot("worker", 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0.0)
    return Registry(queue, Identity("worker", "nowhere", 1), lambda: pool).announced()


async def follow(exercise: Exercise, deadline_s: float = 60.0, patience_s: float = 10.0) -> list[int]:
    return [done async for done in exercise.follow(deadline_s=deadline_s, patience_s=patience_s)]


async def test_every_job_is_counted_once(queue: ArqRedis, spawn: Spawner, environ: dict[str, str]) -> None:
    """Done counts only rise, end at the number of jobs, and every job has one result."""
    for worker in [spawn("worker", environ=environ) for _ in range(2)]:
        worker.wait_for(" is up")
    exercise = Exercise(queue, 40, SMALL)
    counts = await follow(exercise)
    assert counts == sorted(set(counts))
    assert counts[-1] == 40
    assert len(exercise.results) == 40
    assert sum(result.reads + result.transactions for result in exercise.results) == 160
    assert not exercise.failures


async def test_failed_jobs_are_counted(queue: ArqRedis, spawn: Spawner, environ: dict[str, str]) -> None:
    """A job that fails for good is done, too, and its error is kept as text."""
    spawn("worker", environ=environ | {"WORKER_JOB_TIMEOUT": "0.2"}).wait_for(" is up")
    exercise = Exercise(queue, 2, ExercisePool(queries=2, concurrency=1, hold_ms=5_000))
    assert (await follow(exercise))[-1] == 2
    assert [failure.split(":")[0] for failure in exercise.failures] == ["JobTimeout", "JobTimeout"]
    assert not exercise.results


async def test_no_worker_is_told_before_anything_is_enqueued(queue: ArqRedis) -> None:
    """Without a worker nothing is put on the queue."""
    with pytest.raises(ExerciseStopped, match="no worker is alive"):
        await follow(Exercise(queue, 3, SMALL))
    assert await queue.queued_jobs() == []


async def test_deadline(queue: ArqRedis) -> None:
    """After the deadline, what is missing is told, and stays on the queue."""
    async with idle_worker(queue):
        with pytest.raises(ExerciseStopped) as stopped:
            await follow(Exercise(queue, 3, SMALL), deadline_s=0.3)
    assert str(stopped.value) == "gave up after 0.3 s: 0 of 3 done, the other 3 stay on the queue"
    assert len(await queue.queued_jobs()) == 3


async def test_deadline_while_jobs_are_done(queue: ArqRedis, spawn: Spawner, environ: dict[str, str]) -> None:
    """The deadline holds also while results keep coming, and those that came are kept."""
    spawn("worker", environ=environ | {"WORKER_MAX_JOBS": "1"}).wait_for(" is up")
    exercise = Exercise(queue, 100, ExercisePool(queries=2, concurrency=1, hold_ms=100))
    with pytest.raises(ExerciseStopped, match=r"gave up after 1 s: [1-9]\d? of 100 done"):
        await follow(exercise, deadline_s=1.0)
    assert exercise.results


async def test_last_worker_leaves(queue: ArqRedis) -> None:
    """When the last worker is gone and none comes, that is told before the deadline."""

    async def all_queued() -> bool:
        return len(await queue.queued_jobs()) == 2

    async with idle_worker(queue):
        following = asyncio.create_task(follow(Exercise(queue, 2, SMALL), patience_s=0.3))
        await until(all_queued)
    with pytest.raises(ExerciseStopped, match="no worker is alive any more: 0 of 2 done, the other 2 stay"):
        await following
