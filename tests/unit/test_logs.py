from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from config import Settings
from telemetry.logs import JsonFormatter, TextFormatter, configure_logging

TOUCHED = ("", "tortoise", "tortoise.db_client")  # the root logger and those that are told more


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is the interpreter's: leave it as it was."""
    loggers = [logging.getLogger(name) for name in TOUCHED]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_a_record_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each record is one line of JSON with time, level, logger, message, role, pid and the fields of `extra`."""
    configure_logging(_settings(LOG_FORMAT="json"))
    logging.getLogger("fleet.queue").warning("två\nrader %d", 2, extra={"pool": "worker@host:1", "size": 3})
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert datetime.fromisoformat(record.pop("ts")).utcoffset() is not None
    assert record == {
        "level": "WARNING",
        "logger": "fleet.queue",
        "message": "två\nrader 2",
        "role": "worker",
        "pid": os.getpid(),
        "pool": "worker@host:1",
        "size": 3,
    }
    assert "två" in line


def test_an_exception_is_a_field_of_its_line() -> None:
    """A traceback stays on the record's own line, in the field `exception`."""
    line = JsonFormatter("bot").format(_failed_record())
    assert "\n" not in line
    assert json.loads(line)["exception"].splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, float("nan"), {("tuple", "key"): 1}, {"deep": float("inf")}, ValueError("no")]
)
def test_extra_that_json_lacks_is_still_logged(value: object) -> None:
    """A field of `extra` that is no JSON costs neither its record nor the line's form."""
    record = logging.makeLogRecord({"msg": "fine", "strange": value})
    fields = json.loads(JsonFormatter("bot").format(record), parse_constant=_refuse)
    assert fields["message"] == "fine"
    assert fields["strange"]


def test_extra_cannot_replace_a_records_own_fields() -> None:
    """The level of a record is its level, whatever its `extra` says."""
    record = logging.makeLogRecord({"msg": "fine", "levelname": "INFO", "level": "CRITICAL", "role": "intruder"})
    fields = json.loads(JsonFormatter("bot").format(record))
    assert (fields["level"], fields["role"]) == ("INFO", "bot")


def test_text_is_compact() -> None:
    """As text a record is one line with time, level, role, logger, message and fields; a traceback follows."""
    first, *following = TextFormatter("bot").format(_failed_record()).splitlines()
    assert first[2] == first[5] == ":"
    assert first[12:] == " ERROR   bot fleet.x: it broke attempt=2"
    assert following[-1] == "ZeroDivisionError: division by zero"


def test_auto_is_json_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal LOG_FORMAT=auto writes JSON."""
    configure_logging(_settings())
    logging.getLogger("x").info("hello")
    assert json.loads(capsys.readouterr().err)["message"] == "hello"


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The last configuration counts alone, and other handlers are left where they are."""
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    configure_logging(_settings(LOG_FORMAT="text"))
    configure_logging(_settings(LOG_FORMAT="json", LOG_LEVEL="WARNING"))
    logging.getLogger("x").info("not this")
    logging.getLogger("x").warning("this")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "this"
    assert other in logging.getLogger().handlers


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        ({"LOG_LEVEL": "DEBUG"}, []),
        ({"DB_ECHO": "true"}, ["SELECT 1"]),
        ({"DB_ECHO": "true", "LOG_LEVEL": "WARNING"}, ["SELECT 1"]),
    ],
)
def test_statements_are_logged_with_db_echo_alone(
    environ: dict[str, str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """DB_ECHO logs Tortoise's statements at every level; without it not even LOG_LEVEL=DEBUG does."""
    configure_logging(_settings(LOG_FORMAT="json", **environ))
    logging.getLogger("tortoise.db_client").debug("SELECT 1")
    logging.getLogger("tortoise").debug("connections and their credentials")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == expected


@pytest.mark.parametrize(("environ", "lines"), [({}, 0), ({"LOG_LEVEL": "DEBUG"}, 1), ({"DB_POOL_LOG": "true"}, 1)])
def test_the_pool_s_events_are_shown_with_db_pool_log(
    environ: dict[str, str], lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """DB_POOL_LOG shows them at every level; the pool writes none without it."""
    configure_logging(_settings(LOG_FORMAT="json", **environ))
    logging.getLogger("pool.events").debug("check-out")
    assert len(capsys.readouterr().err.splitlines()) == lines


def _settings(**environ: str) -> Settings:
    return Settings.load("worker", environ)


def _refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


def _failed_record() -> logging.LogRecord:
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        record = logging.LogRecord("fleet.x", logging.ERROR, __file__, 1, "it %s", ("broke",), sys.exc_info())
        record.attempt = 2
        return record
    raise AssertionError


def test_a_server_that_is_away_is_a_line_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """What asyncpg logs at each attempt to reach a lost server is one line that names the error."""
    configure_logging(_settings(LOG_FORMAT="text"))
    configure_logging(_settings(LOG_FORMAT="text"))  # once more adds nothing
    try:
        raise ConnectionRefusedError(111, "refused")
    except OSError:
        logging.getLogger("asyncpg.pool").warning("retrying", exc_info=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("asyncpg.pool: retrying: ConnectionRefusedError: [Errno 111] refused")
