"""What a process writes to standard error: one line an event, as text for people or JSON for machines."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

from config import Settings

_HANDLER = "poolctl"

# What every record has; anything else in it came by `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(settings: Settings) -> None:
    """Log to standard error at LOG_LEVEL in LOG_FORMAT; may be called again, the last call counts.

    DB_ECHO logs every statement **with its values**, which may be personal data or secrets. Without it Tortoise's
    loggers stay at INFO even with LOG_LEVEL=DEBUG, since at DEBUG they write statements, values and credentials.
    """
    as_text = settings.log.format == "text" or (settings.log.format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_HANDLER)
    handler.setFormatter(TextFormatter(settings.role) if as_text else JsonFormatter(settings.role))

    root = logging.getLogger()
    for earlier in [h for h in root.handlers if h.get_name() == _HANDLER]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    level = logging.getLevelNamesMapping()[settings.log.level]
    root.setLevel(level)
    asyncpg_pool = logging.getLogger("asyncpg.pool")
    if not any(isinstance(f, _OneLine) for f in asyncpg_pool.filters):
        asyncpg_pool.addFilter(_OneLine())
    logging.getLogger("tortoise").setLevel(max(level, logging.INFO))
    logging.getLogger("tortoise.db_client").setLevel(logging.DEBUG if settings.db.echo else logging.NOTSET)
    logging.getLogger("pool.events").setLevel(logging.DEBUG if settings.db.pool_log else logging.NOTSET)


class _OneLine(logging.Filter):
    """Leaves out tracebacks. asyncpg.pool logs one at each failed attempt to reach a server that is away."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}: {error}", ()
            record.exc_info = None
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts (UTC), level, logger, message, role, pid, the fields of `extra`, exception."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; a field of `extra` that JSON lacks is written as its `str()`."""
        fields: dict[str, Any] = {
            "ts": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "role": self._role,
            "pid": os.getpid(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD | fields.keys()}
        try:
            return json.dumps(fields | extra, ensure_ascii=False, allow_nan=False, default=str)
        except (TypeError, ValueError):  # a key that is no text, a NaN, an object that contains itself
            extra = {name: str(value) for name, value in extra.items()}
            return json.dumps(fields | extra, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`11:05:23.123 WARNING worker fleet.registry: message field=value`, in local time; tracebacks below."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, and its traceback on further ones."""
        at = _time(record).astimezone().isoformat(sep=" ", timespec="milliseconds")[11:23]
        parts = [f"{at} {record.levelname:<7} {self._role} {record.name}: {record.getMessage()}"]
        parts += [f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD]
        lines = [" ".join(parts)]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        if record.stack_info:
            lines.append(record.stack_info)
        return "\n".join(lines)


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
