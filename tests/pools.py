"""A pool on the test's own database, with only what a test is about spelled out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from config import Settings, asyncpg_pool_kwargs
from pool import Pool


@contextlib.asynccontextmanager
async def open_pool(
    environ: Mapping[str, str],
    *,
    acquire_timeout_s: float = 10.0,
    pre_ping: bool = True,
    max_lifetime_s: float = 0.0,
    **asyncpg_arguments: Any,
) -> AsyncIterator[Pool]:
    """A pool of 0 to 2 connections by default; other arguments are those of `asyncpg.create_pool`."""
    arguments = asyncpg_pool_kwargs(Settings.load("worker", environ)) | {"min_size": 0, "max_size": 2}
    pool = Pool(
        "tested",
        acquire_timeout_s=acquire_timeout_s,
        pre_ping=pre_ping,
        max_lifetime_s=max_lifetime_s,
        **(arguments | asyncpg_arguments),
    )
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()
