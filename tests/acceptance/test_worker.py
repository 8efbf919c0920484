from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as QueuedJob
from arq.jobs import JobStatus

from config import Settings
from db.server import connect, read_server
from fleet.dead_letters import read_dead
from fleet.jobs import EXERCISE_POOL, ExercisePool, ExerciseResult, enqueue
from fleet.queue import open_queue
from fleet.registry import Identity, ProcessEntry, read_fleet
from fleet.wire import JobFailed
from local import LocalServers
from tests.processes import Spawned, Spawner
from tests.proxy import open_proxy
from tests.waiting import until

UP = " is up"
STARTED = ":exercise_pool starts"
QUICK = ExercisePool(queries=4, concurrency=2, hold_ms=1)


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"DB_POOL_MIN": "1", "DB_POOL_MAX": "2", "LOG_FORMAT": "text"}


@pytest.fixture
async def queue(environ: dict[str, str]) -> AsyncIterator[ArqRedis]:
    async with open_queue(Settings.load("poolctl", environ)) as opened:
        yield opened


async def test_a_worker_works_and_leaves(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """A worker announces itself, runs jobs and at SIGTERM exits 0, leaving no connection, entry or key of its own."""
    worker = await _up(spawn, environ | {"LOG_LEVEL": "DEBUG", "REDIS_MAX_CONNECTIONS": "1"})
    jobs = [await enqueue(queue, EXERCISE_POOL, QUICK) for _ in range(20)]
    results = [await _result(job) for job in jobs]
    assert {result.process for result in results} == {_id(worker)}
    assert [(entry.role, entry.pid) for entry in await read_fleet(queue)] == [("worker", worker.pid)]
    assert await _connections(environ, worker) in (1, 2)
    assert await _stopped(worker, within_s=10) == 0
    await _is_gone(environ, queue, worker)
    assert await queue.keys("*health-check*") == []


async def test_what_lies_in_redis_is_json(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """Jobs, results, failures and the registry are JSON on the wire, with no pickle anywhere."""
    waiting = await enqueue(queue, EXERCISE_POOL, QUICK)
    stored = [await queue.get(f"arq:job:{waiting.job_id}")]
    broken = await queue.enqueue_job(EXERCISE_POOL.name, queries="many")
    assert broken is not None
    await _up(spawn, environ)
    await _result(waiting)
    with pytest.raises(JobFailed):
        await _result(broken)
    for pattern in ("arq:result:*", "fleet:process:*"):
        keys = await queue.keys(pattern)
        assert keys
        stored += [await queue.get(key) for key in keys]
    assert all(isinstance(json.loads(raw), dict) for raw in stored)


async def test_sigterm_lets_a_job_finish(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """At SIGTERM a running job goes on within the grace, database included; a waiting one is left on the queue."""
    worker = await _up(spawn, environ | {"WORKER_MAX_JOBS": "1", "WORKER_SHUTDOWN_GRACE": "20"})
    running = await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=40, concurrency=1, hold_ms=50))
    await _printed(worker, STARTED)
    waiting = await enqueue(queue, EXERCISE_POOL, QUICK)
    assert await _stopped(worker, within_s=15) == 0
    result = await _result(running)
    assert (result.reads, result.transactions, result.errors) == (20, 20, 0)
    assert await waiting.status() is JobStatus.queued
    await _is_gone(environ, queue, worker)


async def test_a_job_longer_than_the_grace_moves(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """A job that outlasts the grace goes back to the queue, and another worker finishes it at once."""
    first = await _up(spawn, environ | {"WORKER_SHUTDOWN_GRACE": "0.3"})
    job = await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=2, concurrency=1, hold_ms=3_000))
    await _printed(first, STARTED)
    assert await _stopped(first, within_s=10) == 0
    assert await job.status() is JobStatus.queued
    second = await _up(spawn, environ)
    assert (await _result(job)).process == _id(second)
    assert await _rows(environ) == 0


