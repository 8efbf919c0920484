"""A pool on the test's own database, with only what a test is about spelled out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from config import Settings, asyncpg_pool_kwargs
from pool import Pool, PoolOptions
from tests.waiting import until


@contextlib.asynccontextmanager
async def open_pool(environ: Mapping[str, str], **arguments: Any) -> AsyncIterator[Pool]:
    """A pool of 0 to 2 connections of any age by default; `arguments` are PoolOptions' or `asyncpg.create_pool`'s."""
    options = PoolOptions.taken_from(arguments := {"acquire_timeout_s": 10.0, "max_lifetime_s": 0.0} | arguments)
    asyncpg_arguments = asyncpg_pool_kwargs(Settings.load("worker", environ)) | {"min_size": 0, "max_size": 2}
    pool = Pool("tested", options, **(asyncpg_arguments | arguments))
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


async def acquired(pool: Pool, count: int) -> list[Any]:
    """So many connections, held by the calling task."""
    return [await pool.acquire() for _ in range(count)]


async def released(pool: Pool, *connections: Any) -> None:
    """Gives them back, in this order."""
    for connection in connections:
        await pool.release(connection)


async def waiting(pool: Pool, count: int) -> None:
    """Returns when so many callers wait."""
    await until(lambda: pool.snapshot().waiting == count, timeout_s=5, what=f"{count} callers wait", poll_s=0.001)


async def idle_for(seconds: float) -> None:
    """Lets time pass: the pool looks at how long ago something was."""
    started = time.monotonic()
    await until(lambda: time.monotonic() - started > seconds, what="time passes")
