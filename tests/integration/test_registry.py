from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from arq.connections import ArqRedis

from config import Settings
from config.exit_codes import ExitCode
from fleet.errors import QueueUnreachable
from fleet.health import check_health
from fleet.queue import open_queue
from fleet.registry import (
    INDEX_KEY,
    KEY_PREFIX,
    LIVE_S,
    ORDER_KEY,
    REMEMBERED_S,
    Identity,
    JobCounts,
    Registry,
    read_earlier,
    read_fleet,
    read_registry,
)
from local import LocalServers
from pool import PoolSnapshot
from tests.proxy import open_proxy
from tests.waiting import until

POOL = PoolSnapshot(
    name="worker@there:7",
    floor=2,
    limit=10,
    size=4,
    idle=1,
    in_use=3,
    waiting=5,
    peak=6,
    acquires=70,
    timeouts=8,
    queries=900,
    wait_p95_s=0.25,
)
ELSEWHERE = Identity("worker", "elsewhere", 7)


@pytest.fixture
async def queue(environ: dict[str, str]) -> AsyncIterator[ArqRedis]:
    async with open_queue(Settings.load("worker", environ)) as opened:
        yield opened


async def test_everyone_reads_what_a_process_says_of_itself(queue: ArqRedis) -> None:
    """While a process is announced, its role, host, pid, pool and jobs are in the registry."""
    jobs = JobCounts(running=1, complete=20, failed=3, retried=4)
    async with _registry(queue, ELSEWHERE, jobs=jobs).announced():
        (entry,) = await read_fleet(queue)
    assert (entry.id, entry.role, entry.host, entry.pid) == ("worker@elsewhere:7", "worker", "elsewhere", 7)
    assert (entry.pool, entry.jobs, entry.live) == (POOL, jobs, True)


async def test_the_heartbeat_tells_the_present(queue: ArqRedis) -> None:
    """Each heartbeat asks for the pool's and the jobs' numbers anew."""
    numbers = {"waiting": 0, "complete": 0}
    registry = Registry(
        queue,
        ELSEWHERE,
        pool=lambda: replace(POOL, waiting=numbers["waiting"]),
        jobs=lambda: JobCounts(complete=numbers["complete"]),
        heartbeat_s=0.02,
    )
    async with registry.announced():
        numbers.update(waiting=9, complete=11)

        async def told() -> bool:
            (entry,) = await read_fleet(queue)
            return (entry.pool.waiting, entry.jobs.complete) == (9, 11)

        await until(told)


async def test_a_process_that_leaves_says_goodbye(queue: ArqRedis) -> None:
    """After a clean stop nothing of a process is left in Redis."""
    async with _registry(queue, ELSEWHERE).announced():
        assert await queue.keys("fleet:*")
    assert await queue.keys("fleet:*") == []


async def test_a_silent_process_is_not_live(queue: ArqRedis) -> None:
    """A process of which nothing was heard for LIVE_S is not of the fleet, but it is remembered."""
    async with _registry(queue, ELSEWHERE).announced():
        await _age(queue, ELSEWHERE, LIVE_S - 1)
        assert [entry.id for entry in await read_fleet(queue)] == [ELSEWHERE.id]
        await _age(queue, ELSEWHERE, LIVE_S)
        assert await read_fleet(queue) == []
        (entry,) = await read_registry(queue)
        assert LIVE_S <= entry.silent_s < LIVE_S + 5


async def test_the_order_of_entering_is_known(queue: ArqRedis) -> None:
    """Of any two one sees the other as earlier; who enters again, as after a crash, is the last."""
    ids = [Identity("worker", "elsewhere", pid) for pid in (9, 7, 8)]

    async def earlier(identity: Identity) -> list[int]:
        return [entry.pid for entry in await read_earlier(queue, identity)]

    async with AsyncExitStack() as stack:
        for identity in ids:
            await stack.enter_async_context(_registry(queue, identity).announced())
        assert [await earlier(identity) for identity in ids] == [[9], [7, 9], [7, 8, 9]]
        await stack.enter_async_context(_registry(queue, ids[0]).announced())
        assert [await earlier(identity) for identity in ids] == [[7, 8, 9], [7], [7, 8]]
        await queue.delete(ORDER_KEY)  # Redis lost it: then everyone counts everyone
        assert [await earlier(identity) for identity in ids] == [[7, 8, 9]] * 3


