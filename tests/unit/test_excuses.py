from __future__ import annotations

import asyncpg
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from tortoise.exceptions import DBConnectionError, IntegrityError, OperationalError

from pool.errors import PoolClosed, PoolSaturated, PoolTimeout, TooManyClients
from worker.excuses import excuse


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def during(error: Exception, handled: Exception) -> Exception:
    error.__context__ = handled
    return error


AWAY = caused(DBConnectionError("the connection was lost"), asyncpg.ConnectionDoesNotExistError("closed"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PoolTimeout("full"), "the pool was full"),
        (PoolSaturated("full"), "the pool was full"),
        (TooManyClients("none left"), "the database was away"),
        (AWAY, "the database was away"),
        (caused(DBConnectionError("cannot connect"), ConnectionRefusedError(111, "refused")), "the database was away"),
        (caused(DBConnectionError("cannot connect"), TimeoutError()), "the database was away"),
        (asyncpg.AdminShutdownError("terminating"), "the database was away"),
        (asyncpg.CannotConnectNowError("starting up"), "the database was away"),
        (RedisConnectionError("refused"), "Redis was away"),
        (ExceptionGroup("tasks", [AWAY, PoolTimeout("full")]), "the database was away"),
        (caused(ValueError("the job's own words"), AWAY), "the database was away"),
        (caused(asyncpg.InterfaceError("no"), AWAY), "the database was away"),
    ],
    ids=lambda value: getattr(value, "__class__", type(value)).__name__ if isinstance(value, Exception) else None,
)
def test_what_is_not_the_jobs_fault(error: Exception, expected: str) -> None:
    """An error excuses the job where what it stands on was away or full, also behind an error or in a group."""
    assert excuse(error) == expected


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        IntegrityError("twice"),
        OperationalError("the statement took longer than DB_COMMAND_TIMEOUT, and was cancelled"),
        PoolClosed("closed"),
        ConnectionRefusedError(111, "some other server that the job talks to"),
        TimeoutError(),
        asyncpg.InterfaceError("another operation is in progress"),
        during(asyncpg.InterfaceError("the server expects 1 argument, 2 were passed"), RedisConnectionError("refused")),
        caused(DBConnectionError("cannot connect"), asyncpg.InvalidPasswordError("wrong")),
        ResponseError("WRONGTYPE"),
        ExceptionGroup("tasks", [AWAY, ValueError("no")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_the_jobs_fault(error: Exception) -> None:
    """Everything else is the job's: its own network, its statements, and what does not pass by itself."""
    assert excuse(error) is None


def test_a_ring_of_causes() -> None:
    """Errors that name each other as their causes have no excuse, and are looked through once."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert excuse(one) is None
    group = ExceptionGroup("both", [one])
    one.__cause__ = group
    assert excuse(group) is None
