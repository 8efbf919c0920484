"""A pool on the test's own database, with only what a test is about spelled out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from config import Settings, asyncpg_pool_kwargs
from pool import Pool, PoolOptions


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