async def test_the_dead_of_this_host_are_not_earlier(queue: ArqRedis) -> None:
    """A process of this host that is gone is left out at once, one of another host for its silence alone."""
    own, dead = Identity.own("worker"), Identity("worker", socket.gethostname(), _dead_pid())
    async with (
        _registry(queue, ELSEWHERE).announced(),
        _registry(queue, dead).announced(),
        _registry(queue, own).announced(),
    ):
        assert {entry.id for entry in await read_earlier(queue, own)} == {own.id, ELSEWHERE.id}


async def test_an_expired_entry_is_forgotten(queue: ArqRedis) -> None:
    """Redis itself drops the entry of a process that never came back, and readers drop it from the index."""
    async with _registry(queue, ELSEWHERE).announced():
        await queue.pexpire(KEY_PREFIX + ELSEWHERE.id, 1)

        async def forgotten() -> bool:
            return await read_registry(queue) == [] and not await queue.exists(INDEX_KEY, ORDER_KEY)

        await until(forgotten)


@pytest.mark.parametrize("wall_clock", ["1999-01-01T00:00:00Z", "2099-01-01T00:00:00Z"])
async def test_clocks_do_not_matter(queue: ArqRedis, wall_clock: str) -> None:
    """A process whose clock is years off is as live as its heartbeat is fresh."""
    async with _registry(queue, ELSEWHERE).announced():
        key = KEY_PREFIX + ELSEWHERE.id
        entry = json.loads(await queue.get(key)) | {"started_at": wall_clock}
        await queue.set(key, json.dumps(entry), keepttl=True)
        (read,) = await read_fleet(queue)
        assert read.live
        assert read.uptime_s < 60


async def test_entries_of_other_versions(queue: ArqRedis, caplog: pytest.LogCaptureFixture) -> None:
    """A field that is new is passed over; an entry that cannot be read is logged, and the others are read."""
    async with (
        _registry(queue, ELSEWHERE).announced(),
        _registry(queue, Identity("bot", "elsewhere", 8)).announced(),
    ):
        raw = json.loads(await queue.get(KEY_PREFIX + ELSEWHERE.id))
        await queue.set(KEY_PREFIX + ELSEWHERE.id, json.dumps(raw | {"new": 1}), keepttl=True)
        await queue.set(f"{KEY_PREFIX}bot@elsewhere:8", "not JSON", keepttl=True)
        assert [entry.id for entry in await read_fleet(queue)] == [ELSEWHERE.id]
    assert "entry of bot@elsewhere:8 is unreadable" in caplog.text


async def test_the_heartbeat_outlives_an_outage(
    environ: dict[str, str], servers: LocalServers, caplog: pytest.LogCaptureFixture
) -> None:
    """While Redis is away the heartbeat goes on, with one line at the start of the outage and one at its end."""
    caplog.set_level(logging.INFO, "fleet.registry")
    async with open_proxy(servers.redis.host, servers.redis.port) as proxy:
        settings = Settings.load("worker", environ | {"REDIS_PORT": str(proxy.listens_on)})
        async with open_queue(settings) as queue, _registry(queue, ELSEWHERE, heartbeat_s=0.02).announced():
            attempts = proxy.accepted
            proxy.greeting = b""  # new connections are hung up on
            proxy.cut()
            await until(lambda: proxy.accepted > attempts + 3, what="several heartbeats failed")
            proxy.greeting = None
            await until(lambda: "is back" in caplog.text)
            assert [entry.id for entry in await read_fleet(queue)] == [ELSEWHERE.id]
    said = [record.levelname for record in caplog.records if record.name == "fleet.registry"]
    assert said == ["WARNING", "INFO"]


async def test_the_heartbeat_outlives_a_failing_source(queue: ArqRedis, caplog: pytest.LogCaptureFixture) -> None:
    """A pool that cannot be asked costs heartbeats, not the process; when it can, they are back."""
    caplog.set_level(logging.INFO, "fleet.registry")
    broken = False

    def pool() -> PoolSnapshot:
        if broken:
            raise RuntimeError("the pool cannot be asked")
        return POOL

    async with Registry(queue, ELSEWHERE, pool, heartbeat_s=0.02).announced():
        broken = True
        await until(lambda: "the pool cannot be asked" in caplog.text)
        broken = False
        await until(lambda: "is back" in caplog.text)


