"""Ten thousand jobs while workers are killed and Redis is restarted."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from fleet.dead_letters import read_dead
from local import LocalServers, Tether
from tests.job_fleet import JobFleet, client, open_job_fleet, put_work
from tests.processes import Spawned, Spawner
from tests.redis_server import RedisServer, open_redis_server
from tests.waiting import until

JOBS = 10_000
WORKERS = 4
SLOTS = 4  # of each, as DB_POOL_MAX
KILL_EVERY_S = 2.0
RESTARTS = (JOBS // 4, JOBS // 2)  # of Redis, after so many jobs


@pytest.fixture
def redis_server(servers: LocalServers, tmp_path: Path, tether: Tether) -> Iterator[RedisServer]:
    with open_redis_server(servers.redis.binary.path, tmp_path / "redis", tether) as server:
        yield server


@pytest.mark.slow
async def test_ten_thousand_jobs(environ: dict[str, str], spawn: Spawner, redis_server: RedisServer) -> None:
    """A worker killed every 2 s, Redis restarted twice: each job has its effect once, and none is lost."""
    environ |= redis_server.environ
    async with open_job_fleet(environ | {"WORKER_LEASE": "4", "LOG_LEVEL": "WARNING"}, spawn) as fleet:
        keys = [f"job {number}" for number in range(JOBS)]
        async with client(environ) as queue:
            await put_work(queue, keys)
        for _ in range(WORKERS):
            await _start(fleet)
        killing = asyncio.create_task(_kill(fleet))
        for done in RESTARTS:
            await until(lambda done=done: _done(fleet, done), timeout_s=240, what=f"{done} jobs", poll_s=0.5)
            redis_server.stop()
            await asyncio.sleep(1)  # the fault itself: a second without Redis
            redis_server.start()
        await until(lambda: _empty(environ), timeout_s=300, what="an empty queue", poll_s=1.0)
        killing.cancel()
        ended = [code for worker in fleet.workers if (code := worker.child.exit_code()) is not None]
        kills = len(ended)
        assert kills >= 5
        assert set(ended) == {-signal.SIGKILL}, "no worker ended by itself"
        assert await fleet.effects() == set(keys)
        extra = (await fleet.starts()).total() - JOBS
        assert 0 <= extra <= kills * SLOTS, "only what a killed worker ran is started again"
        async with client(environ) as queue:
            assert await read_dead(queue) == (0, [])
            results = await queue.keys("arq:result:*")
            assert len(results) == JOBS
            left = [key for key in await queue.keys("arq:*") if not key.startswith((b"arq:result:", b"arq:queue:"))]
            assert left == []
            assert await queue.hlen("arq:queue:claims") == 0


async def _start(fleet: JobFleet) -> Spawned:
    """A worker that says nothing: the level is WARNING."""
    worker = fleet.spawn("tests.job_worker", environ=fleet.environ)
    fleet.workers.append(worker)
    return worker


async def _kill(fleet: JobFleet) -> None:
    """The eldest, and another in its place."""
    while True:
        await asyncio.sleep(KILL_EVERY_S)
        alive = [worker for worker in fleet.workers if worker.child.exit_code() is None]
        alive[0].child.stop()
        await _start(fleet)


async def _done(fleet: JobFleet, count: int) -> bool:
    return len(await fleet.effects()) >= count


async def _empty(environ: dict[str, str]) -> bool:
    try:
        async with client(environ) as queue:
            return await queue.zcard("arq:queue") == 0
    except RedisError:
        return False