async def test_a_second_signal_ends_it_at_once(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """A second SIGTERM does not wait for the grace: the job goes back, everything is closed, exit 0."""
    worker = await _up(spawn, environ | {"WORKER_SHUTDOWN_GRACE": "60"})
    job = await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=2, concurrency=1, hold_ms=50_000))
    await _printed(worker, STARTED)
    worker.send(signal.SIGTERM)
    await _printed(worker, "no new jobs, 1 jobs may finish")
    assert await _stopped(worker, within_s=10) == 0
    assert await job.status() is JobStatus.queued
    await _is_gone(environ, queue, worker)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]], ids=["one", "two"])
@pytest.mark.slow
async def test_jobs_under_way_at_any_moment(
    environ: dict[str, str], queue: ArqRedis, spawn: Spawner, signals: list[signal.Signals]
) -> None:
    """Workers that are ended while they claim jobs as fast as they can leave no job claimed by nobody."""
    environ |= {"WORKER_MAX_JOBS": "10", "WORKER_POLL_DELAY": "0.001"}
    jobs = [await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=1, hold_ms=0)) for _ in range(500)]
    for _ in range(5):
        worker = await _up(spawn, environ)
        await _printed(worker, STARTED)
        for signum in signals:
            worker.send(signum)
        assert await asyncio.to_thread(worker.wait, 10) == 0
        assert await queue.keys("arq:in-progress:*") == []
    await _up(spawn, environ)
    for job in jobs:
        await _result(job)


@pytest.mark.slow
async def test_a_killed_workers_job_is_run_again(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """Within 30 s of kill -9 another worker has started the job again, its try counted, whatever its time-out is."""
    first, second = await _up(spawn, environ), await _up(spawn, environ | {"WORKER_MAX_JOBS": "1"})
    job = await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=2, concurrency=1, hold_ms=1_000))
    owner = await until(lambda: _owner(queue, job, [first, second]), what="one of them runs it")
    owner.send(signal.SIGKILL)
    killed = time.monotonic()
    assert await asyncio.to_thread(owner.wait) == -signal.SIGKILL
    other = second if owner is first else first
    await asyncio.to_thread(other.wait_for, STARTED, 30)
    assert time.monotonic() - killed < 30
    assert (await _result(job)).process == _id(other)
    outcome = await job.result_info()
    assert outcome is not None
    assert outcome.job_try == 2
    assert f"is run again: {_id(owner)}" in other.output()


