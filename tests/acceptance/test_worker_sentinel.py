"""A worker whose Redis is watched by three sentinels."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from config import Settings
from fleet.errors import QueueUnreachable
from fleet.queue import open_queue
from local import LocalServers, Tether
from tests.job_fleet import all_done, client, open_job_fleet, put_work
from tests.processes import Spawner
from tests.redis_server import PASSWORD, RedisServer, open_redis_server
from tests.waiting import until, wait_until

pytestmark = pytest.mark.slow


@dataclass
class Watched:
    """A master, its replica, and the sentinels that watch them."""

    master: RedisServer
    replica: RedisServer
    sentinels: list[RedisServer]


@pytest.fixture
def watched(servers: LocalServers, tmp_path: Path, tether: Tether) -> Iterator[Watched]:
    binary = servers.redis.binary.path
    with ExitStack() as stack:
        master = stack.enter_context(open_redis_server(binary, tmp_path / "master", tether))
        following = {"replicaof": f"127.0.0.1 {master.port}"}
        replica = stack.enter_context(open_redis_server(binary, tmp_path / "replica", tether, following))
        watching = {
            "sentinel monitor mymaster": f"127.0.0.1 {master.port} 2",
            "sentinel auth-pass mymaster": PASSWORD,
            "sentinel down-after-milliseconds mymaster": "1000",
            "sentinel failover-timeout mymaster": "5000",
        }
        sentinels = [
            stack.enter_context(open_redis_server(binary, tmp_path / f"s{n}", tether, watching, sentinel=True))
            for n in range(3)
        ]

        def agreed() -> bool:
            for sentinel in sentinels:
                with sentinel.client() as asked:
                    state = asked.sentinel_master("mymaster")
                    if (state["num-other-sentinels"], state["num-slaves"]) != (2, 1):
                        return False
            return True

        wait_until(agreed, timeout_s=30, what="the sentinels know each other and the replica")
        yield Watched(master, replica, sentinels)


@pytest.fixture
def environ(environ: dict[str, str], watched: Watched) -> dict[str, str]:
    named = {name: value for name, value in environ.items() if name not in ("REDIS_HOST", "REDIS_PORT")}
    return environ.__class__(named) | {
        "REDIS_SENTINELS": ", ".join(f"127.0.0.1:{sentinel.port}" for sentinel in watched.sentinels),
        "REDIS_PASSWORD": PASSWORD,
        "REDIS_SOCKET_TIMEOUT": "2",
        "REDIS_CONNECT_TIMEOUT": "2",
    }


@pytest.mark.parametrize("how", ["killed", "frozen", "asked"])
async def test_a_failover_is_followed(environ: dict[str, str], spawn: Spawner, watched: Watched, how: str) -> None:
    """Jobs that run across a failover are not started again and keep their results, and no job is lost."""
    async with open_job_fleet(environ | {"WORKER_LEASE": "8"}, spawn) as fleet:
        workers = [await fleet.start() for _ in range(2)]
        running = [f"runs {number}" for number in range(4)]
        waiting = [f"waits {number}" for number in range(20)]
        async with client(environ) as queue:
            jobs = await put_work(queue, running, 14)
            await fleet.started(*running)
            jobs += await put_work(queue, waiting, 0.1)
            await until(lambda: queue.execute_command("WAIT", 1, 500), what="the replica has heard of them")
        if how == "killed":
            watched.master.kill()
        elif how == "frozen":
            watched.master.freeze()
        else:
            with watched.sentinels[0].client() as asked:
                asked.execute_command("SENTINEL", "FAILOVER", "mymaster")

        def promoted() -> bool:
            with watched.replica.client() as asked:
                return bool(asked.info("replication")["role"] == "master")

        await until(promoted, timeout_s=30, what="the replica is the master", poll_s=0.2)
        if how == "frozen":
            watched.master.thaw()
        async with client(environ) as queue:
            await all_done(queue, jobs, timeout_s=60)
            assert queue.connection_pool.connection_kwargs["master"] is not None
        starts = await fleet.starts()
        assert {key: starts[key] for key in running} == dict.fromkeys(running, 1)
        # What ended in the moment of the failover may be run again: the replica had not heard of its end.
        assert set(starts) == await fleet.effects() == {*running, *waiting}
        assert all(worker.child.exit_code() is None for worker in workers)
        await fleet.stop()


async def test_no_sentinel_answers(environ: dict[str, str], watched: Watched) -> None:
    """One sentinel that answers is enough; without one, opening fails with one line that names them."""
    for sentinel in watched.sentinels[:2]:
        sentinel.kill()
    async with client(environ) as queue:
        assert await queue.ping()
    watched.sentinels[2].kill()
    with pytest.raises(QueueUnreachable, match=r"Redis at default@mymaster/0 \(by .*check REDIS_SENTINELS"):
        async with open_queue(Settings.load("worker", environ)):
            pass


async def test_a_frozen_sentinel_holds_nobody_up(environ: dict[str, str], watched: Watched) -> None:
    """A process opens by what the living sentinels say, long before the frozen one's time is over."""
    clock = asyncio.get_running_loop().time
    patient = environ | {"REDIS_SOCKET_TIMEOUT": "5", "REDIS_CONNECT_TIMEOUT": "5"}
    watched.sentinels[0].freeze()
    began_s = clock()
    async with open_queue(Settings.load("worker", patient)) as queue:
        opened_s = clock() - began_s
        assert await queue.ping()
    assert opened_s < 2.5, "half of what it would take to wait for the frozen one"


async def test_a_master_of_another_name(environ: dict[str, str]) -> None:
    """A name that the sentinels do not know is told as what it is."""
    with pytest.raises(QueueUnreachable, match="no master 'another': no sentinel knows it"):
        async with open_queue(Settings.load("worker", environ | {"REDIS_SENTINEL_MASTER": "another"})):
            pass
