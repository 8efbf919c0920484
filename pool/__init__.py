"""One process's connection pool: the Tortoise engine, its guards, its statistics."""

from __future__ import annotations

from pool.errors import PoolError, PoolTimeout
from pool.pool import Pool
from pool.recording import Recording, recording
from pool.statistics import PoolSnapshot

__all__ = ["Pool", "PoolError", "PoolSnapshot", "PoolTimeout", "Recording", "recording"]