@pytest.mark.slow
async def test_health_of_a_killed_worker(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """--health is 0 for a live worker, and 1 as soon as it is killed, with the reason on one line."""
    worker = await _up(spawn, environ)
    other = await _up(spawn, environ)
    assert await _health(spawn, environ) == (0, "")
    assert await _health(spawn, environ, "--pid", str(worker.pid)) == (0, "")
    worker.send(signal.SIGKILL)
    await asyncio.to_thread(worker.wait)
    for arguments in ((), ("--pid", str(worker.pid))):
        code, line = await _health(spawn, environ, *arguments)
        assert code == 1
        assert re.fullmatch(rf"worker@\S+:{worker.pid} is dead: .*\n", line)
    assert await _health(spawn, environ, "--pid", str(other.pid)) == (0, "")


@pytest.mark.slow
async def test_health_of_a_stuck_worker(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """--health is 1 within 20 s of a worker's being stopped, says that no heartbeat came, and is 0 when it goes on."""
    worker = await _up(spawn, environ)
    worker.send(signal.SIGSTOP)

    async def silent() -> bool:
        return await read_fleet(queue) == []

    await until(silent, timeout_s=20, what="the stopped worker is not live")
    code, line = await _health(spawn, environ)
    assert code == 1
    assert re.fullmatch(rf"worker@\S+:{worker.pid} is stuck: no heartbeat for \d+ s, .*\n", line)
    worker.send(signal.SIGCONT)

    async def back() -> list[ProcessEntry]:
        return await read_fleet(queue)

    await until(back, what="the worker is live again")
    assert await _health(spawn, environ) == (0, "")


async def test_health_without_a_worker(environ: dict[str, str], spawn: Spawner) -> None:
    """--health is 1 where no worker is, 2 with bad settings or a bad command line, 3 where Redis is unreachable."""
    code, line = await _health(spawn, environ)
    assert (code, line) == (1, f"no worker of {socket.gethostname()} is in the registry\n")
    code, line = await _health(spawn, environ | {"DB_POOL_MAX": "none", "REDIS_PORT": "0"})
    assert (code, len(line.splitlines())) == (2, 2)
    done = await asyncio.to_thread(spawn.run, "worker", "--pid", "1", environ=environ)
    assert (done.returncode, "--pid goes with --health" in done.stderr) == (2, True)
    async with open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as redis:
        await redis.stop()
        unreachable = {"REDIS_PORT": str(redis.listens_on), "REDIS_CONNECT_TIMEOUT": "0.3"}
        code, line = await _health(spawn, environ | unreachable)
    assert (code, len(line.splitlines())) == (3, 1)


async def test_bad_settings(environ: dict[str, str], spawn: Spawner) -> None:
    """All faults of the settings are told at once, a line each, without a traceback; exit 2."""
    environ |= {"DB_POOL_MIN": "12", "WORKER_MAX_JOBS": "-1", "REDIS_PORT": "tcp://10.0.0.1:6379"}
    done = await asyncio.to_thread(spawn.run, "worker", environ=environ)
    assert done.returncode == 2
    assert sorted(line.split("=")[0] for line in done.stderr.splitlines()) == [
        "DB_POOL_MIN",
        "REDIS_PORT",
        "WORKER_MAX_JOBS",
    ]


@pytest.mark.parametrize(
    ("changes", "expected", "told"),
    [
        ({"DB_PORT": "{closed}", "DB_CONNECT_TIMEOUT": "0.5"}, 3, "postgres@127.0.0.1:{closed}/"),
        ({"DB_PASSWORD": "wrong-password"}, 2, "DB_PASSWORD"),
        ({"DB_NAME": "nowhere"}, 2, "nowhere"),
        ({"DB_NAME": "template1"}, 3, "poolctl migrate"),
        ({"REDIS_PORT": "{closed}", "REDIS_CONNECT_TIMEOUT": "0.5"}, 3, "Redis at default@127.0.0.1:{closed}/0"),
        ({"REDIS_PASSWORD": "wrong-password"}, 2, "REDIS_PASSWORD"),
    ],
    ids=["unreachable", "wrong password", "no such database", "schema behind", "no redis", "wrong redis password"],
)
async def test_a_worker_that_cannot_start(
    environ: dict[str, str], spawn: Spawner, changes: dict[str, str], expected: int, told: str
) -> None:
    """What keeps a worker from starting is one line with what to do, the exit code says whether to try again."""
    async with open_proxy("127.0.0.1", environ["DB_PORT"]) as proxy:
        await proxy.stop()
        closed = str(proxy.listens_on)
        environ |= {name: value.replace("{closed}", closed) for name, value in changes.items()}
        done = await asyncio.to_thread(spawn.run, "worker", environ=environ)
    assert done.returncode == expected
    (line,) = [line for line in done.stderr.splitlines() if " CRITICAL " in line]
    assert told.replace("{closed}", closed) in line
    assert "Traceback" not in done.stderr
    assert "wrong-password" not in done.stderr
    assert done.stdout == ""


async def test_a_signal_while_starting(environ: dict[str, str], spawn: Spawner) -> None:
    """A worker that still waits for its database ends at SIGTERM, exit 0."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        await proxy.stop()
        worker = spawn("worker", environ=environ | {"DB_PORT": str(proxy.listens_on), "DB_CONNECT_TIMEOUT": "60"})
        await _printed(worker, "trying again")
        assert await _stopped(worker, within_s=10) == 0
        assert "Traceback" not in worker.output()


async def test_redis_goes_and_comes(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """A worker whose Redis is away goes on with its job, is not healthy, and records the result when it is back."""
    async with open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as proxy:
        through = environ | {"REDIS_PORT": str(proxy.listens_on), "REDIS_CONNECT_TIMEOUT": "1"}
        worker = await _up(spawn, through)
        job = await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=2, concurrency=1, hold_ms=1_000))
        await _printed(worker, STARTED)
        await proxy.stop()
        await _printed(worker, "exercise_pool is done")
        await _printed(worker, "is away")
        assert (await _health(spawn, through))[0] == 3
        assert await queue.exists(f"arq:result:{job.job_id}") == 0
        await proxy.start()
        assert (await _result(job)).process == _id(worker)
        await _printed(worker, "is back after")
        assert (await _result(await enqueue(queue, EXERCISE_POOL, QUICK))).errors == 0
        assert await _stopped(worker, within_s=10) == 0
    assert worker.output().count(" is away") == 1
    assert worker.output().count(STARTED) == 2
    assert "Traceback" not in worker.output()


async def test_sigterm_while_redis_is_frozen(
    environ: dict[str, str], queue: ArqRedis, servers: LocalServers, spawn: Spawner
) -> None:
    """A frozen Redis does not hold up the end: the worker exits 0 within the time of one command and the closing."""
    worker = await _up(spawn, environ | {"REDIS_SOCKET_TIMEOUT": "2"})
    os.kill(servers.redis.child.pid, signal.SIGSTOP)
    try:
        assert await _stopped(worker, within_s=10) == 0
    finally:
        os.kill(servers.redis.child.pid, signal.SIGCONT)
    await _disconnected(environ, worker)


async def test_sigterm_while_the_database_is_silent(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """A database that fell silent in the middle of a job does not hold up the end of a worker for long."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        changes = {"DB_PORT": str(proxy.listens_on), "WORKER_SHUTDOWN_GRACE": "0.3"}
        worker = await _up(spawn, environ | changes)
        await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=100, concurrency=1, hold_ms=20))
        await _printed(worker, STARTED)
        proxy.freeze()
        proxy.deaf = True
        assert await _stopped(worker, within_s=15) == 0
        assert await read_fleet(queue) == []


