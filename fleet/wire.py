"""What lies in Redis between the one who enqueues a job and the one who runs it: JSON, never pickle.

Whoever can write to Redis could run code in every process that unpickles what lies there. JSON has neither tuples
nor exceptions: a tuple arrives as a list, and a job's exception as `JobFailed`.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel


class JobFailed(Exception):
    """A job raised an exception in the worker that ran it; `type` and `message` are that exception's."""

    def __init__(self, type: str, message: str) -> None:  # noqa: A002 the word that is on the wire
        super().__init__(f"{type}: {message}" if message else type)
        self.type = type
        self.message = message


def dumps(value: Any) -> bytes:
    """`value` as JSON in UTF-8; arq's `job_serializer`.

    pydantic models become objects, exceptions `{"type": …, "message": …}`. Raises TypeError for anything else that
    JSON lacks, ValueError for NaN and infinity.
    """
    text = json.dumps(value, default=_encode, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def loads(raw: bytes) -> Any:
    """The value of `dumps`; arq's `job_deserializer`. Raises ValueError if `raw` is not JSON.

    Where `raw` is arq's record of a job that failed, its result is a `JobFailed`, which arq's `Job.result()` raises.
    """
    value = json.loads(raw)
    # arq's record of a result: "s" says whether the job succeeded, "r" is what it returned or raised.
    if isinstance(value, dict) and value.get("s") is False and isinstance(value.get("r"), dict):
        value["r"] = JobFailed(str(value["r"].get("type")), str(value["r"].get("message", "")))
    return value


def _encode(value: Any) -> Any:
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": str(value)}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON: give a pydantic model, or plain values")
