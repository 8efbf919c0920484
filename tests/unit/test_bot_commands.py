from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bot.commands import fleet_table, number_of_jobs, server_table
from bot.errors import BadArguments
from db.server import ServerReport
from fleet.exercise import summary
from fleet.jobs import ExerciseResult
from fleet.registry import JobCounts, ProcessEntry
from pool import PoolSnapshot


def result(process: str, *, wait_ms: float, errors: int = 0, first_error: str | None = None) -> ExerciseResult:
    return ExerciseResult(
        process=process,
        reads=10,
        transactions=9,
        errors=errors,
        first_error=first_error,
        elapsed_ms=100,
        checkouts=19,
        wait_p50_ms=wait_ms,
        wait_p95_ms=2 * wait_ms,
        wait_p99_ms=3 * wait_ms,
        queries=40,
        query_p50_ms=1,
        query_p95_ms=2,
        query_p99_ms=3,
    )


def test_fleet_table() -> None:
    """One line a process: its pool as in use, size, limit, and its jobs."""
    pool = PoolSnapshot("worker", 2, 10, 5, 2, 3, 0, 4, 0, 0, 0, 0.0)
    entry = ProcessEntry("worker", "host", 12, datetime.now(UTC), 1.0, 0.0, pool, JobCounts(1, 20, 3, 0))
    assert fleet_table([entry]).splitlines() == [
        "role    process  in use  size  limit  jobs  done  failed",
        "worker  host:12       3     5     10     1    20       3",
    ]


def test_server_table() -> None:
    """Connections by application and together, each as a share of max_connections."""
    server = ServerReport("17.0", 200, 3, 2, 30, 1, 29, 0, {"worker@a:1": 20, "": 10})
    assert server_table(server).splitlines() == [
        "application  connections  of max_connections",
        "worker@a:1            20  10%",
        "(no name)             10  5%",
        "all                   30  15% of 200",
        "195 of 200 are for everyone, 5 are reserved",
    ]


def test_summary() -> None:
    """Counts are summed; p50 is the median job's, p95 and p99 are the worst job's."""
    results = [result("worker@a:1", wait_ms=1), result("worker@a:1", wait_ms=2), result("worker@b:2", wait_ms=9)]
    assert summary(results, []).splitlines() == [
        "jobs by worker: worker@a:1 2, worker@b:2 1",
        "120 queries, 30 reads, 27 transactions, 0 errors",
        "wait for a connection: p50 2.0 ms (median job), p95 18.0 ms, p99 27.0 ms (worst job)",
        "query: p50 1.0 ms (median job), p95 2.0 ms, p99 3.0 ms (worst job)",
    ]


def test_summary_of_failures() -> None:
    """Failed jobs and errors inside of jobs are told, each with the first text."""
    results = [result("worker@a:1", wait_ms=1), result("worker@a:1", wait_ms=1, errors=2, first_error="PoolTimeout")]
    lines = summary(results, ["JobFailed: a", "JobFailed: b"]).splitlines()
    assert "2 errors" in lines[1]
    assert lines[-2:] == ["first error: PoolTimeout", "failed jobs: 2, the first: JobFailed: a"]
    assert summary([], ["JobFailed: a"]) == "failed jobs: 1, the first: JobFailed: a"


@pytest.mark.parametrize(("arguments", "jobs"), [("", 10), ("1", 1), ("1000", 1000), ("007", 7)])
def test_number_of_jobs(arguments: str, jobs: int) -> None:
    """/exercise takes 1 to 1000 jobs, 10 unless told."""
    assert number_of_jobs(arguments) == jobs


@pytest.mark.parametrize("arguments", ["0", "1001", "-1", "1.5", "ten", "1 2", "²", "٣", "9" * 5000])
def test_bad_number_of_jobs(arguments: str) -> None:
    """Anything else is refused, in a line that names the bounds."""
    with pytest.raises(BadArguments, match="from 1 to 1000"):
        number_of_jobs(arguments)