@pytest.mark.slow
async def test_the_database_goes_and_comes(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """A job that finds no database is tried again until there is one, and none of these tries counts as its own."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        changes = {"DB_PORT": str(proxy.listens_on), "WORKER_MAX_TRIES": "1", "DB_CONNECT_TIMEOUT": "1"}
        worker = await _up(spawn, environ | changes)
        await proxy.stop()
        jobs = [await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=1)) for _ in range(3)]
        await _printed(worker, "(the database was away, not counted)")
        await until(lambda: _excused(queue, jobs[0]), what="a try that does not count")
        await proxy.start()
        assert [(await _result(job)).errors for job in jobs] == [0, 0, 0]
        outcome = await jobs[0].result_info()
        assert outcome is not None
        assert outcome.job_try == 1
        assert await _excused(queue, jobs[0]) == 0
        assert await _stopped(worker, within_s=10) == 0


async def test_the_database_stays_away(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """A job that finds no database for WORKER_OUTAGE_TRIES and for its own tries is dead, with the reason."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        changes = {"DB_PORT": str(proxy.listens_on), "WORKER_OUTAGE_TRIES": "2", "DB_CONNECT_TIMEOUT": "0.5"}
        worker = await _up(spawn, environ | changes)
        await proxy.stop()
        job = await enqueue(queue, EXERCISE_POOL, QUICK)
        with pytest.raises(JobFailed, match=r"all 4 units failed, .*DBConnectionError"):
            await _result(job)
        assert worker.output().count(STARTED) == 3
        count, (dead,) = await read_dead(queue)  # the fleet's own samples are never among them
        assert (count, dead.id, dead.job, dead.tries) == (1, job.job_id, "exercise_pool", 1)
        assert dead.arguments == QUICK.model_dump()


async def test_the_pool_is_full(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """A job that gets no connection of the pool in time is tried again, and this does not count as a try."""
    changes = {"DB_POOL_MAX": "1", "DB_POOL_TIMEOUT": "0.3", "WORKER_MAX_JOBS": "2", "WORKER_MAX_TRIES": "1"}
    worker = await _up(spawn, environ | changes)
    holding = await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=2, concurrency=1, hold_ms=2_000))
    await _printed(worker, STARTED)
    crowded = await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=1))
    await _printed(worker, "(the pool was full, not counted)")
    assert (await _result(holding)).errors == 0
    assert (await _result(crowded)).errors == 0


