"""What becomes of jobs that misbehave; on a real worker."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as QueuedJob

from fleet.dead_letters import read_dead
from fleet.jobs import PRUNE_SAMPLES, NoArguments, abort, enqueue
from fleet.wire import JobFailed
from tests.job_fleet import JobFleet, all_done, client, open_job_fleet, put_work
from tests.job_worker import SLOW, SLOW_AGAIN, TROUBLE, UNIQUE, WORK, Trouble, Work
from tests.processes import Spawner
from tests.waiting import until

pytestmark = pytest.mark.slow  # a worker of its own for each


@pytest.fixture
async def queue(environ: dict[str, str]) -> AsyncIterator[ArqRedis]:
    async with client(environ) as opened:
        yield opened


@pytest.fixture
async def fleet(environ: dict[str, str], spawn: Spawner) -> AsyncIterator[JobFleet]:
    async with open_job_fleet(environ, spawn) as opened:
        yield opened


async def test_a_job_that_raises(fleet: JobFleet, queue: ArqRedis, environ: dict[str, str], spawn: Spawner) -> None:
    """Its result has type, message and traceback as JSON; it is dead after one try, listed and retried by poolctl."""
    await fleet.start()
    job = await enqueue(queue, TROUBLE, Trouble(key="a"), job_id="a-job")
    failure = await _failure(job)
    assert (failure.type, failure.message) == ("ValueError", "a job's own error")
    assert failure.traceback is not None
    assert 'raise ValueError("a job\'s own error")' in failure.traceback
    assert json.loads(await queue.get("arq:result:a-job"))["r"]["traceback"] == failure.traceback
    done = await asyncio.to_thread(spawn.run, "poolctl", "jobs", "--dead", environ=environ)
    assert done.returncode == 0
    assert 'trouble {"key": "a", "kind": "raise"}\n    ValueError: a job\'s own error\n1 dead\n' in done.stdout
    done = await asyncio.to_thread(spawn.run, "poolctl", "jobs", "--retry", "a-job", environ=environ)
    assert (done.returncode, done.stdout) == (0, "a-job: back on the queue\n")
    await until(lambda: _starts(fleet, "a", 2), what="it is run again")
    done = await asyncio.to_thread(spawn.run, "poolctl", "jobs", "--retry", "unknown", environ=environ)
    assert (done.returncode, done.stderr) == (1, "unknown: not among the dead\n")
    await fleet.stop()


@pytest.mark.parametrize(("kind", "error"), [("retry", "Retry"), ("key error", "KeyError")])
async def test_a_job_that_is_tried_again(fleet: JobFleet, queue: ArqRedis, kind: str, error: str) -> None:
    """arq's Retry and the errors of its contract give a job another try, up to the last; then it is dead."""
    await fleet.start()
    failure = await _failure(await enqueue(queue, TROUBLE, Trouble(key="a", kind=kind)))
    assert failure.type == error
    assert (await fleet.starts())["a"] == 3
    count, (dead,) = await read_dead(queue)
    assert (count, dead.tries, dead.type) == (1, 3, error)


@pytest.mark.parametrize(("kind", "error"), [("no json", "TypeError"), ("exit", "JobExited")])
async def test_a_job_that_does_what_it_must_not(fleet: JobFleet, queue: ArqRedis, kind: str, error: str) -> None:
    """A result that is no JSON, or a sys.exit(), ends the job and not its worker."""
    await fleet.start()
    assert (await _failure(await enqueue(queue, TROUBLE, Trouble(key="a", kind=kind)))).type == error
    await all_done(queue, await put_work(queue, ["another"]))
    await fleet.stop()


async def test_a_job_that_takes_too_long(fleet: JobFleet, queue: ArqRedis) -> None:
    """A time-out is final, unless the contract says otherwise; then it is tried again, and its rows are gone."""
    await fleet.start()
    once = await enqueue(queue, SLOW, Work(key="once", seconds=60))
    again = await enqueue(queue, SLOW_AGAIN, Work(key="again", seconds=60))
    for job, tries in ((once, 1), (again, 3)):
        failure = await _failure(job)
        assert (failure.type, failure.message) == ("JobTimeout", "took longer than 0.5 s")
        outcome = await job.result_info()
        assert outcome is not None
        assert outcome.job_try == tries
    assert (await fleet.starts(), await fleet.effects()) == ({}, set())
    await fleet.stop()


