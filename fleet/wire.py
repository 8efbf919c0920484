"""What lies in Redis between the one who enqueues a job and the one who runs it: JSON, never pickle.

Whoever can write to Redis could run code in every process that unpickles what lies there. JSON has neither tuples
nor exceptions: a tuple arrives as a list, and a job's exception as `JobFailed`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import traceback
from typing import Any

from pydantic import BaseModel, TypeAdapter

from fleet.errors import text_of

LONGEST_TRACEBACK = 20_000  # characters; the end of it says most


class JobFailed(Exception):
    """A job raised an exception in the worker that ran it: its `type`, `message` and `traceback` (None: not known)."""

    def __init__(self, type: str, message: str, traceback: str | None = None) -> None:  # noqa: A002 the word on the wire
        super().__init__(f"{type}: {message}" if message else type)
        self.type = type
        self.message = message
        self.traceback = traceback


def dumps(value: Any) -> bytes:
    """`value` as JSON in UTF-8; arq's `job_serializer`.

    pydantic models and dataclasses become objects, exceptions `{"type": …, "message": …, "traceback": …}`. Raises
    TypeError for anything else that JSON lacks, ValueError for NaN and infinity.
    """
    text = json.dumps(value, default=_encode, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate, as in the text of an error about a file's name, is no UTF-8: it is escaped.
    return text.encode(errors="backslashreplace")


def loads(raw: bytes) -> Any:
    """The value of `dumps`; arq's `job_deserializer`. Raises ValueError if `raw` is not JSON, or has a number
    that is not finite: `dumps` could not write it.

    Where `raw` is arq's record of a job that failed, its result is a `JobFailed`, which arq's `Job.result()` raises.
    """
    try:
        value = json.loads(raw, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None
    # arq's record of a result: "s" says whether the job succeeded, "r" is what it returned or raised.
    if isinstance(value, dict) and value.get("s") is False and isinstance(value.get("r"), dict):
        error = value["r"]
        value["r"] = JobFailed(str(error.get("type")), str(error.get("message", "")), error.get("traceback"))
    return value


def describe_error(error: BaseException) -> dict[str, str | None]:
    """`{"type": …, "message": …, "traceback": …}` of an exception; the traceback is None for one never raised."""
    described: dict[str, str | None] = {"type": type(error).__name__, "message": text_of(error), "traceback": None}
    if error.__traceback__ is not None:
        described["traceback"] = "".join(traceback.format_exception(error))[-LONGEST_TRACEBACK:]
    return described


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _encode(value: Any) -> Any:
    if isinstance(value, BaseException):
        return describe_error(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return TypeAdapter(type(value)).dump_python(value, mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON: give a pydantic model, a dataclass, or plain values")