@pytest.mark.slow
async def test_a_sample_is_taken_once_in_the_fleet(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """Of three workers one takes the sample that is due, and its result keeps a late worker from another."""
    workers = [await _up(spawn, environ) for _ in range(3)]

    async def taken() -> list[bytes]:
        return await queue.keys("arq:result:sample_connections:*")

    await until(taken, timeout_s=35, what="a sample")
    for worker in workers:
        assert await _stopped(worker, within_s=10) == 0
    assert sum(worker.output().count(":sample_connections starts") for worker in workers) == 1
    assert await _rows(environ, "fleet_connection_sample") == 1


async def _up(spawn: Spawner, environ: dict[str, str]) -> Spawned:
    worker = spawn("worker", environ=environ)
    await _printed(worker, UP)
    return worker


async def _printed(worker: Spawned, text: str) -> None:
    await asyncio.to_thread(worker.wait_for, text)


async def _stopped(worker: Spawned, *, within_s: float) -> int:
    worker.send(signal.SIGTERM)
    return await asyncio.to_thread(worker.wait, within_s)


async def _result(job: QueuedJob, timeout_s: float = 15) -> ExerciseResult:
    return EXERCISE_POOL.read_result(await job.result(timeout=timeout_s, poll_delay=0.05))


async def _health(spawn: Spawner, environ: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of `--health`."""
    done = await asyncio.to_thread(spawn.run, "worker", "--health", *arguments, environ=environ)
    return done.returncode, done.stderr


async def _owner(queue: ArqRedis, job: QueuedJob, workers: list[Spawned]) -> Spawned | None:
    """Which of the workers runs the job."""
    claim = await queue.hget(f"{queue.default_queue_name}:claims", job.job_id)
    owners = [worker for worker in workers if claim is not None and claim.startswith(_id(worker).encode() + b"/")]
    return owners[0] if owners else None


async def _excused(queue: ArqRedis, job: QueuedJob) -> int:
    """How often the job was tried when it was not its fault."""
    return int(await queue.get(f"arq:excused:{job.job_id}") or 0)


def _id(worker: Spawned) -> str:
    return Identity("worker", socket.gethostname(), worker.pid).id


async def _connections(environ: dict[str, str], worker: Spawned) -> int:
    async with connect(Settings.load("poolctl", environ)) as connection:
        return (await read_server(connection)).by_application.get(_id(worker), 0)


async def _rows(environ: dict[str, str], table: str = "fleet_alert") -> int:
    async with connect(Settings.load("poolctl", environ)) as connection:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))


async def _disconnected(environ: dict[str, str], worker: Spawned) -> None:
    async def none() -> bool:
        return await _connections(environ, worker) == 0

    await until(none, what="the worker's connections are closed")


async def _is_gone(environ: dict[str, str], queue: ArqRedis, worker: Spawned) -> None:
    """Nothing of the worker is left in PostgreSQL or in the registry."""
    await _disconnected(environ, worker)
    assert await read_fleet(queue) == []
    assert await queue.keys("arq:in-progress:*") == []
