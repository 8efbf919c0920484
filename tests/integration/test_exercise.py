from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from arq.jobs import Job as QueuedJob

from config import Settings
from db.models import Alert, ConnectionSample
from db.server import connect, read_server
from fleet.jobs import (
    EXERCISE_POOL,
    EXPLAIN_QUERY,
    PRUNE_SAMPLES,
    SAMPLE_CONNECTIONS,
    Arguments,
    ExercisePool,
    ExerciseResult,
    ExplainQuery,
    Job,
    NoArguments,
    enqueue,
)
from fleet.process import Process, open_process
from fleet.wire import JobFailed
from tests.proxy import open_proxy
from tests.waiting import until
from worker.exercise import ExerciseFailed, exercise_pool
from worker.explain import explain
from worker.runner import build_loop, own_handlers
from worker.sampling import prune_samples, sample_connections

A = TypeVar("A", bound=Arguments)
R = TypeVar("R")


async def test_an_exercise_counts_and_measures(environ: dict[str, str]) -> None:
    """Half of the units are reads, half are transactions, and all waits and queries are measured."""
    async with _process(environ) as process:
        before = process.database.pool_snapshot()
        result = await exercise_pool(process, ExercisePool(queries=21, concurrency=4, hold_ms=1))
        after = process.database.pool_snapshot()
    assert (result.process, result.reads, result.transactions) == (process.id, 11, 10)
    assert (result.errors, result.first_error) == (0, None)
    assert result.checkouts == after.acquires - before.acquires == 21
    assert result.queries == after.queries - before.queries >= 11 + 2 * 10
    assert 0 < result.query_p50_ms <= result.query_p95_ms <= result.query_p99_ms < result.elapsed_ms


async def test_an_exercise_leaves_no_row(environ: dict[str, str]) -> None:
    """What an exercise inserts is rolled back."""
    async with _process(environ) as process:
        await exercise_pool(process, ExercisePool(queries=10, hold_ms=0))
        assert (await Alert.all().count(), await ConnectionSample.all().count()) == (0, 0)


async def test_an_exercise_really_inserts(environ: dict[str, str]) -> None:
    """Each transaction of an exercise takes an id for an alert: the only thing that it leaves."""
    async with _process(environ) as process:
        await exercise_pool(process, ExercisePool(queries=10, hold_ms=0))
        assert (await Alert.create(kind="after", value=0.0)).id == 6


async def test_an_exercise_shows_waiting(environ: dict[str, str]) -> None:
    """More tasks than connections wait for as long as the others hold theirs."""
    async with _process(environ, DB_POOL_MIN="1", DB_POOL_MAX="1") as process:
        result = await exercise_pool(process, ExercisePool(queries=8, concurrency=4, hold_ms=30))
        assert process.database.pool_snapshot().peak == 1
    assert result.errors == 0
    assert result.wait_p95_ms > 30
    assert result.elapsed_ms > 4 * 30


async def test_an_exercise_counts_what_failed(environ: dict[str, str]) -> None:
    """A full pool is what an exercise is there to find: it is counted, with the first error's text."""
    narrow = {"DB_POOL_MIN": "1", "DB_POOL_MAX": "1", "DB_POOL_TIMEOUT": "0.05"}
    async with _process(environ, **narrow) as process:
        result = await exercise_pool(process, ExercisePool(queries=4, concurrency=4, hold_ms=300))
        assert process.database.pool_snapshot().in_use == 0
    assert result.errors > 0
    assert result.reads + result.transactions > 0
    assert result.reads + result.transactions + result.errors == 4
    assert result.first_error is not None
    assert result.first_error.startswith("PoolTimeout: ")


async def test_an_exercise_fails_if_all_failed(environ: dict[str, str]) -> None:
    """An exercise of which no unit succeeded is a failed job, with the first unit's error."""
    async with _process(environ) as process:
        async with connect(Settings.load("poolctl", environ)) as connection:
            await connection.execute("DROP TABLE fleet_alert, fleet_connection_sample")
        with pytest.raises(ExerciseFailed, match=r"all 4 units failed, the first one with .*fleet_"):
            await exercise_pool(process, ExercisePool(queries=4, hold_ms=0))


async def test_a_cancelled_exercise_gives_all_back(environ: dict[str, str]) -> None:
    """An exercise that is cancelled in the middle of its transactions leaves neither rows nor connections in use."""
    async with _process(environ) as process:
        running = asyncio.create_task(exercise_pool(process, ExercisePool(queries=8, concurrency=8, hold_ms=60_000)))
        await until(lambda: process.database.pool_snapshot().in_use == 4, what="four transactions are open")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert process.database.pool_snapshot().in_use == 0
        assert await Alert.all().count() == 0


