"""Scheduled jobs on ten real workers."""

from __future__ import annotations

import asyncio
import signal

import pytest
from arq.connections import ArqRedis

from tests.job_fleet import JobFleet, client, open_job_fleet
from tests.processes import Spawner
from tests.waiting import until

LATE_S = 4


@pytest.mark.slow
async def test_each_run_happens_once(environ: dict[str, str], spawn: Spawner) -> None:
    """Of ten workers, one late and one killed meanwhile, exactly one takes each second's run, and none is left out."""
    async with (
        open_job_fleet(environ | {"DB_POOL_MIN": "0", "WORKER_LEASE": "2"}, spawn) as fleet,
        client(environ) as queue,
    ):
        workers = list(await asyncio.gather(*(fleet.start("--cron", DB_POOL_MAX="2") for _ in range(10))))
        await until(lambda: _runs(fleet, 3), what="three runs", poll_s=0.2)
        workers[0].send(signal.SIGSTOP)
        await asyncio.sleep(LATE_S)
        workers[0].send(signal.SIGCONT)
        workers[1].child.stop()
        count = (await fleet.starts())["every second"]
        await until(lambda: _runs(fleet, count + 4), what="four more runs", poll_s=0.2)
        await fleet.stop(within_s=40)
        seconds = await _seconds(queue)
        assert seconds == list(range(seconds[0], seconds[0] + len(seconds)))
        assert (await fleet.starts())["every second"] == len(seconds)


@pytest.mark.slow
async def test_the_run_of_a_worker_that_is_killed(environ: dict[str, str], spawn: Spawner) -> None:
    """A worker that dies in the middle of a scheduled run leaves it to another, within a lease."""
    async with open_job_fleet(environ | {"WORKER_LEASE": "2"}, spawn) as fleet, client(environ) as queue:
        for _ in range(2):
            await fleet.start("--cron-long")
        await fleet.started("long run")
        ((run, claim),) = (await queue.hgetall("arq:queue:claims")).items()
        (owner,) = [worker for worker in fleet.workers if f":{worker.pid}/".encode() in claim]
        owner.send(signal.SIGKILL)
        await asyncio.to_thread(owner.wait, 10)

        async def ended() -> bool:
            return bool(await queue.exists(b"arq:result:" + run))

        await until(ended, timeout_s=15, what="the other one has run it")
        assert (await fleet.starts())["long run"] >= 2
        await fleet.stop()


async def _runs(fleet: JobFleet, least: int) -> bool:
    return (await fleet.starts())["every second"] >= least


async def _seconds(queue: ArqRedis) -> list[int]:
    """The seconds of which there are results."""
    return sorted(int(key.decode().rpartition(":")[2]) // 1000 for key in await queue.keys("arq:result:every_second:*"))
