from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from arq.connections import ArqRedis

from config import Settings
from db.errors import DatabaseUnreachable
from db.models import Alert
from db.server import connect, read_server
from fleet.errors import QueueUnreachable
from fleet.process import Process, open_process
from fleet.queue import open_queue
from fleet.registry import Identity, JobCounts, read_fleet
from tests.proxy import open_proxy
from tests.waiting import until

OWN = Identity.own("worker")


async def test_a_process_is_in_the_fleet(environ: dict[str, str]) -> None:
    """While it is open, a process is in the registry with its own pool's numbers and jobs."""
    settings = Settings.load("worker", environ | {"DB_POOL_MIN": "1", "DB_POOL_MAX": "3"})
    async with open_process(settings, job_counts=lambda: JobCounts(complete=5)) as process:
        (entry,) = await read_fleet(process.queue)
        assert entry.id == process.id == f"worker@{OWN.host}:{os.getpid()}"
        assert (entry.pool.floor, entry.pool.limit, entry.pool.size) == (1, 3, 1)
        assert entry.jobs == JobCounts(complete=5)


async def test_models_work_inside(environ: dict[str, str]) -> None:
    """Models find the database in the task that opened the process, and in the tasks that it starts."""

    async def count() -> int:
        return await Alert.all().count()

    async with _process(environ):
        await Alert.create(kind="test", value=1.0)
        assert await asyncio.create_task(count()) == 1


async def test_nothing_is_left(environ: dict[str, str]) -> None:
    """A process that ends leaves no connection to PostgreSQL or Redis and no entry in the registry."""
    async with _process(environ):
        assert await _connections(environ) == 2
    assert await _connections(environ) == 0
    assert await _redis_connections(environ) == 0
    assert await _announced(environ) == []


async def test_nothing_is_left_after_an_error(environ: dict[str, str]) -> None:
    """An error of the body reaches the caller, and everything is closed all the same."""
    with pytest.raises(ZeroDivisionError):
        async with _process(environ):
            _ = 1 / 0
    assert (await _connections(environ), await _announced(environ)) == (0, [])


async def test_nothing_is_left_after_a_cancel(environ: dict[str, str]) -> None:
    """A cancelled process closes everything, too."""
    opened = asyncio.Event()

    async def run() -> None:
        async with _process(environ):
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await opened.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await _connections(environ), await _announced(environ)) == (0, [])


async def test_no_redis(environ: dict[str, str]) -> None:
    """Where Redis is unreachable, the database that was opened before it is closed again."""
    async with open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as proxy:
        await proxy.stop()
        with pytest.raises(QueueUnreachable):
            async with _process(environ, REDIS_PORT=str(proxy.listens_on), REDIS_CONNECT_TIMEOUT="0.3"):
                pass
    assert await _connections(environ) == 0


async def test_no_database(environ: dict[str, str]) -> None:
    """Where the database is unreachable, Redis is not even asked."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as postgres,
        open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as redis,
    ):
        await postgres.stop()
        ports = {"DB_PORT": str(postgres.listens_on), "REDIS_PORT": str(redis.listens_on)}
        with pytest.raises(DatabaseUnreachable):
            async with _process(environ, **ports, DB_CONNECT_TIMEOUT="0.3"):
                pass
        assert redis.accepted == 0


async def test_redis_goes_away_meanwhile(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """A process whose Redis is gone at its end says that it could not leave, and closes its database."""
    async with (
        open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as proxy,
        _process(environ, REDIS_PORT=str(proxy.listens_on)),
    ):
        await proxy.stop()
    assert f"{OWN.id} could not leave the registry" in caplog.text
    assert await _connections(environ) == 0


async def test_the_database_goes_away_meanwhile(environ: dict[str, str]) -> None:
    """A process whose PostgreSQL is gone at its end still leaves the registry."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        _process(environ, DB_PORT=str(proxy.listens_on)),
    ):
        await proxy.stop()
    assert await _announced(environ) == []


async def test_what_a_process_says_at_start(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Warnings about settings, and the pool's effective settings, are each logged once, without a password."""
    caplog.set_level(logging.INFO)
    async with _process(environ, DB_POOL_MAX="4", WORKER_MAX_JOBS="9"):
        pass
    said = [record.getMessage() for record in caplog.records if record.name == "fleet.process"]
    assert sum("WORKER_MAX_JOBS" in line for line in said) == 1
    assert sum(re.search(r"this process: 2.4 connections", line) is not None for line in said) == 1
    assert environ["DB_PASSWORD"] not in caplog.text


async def test_legacy_mode_is_said(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """With DATABASE_URL the line says so."""
    caplog.set_level(logging.INFO)
    url = (
        f"postgres://{environ['DB_USER']}:{environ['DB_PASSWORD']}@{environ['DB_HOST']}:{environ['DB_PORT']}"
        f"/{environ['DB_NAME']}?sslmode=disable"
    )
    redis_only = {name: value for name, value in environ.items() if not name.startswith("DB_")}
    async with _process(redis_only, DATABASE_URL=url):
        pass
    assert "legacy mode" in caplog.text
    assert environ["DB_PASSWORD"] not in caplog.text


@asynccontextmanager
async def _process(environ: dict[str, str], **changes: str) -> AsyncIterator[Process]:
    async with open_process(Settings.load("worker", environ | changes)) as process:
        yield process


async def _connections(environ: dict[str, str]) -> int:
    """How many connections this process has at the server once those that are closing are gone."""
    # Asked under another name than the process's own.
    async with connect(Settings.load("poolctl", environ)) as connection:
        before = -1

        async def steady() -> bool:
            nonlocal before
            now = (await read_server(connection)).by_application.get(OWN.id, 0)
            before, same = now, now == before
            return same

        await until(steady, poll_s=0.1)
        return before


async def _redis_connections(environ: dict[str, str]) -> int:
    async with _queue(environ) as queue:
        return len(await queue.client_list()) - 1


async def _announced(environ: dict[str, str]) -> list[str]:
    async with _queue(environ) as queue:
        return [entry.id for entry in await read_fleet(queue)]


@asynccontextmanager
async def _queue(environ: dict[str, str]) -> AsyncIterator[ArqRedis]:
    async with open_queue(Settings.load("poolctl", environ)) as queue:
        yield queue
