from __future__ import annotations

import asyncpg
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tortoise.exceptions import DBConnectionError, IntegrityError, OperationalError

from bot.outage import outage
from config import Settings
from db.errors import DatabaseUnreachable
from fleet.errors import QueueLost
from pool import PoolTimeout

SETTINGS = Settings.load("bot", {"DB_HOST": "db.example", "REDIS_HOST": "redis.example", "DB_PASSWORD": "secret-word"})
DATABASE = "postgres@db.example:5432/postgres: "
REDIS = "Redis at default@redis.example:6379/0 "


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def hiding(error: Exception, context: Exception) -> Exception:
    error.__context__ = context
    return error


AWAY = caused(DBConnectionError("the connection was lost"), asyncpg.ConnectionDoesNotExistError("closed"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DatabaseUnreachable("a line"), "a line"),
        (QueueLost("a line"), "a line"),
        (PoolTimeout("a line"), "a line"),
        (AWAY, f"{DATABASE}closed: "),
        (caused(DBConnectionError("cannot connect"), TimeoutError()), f"{DATABASE}no answer in time: "),
        (asyncpg.AdminShutdownError("terminating\nDETAIL"), f"{DATABASE}terminating: "),
        (
            caused(OperationalError("text"), asyncpg.DiskFullError("no space left")),
            f"{DATABASE}DiskFullError: no space",
        ),
        (caused(OperationalError("longer than DB_COMMAND_TIMEOUT"), TimeoutError()), f"{DATABASE}longer than DB_COM"),
        (hiding(asyncpg.InterfaceError("connection is closed"), AWAY), f"{DATABASE}closed: "),
        (caused(ValueError("the command's own words"), AWAY), f"{DATABASE}closed: "),
        (RedisConnectionError("refused"), f"{REDIS}does not answer (refused)"),
        (RedisTimeoutError(), f"{REDIS}does not answer (TimeoutError)"),
        (OutOfMemoryError("maxmemory"), f"{REDIS}refuses (maxmemory)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_people_are_told(error: Exception, line: str) -> None:
    """An outage is one line that names the server and the cause, also behind another error."""
    told = outage(error, SETTINGS)
    assert told is not None
    assert told.startswith(line)
    assert "\n" not in told
    assert "secret-word" not in told


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        IntegrityError("twice"),
        TimeoutError("of some other server that the command talks to"),
        ConnectionRefusedError(111, "some other server"),
        asyncpg.UndefinedTableError("a mistake of the command"),
        caused(caused(ValueError("a"), ValueError("b")), IntegrityError("twice")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_outage(error: Exception) -> None:
    """Everything else is the command's own, and may show what is not for people."""
    assert outage(error, SETTINGS) is None


def test_causes_in_a_ring() -> None:
    """Errors that are each other's cause are no outage."""
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert outage(first, SETTINGS) is None
