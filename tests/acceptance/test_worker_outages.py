"""What becomes of jobs when their Redis, or the way to it, fails; on real workers and a Redis of the test's own."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import LocalServers, Tether
from tests.job_fleet import JobFleet, all_done, client, open_job_fleet, put_work
from tests.processes import Spawner
from tests.proxy import open_proxy
from tests.redis_server import RedisServer, open_redis_server
from tests.waiting import until

pytestmark = pytest.mark.slow  # outages take their time


@pytest.fixture
def redis_server(servers: LocalServers, tmp_path: Path, tether: Tether) -> Iterator[RedisServer]:
    with open_redis_server(servers.redis.binary.path, tmp_path / "redis", tether) as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str], redis_server: RedisServer) -> dict[str, str]:
    return environ | redis_server.environ | {"REDIS_SOCKET_TIMEOUT": "2", "REDIS_CONNECT_TIMEOUT": "2"}


@pytest.mark.parametrize(
    ("outage_s", "lease_s"), [(6, 2), pytest.param(60, 20, marks=pytest.mark.slow)], ids=["short", "60 s"]
)
async def test_redis_is_stopped(
    environ: dict[str, str], spawn: Spawner, redis_server: RedisServer, outage_s: float, lease_s: float
) -> None:
    """Redis is away for three leases: no worker ends, no job is lost or started twice, whenever it ends."""
    async with open_job_fleet(environ | {"WORKER_LEASE": str(lease_s)}, spawn) as fleet:
        workers = [await fleet.start() for _ in range(2)]
        during = [f"ends during the outage {number}" for number in range(3)]
        after = [f"ends after the outage {number}" for number in range(3)]
        waiting = [f"waits {number}" for number in range(20)]
        async with client(environ) as queue:
            jobs = await put_work(queue, during, outage_s / 2)
            jobs += await put_work(queue, after, outage_s + lease_s)
            await fleet.started(*during, *after)
            jobs += await put_work(queue, waiting, 0.2)
        redis_server.stop()
        stopped = time.monotonic()
        await until(lambda: all("is away" in each.output() for each in workers), what="both tell of it")
        await asyncio.to_thread(_sleep_until, stopped + outage_s)
        redis_server.start()
        async with client(environ) as queue:
            await all_done(queue, jobs, timeout_s=outage_s + 60)
        starts = await fleet.starts()
        assert {key: count for key, count in starts.items() if count != 1} == {}
        assert set(starts) == await fleet.effects() == {*during, *after, *waiting}
        await fleet.stop()


async def test_redis_is_killed(environ: dict[str, str], spawn: Spawner, redis_server: RedisServer) -> None:
    """Redis dies and is back at once, with what it had on disk: jobs that run are not started again."""
    async with open_job_fleet(environ | {"WORKER_LEASE": "2"}, spawn) as fleet:
        for _ in range(2):
            await fleet.start()
        keys = [f"job {number}" for number in range(6)]
        async with client(environ) as queue:
            await queue.config_set("appendfsync", "always")  # else what came in the last second is lost
            jobs = await put_work(queue, keys, 5.0)
            await fleet.started(*keys)
        redis_server.kill()
        redis_server.start()
        async with client(environ) as queue:
            await all_done(queue, jobs)
        assert await fleet.starts() == dict.fromkeys(keys, 1)
        await fleet.stop()


@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.slow)])
async def test_connections_are_cut_all_the_time(environ: dict[str, str], spawn: Spawner, seconds: int) -> None:
    """Every 50 ms all connections are reset: no worker ends, no slot is lost, no job is lost or started twice."""
    async with (
        open_proxy("127.0.0.1", environ["REDIS_PORT"]) as proxy,
        open_job_fleet(environ | {"REDIS_PORT": str(proxy.listens_on), "WORKER_LEASE": "2"}, spawn) as fleet,
        client(environ) as queue,
    ):
        for _ in range(2):
            await fleet.start()
        keys = [f"job {number}" for number in range(40 * seconds)]
        cutting = asyncio.create_task(_cut(proxy.cut))
        jobs = await put_work(queue, keys, 0.03)
        await asyncio.sleep(seconds)
        cutting.cancel()
        await all_done(queue, jobs, timeout_s=60)
        starts = await fleet.starts()
        assert {key: count for key, count in starts.items() if count != 1} == {}
        assert await fleet.effects() == set(keys)
        outcomes = [await job.result_info() for job in jobs]
        assert {outcome.job_try for outcome in outcomes if outcome is not None} == {1}
        slots = [f"slot {number}" for number in range(8)]
        await put_work(queue, slots, 30)
        await fleet.started(*slots)  # all at once: 2 workers with 4 slots each
        cutting = asyncio.create_task(_cut(proxy.cut))
        for worker in fleet.workers:
            assert worker.child.exit_code() is None
        cutting.cancel()


@pytest.mark.parametrize(
    ("frozen_s", "lease_s"), [(5, 2), pytest.param(20, 4, marks=pytest.mark.slow)], ids=["short", "20 s"]
)
async def test_redis_is_frozen(
    environ: dict[str, str], spawn: Spawner, redis_server: RedisServer, frozen_s: float, lease_s: float
) -> None:
    """Redis answers nothing for several leases: its jobs go on, are not started again, and those that wait follow."""
    async with open_job_fleet(environ | {"WORKER_LEASE": str(lease_s)}, spawn) as fleet:
        for _ in range(2):
            await fleet.start()
        async with client(environ) as queue:
            running = [f"runs {number}" for number in range(6)]
            jobs = await put_work(queue, running[:3], frozen_s / 2) + await put_work(queue, running[3:], frozen_s + 2)
            await fleet.started(*running)
            jobs += await put_work(queue, ["waits"], 0.1)
            redis_server.freeze()
            await asyncio.sleep(frozen_s)
            redis_server.thaw()
            await all_done(queue, jobs, timeout_s=60)
        assert await fleet.starts() == dict.fromkeys([*running, "waits"], 1)
        await fleet.stop()


async def test_sigterm_while_redis_is_frozen(
    environ: dict[str, str], spawn: Spawner, redis_server: RedisServer
) -> None:
    """A worker whose Redis is frozen ends within its grace + 5 s, with a job that runs and one that is not recorded."""
    async with open_job_fleet(environ | {"WORKER_SHUTDOWN_GRACE": "2", "REDIS_SOCKET_TIMEOUT": "5"}, spawn) as fleet:
        worker = await fleet.start()
        async with client(environ) as queue:
            await put_work(queue, ["short"], 3)
            await put_work(queue, ["long"], 60)
            await fleet.started("short", "long")
        redis_server.freeze()
        await asyncio.to_thread(worker.wait_for, "short:work is done")
        started = time.monotonic()
        await fleet.stop(within_s=7)
        assert time.monotonic() - started < 2 + 5
        (told,) = re.findall(r"there are still: (.*); closing", worker.output())
        assert sorted(told.split(", ")) == ["long:work", "short:work"]


async def test_redis_is_emptied(environ: dict[str, str], spawn: Spawner, redis_server: RedisServer) -> None:
    """A worker goes on though Redis was emptied, says what was lost, keeps the result, and cron continues."""
    async with open_job_fleet(environ | {"WORKER_LEASE": "2"}, spawn) as fleet:
        worker = await fleet.start("--cron")
        async with client(environ) as queue:
            jobs = await put_work(queue, ["runs"], 3)
            await fleet.started("runs", "every second")
            before = (await fleet.starts())["every second"]
            await queue.flushall()
            await asyncio.to_thread(worker.wait_for, "Redis forgot what this worker wrote a moment ago")
            await all_done(queue, jobs)
            assert "it forgot runs:work" in worker.output()
            await all_done(queue, await put_work(queue, ["new"]))
            await until(lambda: _more(fleet, "every second", before + 2), what="cron goes on", poll_s=0.2)
        await fleet.stop()


async def test_an_orphan_after_an_outage(environ: dict[str, str], spawn: Spawner, redis_server: RedisServer) -> None:
    """A worker that is killed while Redis is away leaves an orphan, which another runs; the living keep theirs."""
    async with open_job_fleet(environ | {"WORKER_LEASE": "2", "WORKER_MAX_JOBS": "1"}, spawn) as fleet:
        workers = [await fleet.start() for _ in range(2)]
        async with client(environ) as queue:
            jobs = await put_work(queue, ["a", "b"], 10)
            await fleet.started("a", "b")
        redis_server.stop()
        workers[0].child.stop()
        await asyncio.sleep(4)  # the fault itself: an outage of two leases
        redis_server.start()
        async with client(environ) as queue:
            await all_done(queue, jobs, timeout_s=40)
        assert sorted((await fleet.starts()).values()) == [1, 2]
        await fleet.stop()


async def test_redis_is_full(environ: dict[str, str], spawn: Spawner, redis_server: RedisServer) -> None:
    """A Redis that refuses every write for lack of memory is an outage like any other."""
    async with open_job_fleet(environ | {"WORKER_LEASE": "2"}, spawn) as fleet:
        worker = await fleet.start()
        async with client(environ) as queue:
            jobs = await put_work(queue, ["runs", "waits 1", "waits 2", "waits 3", "waits 4"], 3)
            await fleet.started("runs")
            await queue.config_set("maxmemory", "1")
            await asyncio.to_thread(worker.wait_for, "is away (")
            assert "command not allowed when used memory > 'maxmemory'" in worker.output()
            await asyncio.sleep(4)  # the fault itself: an outage of two leases
            await queue.config_set("maxmemory", "0")
            await all_done(queue, jobs)
        assert set((await fleet.starts()).values()) == {1}
        await fleet.stop()


async def test_a_worker_that_slept(environ: dict[str, str], spawn: Spawner) -> None:
    """A worker that is stopped for several leases loses its job to another; it goes on, and both may end it."""
    async with open_job_fleet(environ | {"WORKER_LEASE": "2"}, spawn) as fleet, client(environ) as queue:
        sleeper = await fleet.start()
        jobs = await put_work(queue, ["a"], 3)
        await fleet.started("a")
        await fleet.start()
        sleeper.send(signal.SIGSTOP)
        await until(lambda: _more(fleet, "a", 2), what="the job is started again")
        sleeper.send(signal.SIGCONT)
        await all_done(queue, jobs)
        await all_done(queue, await put_work(queue, [f"next {number}" for number in range(20)], 0.1))
        assert (await fleet.starts())["a"] == 2
        assert sleeper.child.exit_code() is None
        await fleet.stop()


async def _more(fleet: JobFleet, key: str, count: int) -> bool:
    return (await fleet.starts())[key] >= count


async def _cut(cut: object) -> None:
    assert callable(cut)
    while True:
        cut()
        await asyncio.sleep(0.05)  # the fault itself: every 50 ms


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
