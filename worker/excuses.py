"""Errors that are not the job's fault: what it stands on was away, and may be back at its next try."""

from __future__ import annotations

import asyncpg
from redis.exceptions import BusyLoadingError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tortoise.exceptions import DBConnectionError

from db.errors import cause_of, classify
from pool.errors import PoolSaturated, PoolTimeout

_POOL_FULL = (PoolTimeout, PoolSaturated)
# Never plain OSError or TimeoutError: those may come from whatever else a job talks to.
_DATABASE = (
    DBConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
)
_REDIS = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError)


def excuse(error: BaseException) -> str | None:
    """Why `error` is not the job's fault, in a few words; None where it is.

    An error has the excuse of its cause, a group of errors needs one for each.
    """
    return _excuse(error, ())


def _excuse(error: BaseException, seen: tuple[BaseException, ...]) -> str | None:
    if any(error is one for one in seen):  # causes may form a ring
        return None
    seen = (*seen, error)
    if isinstance(error, BaseExceptionGroup):
        each = [_excuse(inner, seen) for inner in error.exceptions]
        return each[0] if all(each) else None
    if isinstance(error, _POOL_FULL):
        return "the pool was full"
    if isinstance(error, _DATABASE):
        return "the database was away" if classify(error, "").transient else None
    if isinstance(error, _REDIS):
        return "Redis was away"
    cause = cause_of(error)
    return None if cause is None else _excuse(cause, seen)
