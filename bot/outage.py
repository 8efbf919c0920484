"""What people are told of a command that failed because Redis or the database did: one line that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tortoise.exceptions import DBConnectionError, OperationalError

from config import Settings
from db.errors import DRIVER_ERRORS, DatabaseError, cause_of, classify, first_line
from db.server import target
from fleet.errors import FleetError
from fleet.queue import address
from pool import PoolError

_LINES = (DatabaseError, FleetError, PoolError)  # their texts are lines for people, without secrets
# Never plain OSError or TimeoutError: those may come from whatever else a command talks to.
_DATABASE = (
    DBConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InternalClientError,
)
_REDIS = (RedisConnectionError, RedisTimeoutError, ResponseError)


def outage(error: BaseException, settings: Settings) -> str | None:
    """The line for people where `error` is one, or where Redis or the database is its cause; None for any other."""
    if isinstance(error, _LINES):
        return str(error)
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is one for one in seen):  # causes may form a ring
        if isinstance(cause, _DATABASE):
            return str(classify(cause, target(settings)))
        if isinstance(cause, OperationalError) and isinstance(cause.__cause__, TimeoutError):
            return f"{target(settings)}: {first_line(cause)}"  # of DB_COMMAND_TIMEOUT
        if isinstance(cause, _REDIS):
            trouble = "refuses" if isinstance(cause, ResponseError) else "does not answer"
            return f"Redis at {address(settings.redis)} {trouble} ({first_line(cause)})"
        seen.append(cause)
        cause = cause_of(cause)
    return None


@contextmanager
def asking_database(settings: Settings) -> Iterator[None]:
    """For statements on a connection of the driver's own: whatever it raises inside becomes a DatabaseError.

    There a plain OSError or TimeoutError is the database's, too. What the pool raises stays.
    """
    try:
        yield
    except PoolError:  # some are driver errors, too, and say more by themselves
        raise
    except DRIVER_ERRORS as error:
        raise classify(error, target(settings)) from error