async def test_a_busy_event_loop_is_told(queue: ArqRedis) -> None:
    """A heartbeat says by how much it was late, because the event loop was busy."""
    async with _registry(queue, ELSEWHERE, heartbeat_s=0.2).announced():
        await asyncio.sleep(0)  # the heartbeat's pause begins
        time.sleep(0.5)  # noqa: ASYNC251 keeps the event loop busy

        async def told() -> bool:
            (entry,) = await read_fleet(queue)
            return 0.25 < entry.loop_lag_s < 5

        await until(told)


async def test_a_live_process_is_healthy(environ: dict[str, str], queue: ArqRedis) -> None:
    """A process that is announced and exists is healthy, asked for by pid or not."""
    own = Identity.own("worker")
    async with _registry(queue, own).announced():
        for pid in (None, own.pid):
            code, line = await check_health(Settings.load("worker", environ), "worker", pid)
            assert (code, line) == (ExitCode.OK, f"healthy: {own.id}")


async def test_nobody_is_not_healthy(environ: dict[str, str], queue: ArqRedis) -> None:
    """Where no process of the role is announced on this host, nothing is healthy, whoever else there is."""
    async with _registry(queue, ELSEWHERE).announced(), _registry(queue, Identity.own("bot")).announced():
        code, line = await check_health(Settings.load("worker", environ), "worker")
        assert (code, line) == (ExitCode.FINDING, f"no worker of {socket.gethostname()} is in the registry")
        code, line = await check_health(Settings.load("worker", environ), "worker", pid=os.getpid())
        assert code is ExitCode.FINDING
        assert f"{Identity.own('worker').id} is not in the registry" in line


async def test_a_dead_process_is_told(environ: dict[str, str], queue: ArqRedis) -> None:
    """A process that is gone without goodbye is dead at once; without a pid only until its entry is stale."""
    dead = Identity("worker", socket.gethostname(), _dead_pid())
    settings = Settings.load("worker", environ)
    async with _registry(queue, Identity.own("worker")).announced(), _registry(queue, dead).announced():
        for pid in (None, dead.pid):
            code, line = await check_health(settings, "worker", pid)
            assert code is ExitCode.FINDING
            assert line.startswith(f"{dead.id} is dead: ")
        await _age(queue, dead, LIVE_S + 1)
        assert (await check_health(settings, "worker", dead.pid))[0] is ExitCode.FINDING
        assert (await check_health(settings, "worker"))[0] is ExitCode.OK


async def test_a_stuck_process_is_told(environ: dict[str, str], queue: ArqRedis) -> None:
    """A process that exists and is silent is stuck, and the line says for how long."""
    own = Identity.own("worker")
    async with _registry(queue, own).announced():
        await _age(queue, own, LIVE_S + 8)
        for pid in (None, own.pid):
            code, line = await check_health(Settings.load("worker", environ), "worker", pid)
            assert code is ExitCode.FINDING
            assert line.startswith(f"{own.id} is stuck: no heartbeat for 23 s, due every 5 s; ")


async def test_health_without_redis(environ: dict[str, str]) -> None:
    """Where Redis cannot be asked, neither healthy nor unhealthy is the answer."""
    async with open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as proxy:
        await proxy.stop()
        unreachable = environ | {"REDIS_PORT": str(proxy.listens_on), "REDIS_CONNECT_TIMEOUT": "0.3"}
        with pytest.raises(QueueUnreachable):
            await check_health(Settings.load("worker", unreachable), "worker")


def _registry(
    queue: ArqRedis, identity: Identity, *, jobs: JobCounts | None = None, heartbeat_s: float = 60.0
) -> Registry:
    """Announced once, and then silent unless `heartbeat_s` says otherwise."""
    return Registry(queue, identity, lambda: POOL, lambda: jobs or JobCounts(), heartbeat_s)


async def _age(queue: ArqRedis, identity: Identity, silent_s: float) -> None:
    """Make the last heartbeat `silent_s` old, by the one clock that counts: Redis' expiry."""
    await queue.pexpire(KEY_PREFIX + identity.id, int((REMEMBERED_S - silent_s) * 1000))


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
