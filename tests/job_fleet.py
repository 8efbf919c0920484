"""Several `tests.job_worker`s on one queue, and what came of their jobs."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from arq.connections import ArqRedis
from arq.constants import result_key_prefix
from arq.jobs import Job as QueuedJob

from config import Settings
from db.server import connect
from fleet.jobs import enqueue
from fleet.queue import open_queue
from tests.job_worker import WORK, Work, make_tables
from tests.processes import Spawned, Spawner
from tests.waiting import until


@dataclass
class JobFleet:
    """Workers are started with `workers_environ`; the test's own view is by `environ`."""

    environ: dict[str, str]
    spawn: Spawner
    workers: list[Spawned] = field(default_factory=list)

    async def start(self, *arguments: str, **changes: str) -> Spawned:
        """One more worker, once it is up."""
        worker = self.spawn("tests.job_worker", *arguments, environ=_allowed(self.environ | changes))
        self.workers.append(worker)
        await asyncio.to_thread(worker.wait_for, " is up")
        return worker

    async def starts(self) -> Counter[str]:
        """How often each job was started."""
        async with connect(Settings.load("poolctl", self.environ)) as connection:
            return Counter(row["key"] for row in await connection.fetch("SELECT key FROM starts"))

    async def effects(self) -> set[str]:
        """Which jobs had their effect."""
        async with connect(Settings.load("poolctl", self.environ)) as connection:
            return {row["key"] for row in await connection.fetch("SELECT key FROM effects")}

    async def started(self, *keys: str, timeout_s: float = 20) -> None:
        """Wait until these jobs were started."""

        async def all_there() -> bool:
            return set(keys) <= set(await self.starts())

        await until(all_there, timeout_s=timeout_s, what=f"the start of {', '.join(keys)}", poll_s=0.1)

    async def stop(self, *, within_s: float = 15.0) -> None:
        """SIGTERM to all that run; each exits 0."""
        running = [worker for worker in self.workers if worker.child.exit_code() is None]
        for worker in running:
            worker.send(signal.SIGTERM)
        for worker in running:
            assert await asyncio.to_thread(worker.wait, within_s) == 0


@asynccontextmanager
async def open_job_fleet(environ: dict[str, str], spawn: Spawner) -> AsyncIterator[JobFleet]:
    """No worker yet; the tables are there."""
    async with connect(Settings.load("poolctl", environ)) as connection:
        await make_tables(connection)
    yield JobFleet(_allowed(environ | {"DB_POOL_MIN": "1", "DB_POOL_MAX": "4", "LOG_FORMAT": "text"}), spawn)


def _allowed(environ: dict[str, str]) -> dict[str, str]:
    """With a REDIS_SOCKET_TIMEOUT of a third of the lease at most."""
    longest_s = float(environ.get("WORKER_LEASE", "20")) / 3
    return environ | {"REDIS_SOCKET_TIMEOUT": str(min(longest_s, float(environ.get("REDIS_SOCKET_TIMEOUT", "5"))))}


@asynccontextmanager
async def client(environ: dict[str, str]) -> AsyncIterator[ArqRedis]:
    """The queue, as one who enqueues has it."""
    async with open_queue(Settings.load("poolctl", environ)) as queue:
        yield queue


async def put_work(queue: ArqRedis, keys: Sequence[str], seconds: float = 0.0) -> list[QueuedJob]:
    """One job for each key."""
    return [await enqueue(queue, WORK, Work(key=key, seconds=seconds), job_id=key) for key in keys]


async def all_done(queue: ArqRedis, jobs: Sequence[QueuedJob], *, timeout_s: float = 30.0) -> None:
    """Wait until each has a result, and nothing is left of it but that."""

    async def ended() -> bool:
        return int(await queue.exists(*(result_key_prefix + job.job_id for job in jobs))) == len(jobs)

    await until(ended, timeout_s=timeout_s, what=f"the end of {len(jobs)} jobs", poll_s=0.1)
    for job in jobs:  # which may be of a client that is closed
        again = QueuedJob(job.job_id, queue, _deserializer=queue.job_deserializer)
        outcome = await again.result_info()
        assert outcome is not None
        assert outcome.success, outcome
    name = queue.default_queue_name
    assert await queue.hlen(f"{name}:claims") == 0
    assert await queue.keys("arq:in-progress:*") == []