async def test_a_cancelled_exercise_ends_though_the_database_is_silent(environ: dict[str, str]) -> None:
    """The error of a rollback that nobody answers does not hide the cancellation: no further unit is begun."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        _process(environ, DB_PORT=str(proxy.listens_on), DB_COMMAND_TIMEOUT="0.3") as process,
        connect(Settings.load("poolctl", environ)) as observer,
    ):
        before = process.database.pool_snapshot().acquires
        units = ExercisePool(queries=1000, concurrency=2, hold_ms=60_000)
        running = asyncio.create_task(exercise_pool(process, units))

        async def holding() -> bool:
            return (await read_server(observer)).idle_in_transaction == 2

        await until(holding, what="two transactions hold their connections")
        proxy.deaf = True
        proxy.freeze()
        running.cancel()
        done, _ = await asyncio.wait({running}, timeout=10)
        assert done
        assert running.cancelled()
        assert process.database.pool_snapshot().acquires - before == 4  # two reads and two transactions


async def test_a_sample_is_stored(environ: dict[str, str]) -> None:
    """A sample says how many connections the server has and whose they are."""
    async with _process(environ, DB_POOL_MIN="3") as process:
        total = await sample_connections(process, NoArguments())
        (sample,) = await ConnectionSample.all()
    assert sample.total == total == sum(sample.by_application.values())
    assert sample.by_application[process.id] == 3
    assert (sample.max_connections, sample.active >= 1, sample.idle >= 2) == (100, True, True)


async def test_old_samples_are_deleted(environ: dict[str, str]) -> None:
    """Pruning deletes the samples that are older than seven days, and says how many those were."""
    async with _process(environ) as process:
        for days in (0, 6, 8, 30):
            sample = await ConnectionSample.create(
                max_connections=1, total=1, active=1, idle=0, idle_in_transaction=0, by_application={}
            )
            sample.at = datetime.now(UTC) - timedelta(days=days)
            await sample.save(update_fields=["at"])
        assert await prune_samples(process, NoArguments()) == 2
        assert await ConnectionSample.all().count() == 2


async def test_a_worker_runs_the_contract(environ: dict[str, str]) -> None:
    """A worker in the process runs every job of the contract, models included, and gives typed results."""
    async with _process(environ) as process, _working(process):
        assert isinstance(await _result(process, EXERCISE_POOL, ExercisePool(queries=4, hold_ms=0)), ExerciseResult)
        assert await _result(process, SAMPLE_CONNECTIONS, NoArguments()) > 0
        assert await _result(process, PRUNE_SAMPLES, NoArguments()) == 0
        assert await ConnectionSample.all().count() == 1
        explained = await _result(process, EXPLAIN_QUERY, ExplainQuery(sql="SELECT * FROM fleet_alert, pg_class"))
        assert explained == await explain(process, ExplainQuery(sql="SELECT * FROM fleet_alert, pg_class"))
        assert explained.explanation is not None
        assert "fleet_alert" in {node.relation for node in explained.explanation.plan.walk()}


async def test_a_query_that_is_not_explained(environ: dict[str, str]) -> None:
    """What is not one SELECT has the reason as its result, and is no dead job."""
    async with _process(environ) as process, _working(process):
        result = await _result(process, EXPLAIN_QUERY, ExplainQuery(sql="DELETE FROM fleet_alert"))
        assert result.explanation is None
        assert (result.refused or "").startswith("only one SELECT")


@pytest.mark.parametrize("arguments", [{"queries": 0}, {"unknown": 1}])
async def test_a_worker_refuses_bad_arguments(environ: dict[str, str], arguments: dict[str, int]) -> None:
    """Arguments that did not come through the contract fail the job; the worker goes on."""
    async with _process(environ) as process, _working(process):
        queued = await process.queue.enqueue_job(EXERCISE_POOL.name, **arguments)
        assert queued is not None
        with pytest.raises(JobFailed) as caught:
            await queued.result(timeout=10, poll_delay=0.02)
        assert caught.value.type == "JobUnreadable"
        assert next(iter(arguments)) in caught.value.message
        assert await _result(process, PRUNE_SAMPLES, NoArguments()) == 0


@asynccontextmanager
async def _process(environ: dict[str, str], **changes: str) -> AsyncIterator[Process]:
    settings = Settings.load("worker", environ | {"DB_POOL_MIN": "2", "DB_POOL_MAX": "4"} | changes)
    async with open_process(settings) as process:
        yield process


@asynccontextmanager
async def _working(process: Process) -> AsyncIterator[None]:
    """A worker's loop runs while inside."""
    jobs = build_loop(process, own_handlers(process))
    running = asyncio.create_task(jobs.run())
    try:
        yield
    finally:
        jobs.cancel_jobs()
        await running


async def _result(process: Process, job: Job[A, R], arguments: A) -> R:
    queued: QueuedJob = await enqueue(process.queue, job, arguments)
    return job.read_result(await queued.result(timeout=10, poll_delay=0.02))
