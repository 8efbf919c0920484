from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from arq.worker import Retry

from config import Settings
from fleet.jobs import _ENQUEUE, Arguments, Job, enqueue, job_payload
from fleet.process import Process, open_process
from fleet.queue import open_queue
from tests.proxy import Proxy, open_proxy
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


async def test_a_later_job_of_an_id_in_hand(environ: dict[str, str]) -> None:
    """A worker has a job in hand that another one ran again and ended, and gets the next job of its id: both end."""
    ran: dict[str, list[int]] = {"cut off": [], "other": []}
    gate = asyncio.Event()

    def code(worker: str) -> Callable[[Number], Awaitable[int]]:
        async def run(arguments: Number) -> int:
            ran[worker].append(arguments.number)
            if arguments.number == 1 and worker == "cut off":
                await gate.wait()
            return 0

        return run

    unique = Job("unique", Number, int, unique_key=lambda _: "one")
    short = environ | {"WORKER_LEASE": "2", "REDIS_SOCKET_TIMEOUT": "0.6", "REDIS_CONNECT_TIMEOUT": "1"}
    async with (
        open_proxy("127.0.0.1", environ["REDIS_PORT"]) as proxy,
        _process(short | {"REDIS_PORT": str(proxy.listens_on)}) as process,
        _process(short) as other,
        _working(process, unique, code("cut off")) as loop,
    ):
        await enqueue(other.queue, unique, Number(number=1))
        await until(lambda: ran["cut off"] == [1], what="the job runs")
        await proxy.stop()
        async with _working(other, unique, code("other")) as second:
            await until(lambda: second.counts.complete == 1, what="the other one has run it again, and ended it")
        await enqueue(other.queue, unique, Number(number=2))
        due = await other.queue.zscore("arq:queue", "unique:one")
        await proxy.start()

        async def was_claimed() -> bool:
            return await other.queue.zscore("arq:queue", "unique:one") != due

        await until(was_claimed, what="the first worker gets the later job")
        gate.set()
        await until(lambda: loop.counts.complete == 2, timeout_s=10, what="both have ended there")
    assert ran == {"cut off": [1, 2], "other": [1]}


@pytest.mark.slow
@pytest.mark.parametrize("cut_every_s", [None, 0.02])
async def test_a_unique_job_again_and_again(environ: dict[str, str], cut_every_s: float | None) -> None:
    """A unique job that is enqueued anew the moment it is over runs once each time, also while connections are cut."""
    runs: Counter[int] = Counter()
    longest_s = 0.0

    async def code(arguments: Number) -> int:
        runs[arguments.number] += 1
        return 0

    async def cut(proxy: Proxy, every_s: float) -> None:
        while True:
            proxy.cut()
            await asyncio.sleep(every_s)  # the fault itself: again and again

    unique = Job("unique", Number, int)
    clock = asyncio.get_running_loop().time
    async with (
        open_proxy("127.0.0.1", environ["REDIS_PORT"]) as proxy,
        _process(environ, REDIS_PORT=str(proxy.listens_on), WORKER_LEASE="15") as process,
        open_queue(Settings.load("poolctl", environ)) as queue,
        _working(process, unique, code) as loop,
    ):
        cutting = None if cut_every_s is None else asyncio.create_task(cut(proxy, cut_every_s))
        for number in range(1000):
            since = clock()
            # The step itself, as it tells whether the job was taken: not while the one before is on the queue.
            payload = job_payload(unique, Number(number=number))
            taken = lambda payload=payload: _ENQUEUE(queue, "arq:queue", "one", payload, "", 0, 1)  # noqa: E731
            await until(taken, timeout_s=40, poll_s=0)
            longest_s = max(longest_s, clock() - since)
        await until(lambda: runs[999], timeout_s=40, what="the last one runs")
        if cutting is not None:
            cutting.cancel()
        await until(lambda: not loop.unfinished, what="its end is recorded")
    assert [number for number in range(1000) if not runs[number]] == []
    if cut_every_s is None:
        assert (set(runs.values()), longest_s < 5) == ({1}, True)  # 5 s is no lease


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
