"""What can go wrong with the pool itself. Subclasses of Tortoise's OperationalError, which callers handle already."""

from __future__ import annotations

from tortoise.exceptions import OperationalError


class PoolError(OperationalError):
    """Base of the pool's errors; itself raised when a pool is used that is not open."""


class PoolTimeout(PoolError):
    """No connection came free, or could be opened, within DB_POOL_TIMEOUT."""
