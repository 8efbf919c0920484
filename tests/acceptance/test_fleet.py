"""Many real workers on one small server: every job once, whatever happens to a worker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arq.constants import in_progress_key_prefix
from arq.jobs import Job as QueuedJob

from config import Settings
from db.server import connect, read_server
from fleet import EXERCISE_POOL, ExercisePool, ExerciseResult, enqueue, open_queue, read_fleet
from tests.local_fleet import Project, open_project, wait_until_gone
from tests.processes import Spawner
from tests.secrecy import Secrecy
from tests.waiting import until


@pytest.fixture
def project(tmp_path: Path, spawn: Spawner, secrecy: Secrecy) -> Iterator[Project]:
    with open_project(tmp_path, spawn, secrecy) as opened:
        yield opened


async def finished(jobs: list[QueuedJob], timeout_s: float) -> dict[str, Any]:
    """What arq keeps of each job, by its id, once all of them have ended."""
    kept: dict[str, Any] = {}

    async def all_ended() -> bool:
        for job in jobs:
            if job.job_id not in kept:
                outcome = await job.result_info()
                if outcome is None:
                    return False
                kept[job.job_id] = outcome
        return True

    await until(all_ended, timeout_s=timeout_s, what=f"the end of {len(jobs)} jobs", poll_s=0.2)
    return kept


@pytest.mark.slow
async def test_twenty_workers_share_a_small_server(project: Project) -> None:
    """20 workers × DB_POOL_MAX=2 boot under max_connections=60; of 1,000 jobs each is in the results, run once."""
    fleet = project.up("--workers", "20", "--max-connections", "60", environ={"DB_POOL_MAX": "2"})
    fleet.wait_until_up()
    workers = dict(fleet.started())
    family = fleet.family()
    settings = Settings.load("poolctl", fleet.environ())
    most = 0
    async with connect(settings) as connection, open_queue(settings) as queue:
        server = await read_server(connection)
        assert server.max_connections == 60
        wanted = [f"job-{number}" for number in range(1000)]
        arguments = ExercisePool(queries=4, concurrency=2, hold_ms=1)
        jobs = [await enqueue(queue, EXERCISE_POOL, arguments, job_id=job_id) for job_id in wanted]

        async def watch_connections() -> None:
            nonlocal most
            while True:
                most = max(most, (await read_server(connection)).total)
                await asyncio.sleep(0.1)  # between two samples

        watching = asyncio.create_task(watch_connections())
        outcomes = await finished(jobs, timeout_s=120)
        watching.cancel()
        assert not {job_id.encode() for job_id in wanted} & set(await queue.zrange(settings.worker.queue, 0, -1))

    assert sorted(outcomes) == sorted(wanted)
    assert {outcome.job_try for outcome in outcomes.values()} == {1}
    results = [EXERCISE_POOL.read_result(outcome.result) for outcome in outcomes.values() if outcome.success]
    assert len(results) == 1000
    assert {(result.reads, result.transactions, result.errors) for result in results} == {(2, 2, 0)}
    by_worker = Counter(result.process.rpartition(":")[2] for result in results)
    assert set(by_worker) <= {str(pid) for pid in workers.values()}
    assert len(by_worker) > 10, by_worker
    assert 20 < most <= 20 * 2 + 1  # and the one that counts

    fleet.process.send(signal.SIGINT)
    assert fleet.process.wait(60) == 0
    assert "ended by itself" not in fleet.process.output()
    wait_until_gone(family)


@pytest.mark.slow
async def test_no_job_is_lost_with_its_worker(project: Project) -> None:
    """SIGTERM and SIGKILL of workers mid-job: all jobs finish, both are replaced, connections return to the floor."""
    fleet = project.up(
        *("--workers", "3"),
        environ={"DB_POOL_MIN": "1", "DB_POOL_MAX": "2", "DB_MAX_IDLE_TIME": "1", "WORKER_JOB_TIMEOUT": "5"},
    )
    fleet.wait_until_up()
    workers = dict(fleet.started())
    settings = Settings.load("poolctl", fleet.environ())
    async with connect(settings) as connection, open_queue(settings) as queue:
        # Two seconds each: two transactions of one second, one after the other.
        arguments = ExercisePool(queries=4, concurrency=1, hold_ms=1000)
        jobs = [await enqueue(queue, EXERCISE_POOL, arguments) for _ in range(18)]

        started = [in_progress_key_prefix + job.job_id for job in jobs]  # the scheduled jobs do not count

        async def all_busy() -> bool:
            return await queue.exists(*started) == 3 * 2

        await until(all_busy, what="two jobs in each worker")
        os.kill(workers["worker-1"], signal.SIGKILL)
        os.kill(workers["worker-2"], signal.SIGTERM)

        outcomes = await finished(jobs, timeout_s=90)
        results = [EXERCISE_POOL.read_result(outcome.result) for outcome in outcomes.values() if outcome.success]
        assert len(results) == len(jobs), outcomes
        tries = Counter(outcome.job_try for outcome in outcomes.values())
        assert tries == {1: 16, 2: 2}, "the two jobs of the killed worker, and no others, are started again"
        assert all(ran_to_its_end(result) for result in results)
        assert jobs_of(results, workers["worker-2"]) == 2, "the worker that was asked to stop finishes its jobs"
        assert jobs_of(results, workers["worker-1"]) == 0

        async def at_the_floor() -> bool:
            applications = (await read_server(connection)).by_application
            pools = {name: count for name, count in applications.items() if name.startswith("worker@")}
            return list(pools.values()) == [1, 1, 1]

        await until(at_the_floor, timeout_s=20, what="one connection for each worker")
        after = dict(fleet.started())
        assert after["worker-1"] != workers["worker-1"]
        assert after["worker-2"] != workers["worker-2"]
        assert after["worker-3"] == workers["worker-3"]
        await until(lambda: idle(queue, set(after.values())), timeout_s=10, what="three workers without jobs")

    family = fleet.family()
    fleet.process.send(signal.SIGTERM)
    assert fleet.process.wait(40) == 0
    wait_until_gone(family)


def ran_to_its_end(result: ExerciseResult) -> bool:
    return (result.reads, result.transactions, result.errors) == (2, 2, 0)


def jobs_of(results: list[ExerciseResult], pid: int) -> int:
    return sum(result.process.endswith(f":{pid}") for result in results)


async def idle(queue: Any, pids: set[int]) -> bool:
    entries = [entry for entry in await read_fleet(queue) if entry.pid in pids]
    return len(entries) == len(pids) and all(entry.jobs.running == entry.pool.in_use == 0 for entry in entries)