async def test_hooks_that_fail(fleet: JobFleet, queue: ArqRedis) -> None:
    """An exception of a hook is logged; the job is run and recorded, the worker goes on."""
    worker = await fleet.start("--bad-hooks")
    await all_done(queue, await put_work(queue, ["a", "b"]))
    assert worker.output().count("a hook of job") == 4
    assert worker.output().count("ZeroDivisionError: a hook's own error") == 4
    await fleet.stop()


async def test_a_job_that_swallows_its_cancellation(fleet: JobFleet, queue: ArqRedis) -> None:
    """Its worker ends within the grace + 5 s all the same, hard, and says which job it was; the others went back."""
    worker = await fleet.start(WORKER_SHUTDOWN_GRACE="1")
    await enqueue(queue, TROUBLE, Trouble(key="stubborn", kind="swallow"), job_id="stubborn")
    long = await put_work(queue, ["long"], 60)
    await fleet.started("stubborn", "long")
    worker.send(signal.SIGTERM)
    started = time.monotonic()
    assert await asyncio.to_thread(worker.wait, 10) == 1
    assert time.monotonic() - started < 1 + 5
    last = [line for line in worker.output().splitlines() if " CRITICAL " in line]
    assert len(last) == 1
    assert "ended hard" in last[0]
    assert "stubborn:trouble" in last[0]
    assert await queue.hkeys("arq:queue:claims") == [b"stubborn"]
    await fleet.start()
    await fleet.started("long")
    assert await abort(queue, long[0].job_id)


async def test_a_loop_that_ends_on_an_error(fleet: JobFleet, queue: ArqRedis) -> None:
    """Its jobs go back to the queue, and one that swallows its cancellation does not keep the process."""
    await enqueue(queue, TROUBLE, Trouble(key="stubborn", kind="swallow"), job_id="stubborn")
    await put_work(queue, ["long"], 60)
    worker = await fleet.start("--schedule-breaks")
    await fleet.started("stubborn", "long")
    assert await asyncio.to_thread(worker.wait, 3 + 5 + 3) == 1
    assert "ended hard" in worker.output()
    assert "stubborn:trouble" in worker.output()
    assert await queue.hkeys("arq:queue:claims") == [b"stubborn"]


async def test_a_job_that_blocks_the_event_loop(fleet: JobFleet, queue: ArqRedis) -> None:
    """Its worker ends within the grace + 5 s, though its event loop does not hear of the signal."""
    worker = await fleet.start(WORKER_SHUTDOWN_GRACE="1")
    await enqueue(queue, TROUBLE, Trouble(key="blocks", kind="block"), job_id="blocks")
    await fleet.started("blocks")
    worker.send(signal.SIGTERM)
    started = time.monotonic()
    assert await asyncio.to_thread(worker.wait, 10) == 1
    assert time.monotonic() - started < 1 + 5
    assert "ended hard" in worker.output()
    assert "blocks:trouble" in worker.output()


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b'{"t":null,"f":"nobody knows","a":[],"k":{},"et":1}', "no job of this worker is called 'nobody knows'"),
        (b"{broken", "another serializer"),
        (b"\x80\x04\x95pickled", "another serializer"),
        (b"[" * 100_000, "another serializer"),
        (b'{"t":null,"f":"work","a":[],"k":{"key":"a","extra":1},"et":1}', "not its contract's: extra"),
        (b'{"t":null,"f":"work","a":["a"],"k":{},"et":1}', "its arguments have no names"),
        (b'{"t":null,"f":"work","a":[],"k":{"key":"a","seconds":1e999},"et":1}', "is not the JSON of a job"),
        (b'{"t":null,"f":"work","a":[],"k":{"key":"a"},"et":1e999}', "is not the JSON of a job"),
    ],
    ids=["unknown", "broken", "pickle", "nested", "arguments", "positional", "infinite", "time"],
)
async def test_a_payload_that_cannot_be_run(
    environ: dict[str, str], fleet: JobFleet, queue: ArqRedis, payload: bytes, told: str
) -> None:
    """It goes to the dead jobs with the reason, and whoever waits for it hears that; the worker goes on."""
    await fleet.start()
    await queue.set("arq:job:odd", payload)
    await queue.zadd("arq:queue", {"odd": 1})
    failure = await _failure(QueuedJob("odd", queue, _deserializer=queue.job_deserializer))
    assert failure.type == "JobUnreadable"
    assert told in failure.message
    _, (dead,) = await read_dead(queue)
    assert (dead.id, dead.type, dead.message) == ("odd", "JobUnreadable", failure.message)
    await all_done(queue, await put_work(queue, ["another"]))
    await fleet.stop()


