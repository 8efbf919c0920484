"""One process's connection pool: the Tortoise engine, its guards, its statistics."""

from __future__ import annotations

from pool.errors import PoolClosed, PoolError, PoolSaturated, PoolTimeout, TooManyClients
from pool.options import PoolOptions
from pool.pool import Pool
from pool.recording import Recording, recording
from pool.statistics import PoolSnapshot

__all__ = [
    "Pool",
    "PoolClosed",
    "PoolError",
    "PoolOptions",
    "PoolSaturated",
    "PoolSnapshot",
    "PoolTimeout",
    "Recording",
    "TooManyClients",
    "recording",
]
