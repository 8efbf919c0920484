from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from arq.jobs import deserialize_result, serialize_job, serialize_result
from hypothesis import given
from hypothesis import strategies as st

from fleet.jobs import ExercisePool
from fleet.wire import JobFailed, dumps, loads

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(plain.filter(lambda value: not isinstance(value, dict) or "s" not in value))
def test_plain_values_survive(value: object) -> None:
    """What JSON knows arrives as it was sent."""
    assert loads(dumps(value)) == value


def test_tuples_arrive_as_lists() -> None:
    """JSON has no tuples."""
    assert loads(dumps({"a": (1, (2, 3))})) == {"a": [1, [2, 3]]}


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_that_are_not_finite_are_refused(number: bytes) -> None:
    """What `dumps` could not write is not read."""
    with pytest.raises(ValueError, match="is not a finite number"):
        loads(b'{"x":' + number + b"}")


def test_models_arrive_as_objects() -> None:
    """A pydantic model is sent as its fields."""
    assert loads(dumps([ExercisePool(queries=7)])) == [{"queries": 7, "concurrency": 10, "hold_ms": 5.0}]


def test_text_is_written_as_it_reads() -> None:
    """Text outside ASCII is not escaped, so that redis-cli shows it as it was sent."""
    assert dumps({"text": "Tee für zwei"}) == '{"text":"Tee für zwei"}'.encode()


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", {"deep": [object()]}])
def test_what_json_lacks_is_refused(value: object) -> None:
    """An object that is no JSON raises instead of being sent as something else."""
    with pytest.raises(TypeError, match="is not JSON"):
        dumps(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value: float) -> None:
    """NaN and infinity raise: other readers of JSON could not read them."""
    with pytest.raises(ValueError, match="JSON"):
        dumps(value)


def test_pickle_is_not_read() -> None:
    """Bytes of pickle raise ValueError and run nothing."""
    ran: list[str] = []
    with pytest.raises(ValueError, match=r".+"):
        loads(pickle.dumps({"ran": ran}))


def test_a_failed_jobs_exception_reaches_the_caller() -> None:
    """The record that arq makes of an exception is JSON, and is read back as JobFailed with its type and message."""
    raw = _result(success=False, result=KeyError("missing"))
    assert json.loads(raw)["r"] == {"type": "KeyError", "message": "'missing'", "traceback": None}
    failure = deserialize_result(raw, deserializer=loads).result
    assert isinstance(failure, JobFailed)
    assert (failure.type, failure.message, str(failure)) == ("KeyError", "'missing'", "KeyError: 'missing'")


def test_a_traceback_reaches_the_caller() -> None:
    """Of an exception that was raised the caller gets the traceback, its causes included, and the end of a long one."""
    try:
        raise KeyError("missing") from ValueError("x" * 30_000)
    except KeyError as error:
        failure = deserialize_result(_result(success=False, result=error), deserializer=loads).result
    assert failure.traceback.endswith("KeyError: 'missing'\n")
    assert "test_a_traceback_reaches_the_caller" in failure.traceback
    assert len(failure.traceback) <= 20_000


class Awkward(Exception):
    """An error whose text cannot be made."""

    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("error", [Awkward(), OSError("no file \udcff")], ids=["without text", "lone surrogate"])
def test_any_error_can_be_sent(error: Exception) -> None:
    """An error that cannot be written as it is does not keep a job's end from being recorded."""
    failure = deserialize_result(_result(success=False, result=error), deserializer=loads).result
    assert failure.type == type(error).__name__


def test_dataclasses_arrive_as_objects() -> None:
    """A dataclass is sent as its fields."""

    @dataclass
    class Point:
        x: int
        at: datetime

    assert loads(dumps(Point(1, datetime(2030, 1, 1, tzinfo=UTC)))) == {"x": 1, "at": "2030-01-01T00:00:00Z"}


def test_a_result_that_looks_like_a_failure_is_left_alone() -> None:
    """Only the record of a failed job is read as a failure, whatever a successful job returns."""
    looks_failed = {"type": "KeyError", "message": "no"}
    assert deserialize_result(_result(success=True, result=looks_failed), deserializer=loads).result == looks_failed


def test_a_jobs_arguments_are_json_on_the_wire() -> None:
    """What arq stores of a job is a JSON object."""
    raw = serialize_job("exercise_pool", (), {"queries": 3}, None, 1, serializer=dumps)
    assert json.loads(raw) == {"t": None, "f": "exercise_pool", "a": [], "k": {"queries": 3}, "et": 1}


def _result(*, success: bool, result: object) -> bytes:
    raw = serialize_result(
        "job", (), {}, 1, 1, success, result, 1, 2, "ref", "arq:queue", job_id="id", serializer=dumps
    )
    assert raw is not None
    return raw
