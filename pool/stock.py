"""Tortoise's own engine (DB_ENGINE=tortoise), for comparison: what can be seen of its pool."""

from __future__ import annotations

from tortoise.backends.asyncpg.client import AsyncpgDBClient

from pool.engine import PoolClient
from pool.statistics import PoolSnapshot


def snapshot_of(client: AsyncpgDBClient) -> PoolSnapshot:
    """The pool of either engine now. Of Tortoise's own only sizes are known; who waits, and for how long, is not."""
    if isinstance(client, PoolClient):
        return client.pool.snapshot()
    pool = client._pool  # no public way to it
    size, idle = (pool.get_size(), pool.get_idle_size()) if pool is not None else (0, 0)
    return PoolSnapshot(
        name=client.application_name or client.connection_name,
        floor=client.pool_minsize,
        limit=client.pool_maxsize,
        ceiling=client.pool_maxsize,
        size=size,
        idle=idle,
        in_use=size - idle,
        waiting=0,
        peak=0,
        acquires=0,
        timeouts=0,
        queries=0,
        wait_p95_s=0.0,
    )