async def test_a_payload_that_is_too_large(fleet: JobFleet, queue: ArqRedis) -> None:
    """It is neither read nor kept; whoever waits for it hears why, and the worker goes on."""
    await fleet.start(WORKER_MAX_PAYLOAD="1000")
    failure = await _failure(await enqueue(queue, WORK, Work(key="x" * 1_000), job_id="large"))
    assert failure.message == "its payload is larger than WORKER_MAX_PAYLOAD"
    assert await read_dead(queue) == (0, [])
    assert await queue.keys("*large*") == [b"arq:result:large"]
    await all_done(queue, await put_work(queue, ["another"]))
    await fleet.stop()


async def test_ids_and_keys_of_the_wrong_kind(fleet: JobFleet, queue: ArqRedis) -> None:
    """A job id that is no text, a job key that is no string, a retry key that is no number: the worker goes on."""
    jobs = await put_work(queue, ["retry", "list"])
    await queue.set("arq:retry:retry", "no number")
    await queue.delete("arq:job:list")
    await queue.lpush("arq:job:list", "x")
    await queue.zadd("arq:queue", {b"caf\xe9": 1})
    await queue.set(b"arq:job:caf\xe9", b"{}")
    await fleet.start()
    await all_done(queue, jobs[:1])
    assert (await _failure(jobs[1])).message == "its payload in Redis is no string"

    async def both_dead() -> bool:
        return (await read_dead(queue))[0] == 2

    await until(both_dead, what="both are dead")
    await fleet.stop()


async def test_a_job_is_aborted(fleet: JobFleet, queue: ArqRedis) -> None:
    """A job that runs is cancelled, one that waits is not begun; both end as aborted, and neither is dead."""
    await fleet.start(WORKER_LEASE="1")
    running, waiting = (
        await enqueue(queue, WORK, Work(key="runs", seconds=60)),
        await enqueue(queue, WORK, Work(key="waits"), after_s=3600),
    )
    await fleet.started("runs")
    for job in (running, waiting):
        assert await abort(queue, job.job_id)
        assert (await _failure(job)).type == "JobAborted"
        assert not await abort(queue, job.job_id)
    assert (set(await fleet.starts()), await fleet.effects()) == ({"runs"}, set())
    assert (await read_dead(queue))[0] == 0
    await fleet.stop()


async def test_a_deferred_job_is_on_time(fleet: JobFleet, queue: ArqRedis) -> None:
    """A deferred job starts when it is due, though its worker was idle for longer than it would wait by itself."""
    await fleet.start(WORKER_POLL_DELAY="30")
    await until(lambda: _blocked(queue), what="the worker is idle")
    job = await enqueue(queue, WORK, Work(key="a"), after_s=1.5)
    before = time.time()
    await all_done(queue, [job])
    outcome = await job.result_info()
    assert outcome is not None
    assert 1.4 < outcome.start_time.timestamp() - before < 2.5


async def test_a_unique_job(fleet: JobFleet, queue: ArqRedis) -> None:
    """Of several with the same key one waits or runs; when that is over, another may, though its result is kept."""
    await fleet.start()
    jobs = [await enqueue(queue, UNIQUE, Work(key="a", seconds=1)) for _ in range(2)]
    await fleet.started("a")
    jobs.append(await enqueue(queue, UNIQUE, Work(key="a")))
    assert {job.job_id for job in jobs} == {"unique:a"}
    await all_done(queue, jobs[:1])
    assert (await fleet.starts())["a"] == 1
    await enqueue(queue, UNIQUE, Work(key="a"))
    await until(lambda: _starts(fleet, "a", 2), what="it is run again")


async def test_burst(environ: dict[str, str], queue: ArqRedis, spawn: Spawner) -> None:
    """`python -m worker --burst` runs what is due and ends by itself, exit 0; what is deferred stays."""
    jobs = [await enqueue(queue, PRUNE_SAMPLES, NoArguments()) for _ in range(30)]
    await enqueue(queue, PRUNE_SAMPLES, NoArguments(), after_s=3600)
    done = await asyncio.to_thread(spawn.run, "worker", "--burst", environ=environ | {"LOG_FORMAT": "text"})
    assert done.returncode == 0, done.stderr
    assert [await job.result(timeout=1) for job in jobs] == [0] * 30
    assert await queue.zcard("arq:queue") == 1


async def _failure(job: QueuedJob) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await job.result(timeout=20, poll_delay=0.05)
    return caught.value


async def _starts(fleet: JobFleet, key: str, count: int) -> bool:
    return (await fleet.starts())[key] == count


async def _blocked(queue: ArqRedis) -> bool:
    return int((await queue.info("clients"))["blocked_clients"]) > 0
