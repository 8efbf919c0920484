from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from arq.jobs import deserialize_job
from pydantic import ValidationError

from fleet.jobs import (
    EXERCISE_POOL,
    OWN_JOBS,
    PRUNE_SAMPLES,
    ExercisePool,
    ExerciseResult,
    Job,
    NoArguments,
    job_payload,
)
from fleet.wire import dumps, loads
from worker.exercise import percentile

RESULT = ExerciseResult(
    process="worker@host:1",
    reads=5,
    transactions=4,
    errors=1,
    first_error="PoolTimeout: none free",
    elapsed_ms=12.5,
    checkouts=9,
    wait_p50_ms=0.1,
    wait_p95_ms=0.2,
    wait_p99_ms=0.3,
    queries=21,
    query_p50_ms=0.4,
    query_p95_ms=0.5,
    query_p99_ms=0.6,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("queries", 0),
        ("queries", 100_001),
        ("concurrency", 0),
        ("concurrency", 1_001),
        ("hold_ms", -1),
        ("hold_ms", 60_001),
        ("hold_ms", float("nan")),
        ("hold", 5),
    ],
)
def test_arguments_out_of_bounds_fail_at_the_caller(field: str, value: float) -> None:
    """Arguments that a job cannot have cannot be made, so they are never enqueued."""
    with pytest.raises(ValidationError, match=field):
        ExercisePool.model_validate({field: value})


def test_arguments_do_not_change() -> None:
    """Arguments that were checked stay as they were."""
    with pytest.raises(ValidationError, match="frozen"):
        ExercisePool().queries = 0  # type: ignore[misc] # what the test is about


def test_arguments_and_result_survive_the_wire() -> None:
    """A job reads the arguments that were sent, and its caller the result that was returned."""
    arguments = ExercisePool(queries=7, concurrency=3, hold_ms=0.5)
    assert EXERCISE_POOL.read_arguments(loads(dumps(arguments))) == arguments
    assert EXERCISE_POOL.read_result(loads(dumps(RESULT))) == RESULT


def test_a_newer_workers_result_is_read() -> None:
    """A caller reads the result of a worker that knows more fields: during an update both versions run."""
    assert EXERCISE_POOL.read_result({**RESULT.model_dump(), "new_field": 1}) == RESULT


def test_jobs_have_names_of_their_own() -> None:
    """No two jobs of the contract share a name on the wire."""
    assert len({job.name for job in OWN_JOBS}) == len(OWN_JOBS)


def test_a_job_without_arguments_refuses_some() -> None:
    """An argument sent to a job that takes none is an error of the caller, and is not dropped."""
    with pytest.raises(ValidationError, match="days"):
        PRUNE_SAMPLES.read_arguments({"days": 1})
    assert PRUNE_SAMPLES.read_arguments({}) == NoArguments()


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 95, 0.0),
        ([3.0], 50, 3.0),
        ([1.0, 2.0], 50, 1.0),
        ([5.0, 1.0, 4.0, 2.0, 3.0], 50, 3.0),
        ([float(n) for n in range(1, 101)], 95, 95.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([1.0, 2.0, 3.0], 99, 3.0),
        ([1.0, 2.0, 3.0], 0, 1.0),
    ],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    """The p-th percentile is the smallest value that at least p percent of all values do not exceed."""
    assert percentile(values, percent) == expected


@dataclass(frozen=True)
class Point:
    """Arguments as a plain dataclass."""

    x: int
    at: datetime | None = None


POINT = Job("point", Point, Point)


def test_a_dataclass_is_a_contract() -> None:
    """Arguments and results may be plain dataclasses, which arrive as such."""
    point = Point(3, datetime(2030, 1, 1, tzinfo=UTC))
    assert POINT.read_arguments(loads(dumps(POINT.write_arguments(point)))) == point
    assert POINT.read_result(loads(dumps(point))) == point


def test_a_wrong_dataclass_fails_at_the_caller() -> None:
    """A dataclass does not check its fields; enqueueing does."""
    with pytest.raises(ValidationError, match="x"):
        job_payload(POINT, Point("three"))  # type: ignore[arg-type] # what the test is about
    with pytest.raises(TypeError, match="job point takes Point, not NoArguments"):
        job_payload(POINT, NoArguments())  # type: ignore[arg-type] # what the test is about


def test_a_payload_is_arqs() -> None:
    """What is enqueued is what arq's own client would write, so that arq's tools can read it."""
    definition = deserialize_job(job_payload(EXERCISE_POOL, ExercisePool(queries=3)), deserializer=loads)
    assert (definition.function, definition.args, definition.kwargs["queries"]) == ("exercise_pool", [], 3)
