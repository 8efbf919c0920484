"""The table and the line about connections with which `poolctl up` ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from db.server import ServerReport
from fleet import JobCounts, ProcessEntry
from local import Child, LocalProcess
from pool import PoolSnapshot
from poolctl.fleet_table import connections_line, process_table
from poolctl.screen import open_screen


@pytest.fixture
def child() -> Iterator[Child]:
    """A process that has a number."""
    with subprocess.Popen(["true"]) as process:
        yield Child(process, ended=lambda pid: None)


def entry(pid: int, **jobs: int) -> ProcessEntry:
    pool = PoolSnapshot(
        name="worker@host:7",
        floor=2,
        limit=10,
        size=5,
        idle=4,
        in_use=1,
        waiting=0,
        peak=7,
        acquires=90,
        timeouts=0,
        queries=1234,
        wait_p95_s=0.0125,
    )
    return ProcessEntry("worker", "host", pid, datetime.now(UTC), 3.0, 0.0, pool, JobCounts(**jobs))


def report(**changes: int) -> ServerReport:
    numbers = {"max_connections": 60, "superuser_reserved": 3, "reserved": 0, "total": 9, "active": 1, "idle": 8}
    return ServerReport(version="18", idle_in_transaction=0, by_application={}, **(numbers | changes))


def rows(processes: list[LocalProcess], entries: dict[int, ProcessEntry]) -> list[list[str]]:
    screen = open_screen()
    with screen.capture() as captured:
        screen.print(process_table(processes, entries))
    return [line.split() for line in captured.get().splitlines()[1:]]


def test_a_process_in_the_registry_has_its_numbers(child: Child) -> None:
    """A row has role, pid, pool size, in use, peak, queries, jobs, p95 wait and restarts of its process."""
    process = LocalProcess("worker-1", "worker", child, restarts=2)
    assert rows([process], {child.pid: entry(child.pid, complete=40)}) == [
        ["worker-1", "worker", str(child.pid), "5", "of", "10", "1", "7", "1234", "40", "12.5", "ms", "2"]
    ]


def test_failed_jobs_are_shown(child: Child) -> None:
    """Jobs that failed are counted beside those that did not."""
    process = LocalProcess("worker-1", "worker", child)
    ((*_, done, plus, failed, word, _ms, _unit, _restarts),) = rows(
        [process], {child.pid: entry(child.pid, complete=40, failed=2)}
    )
    assert (done, plus, failed, word) == ("40", "+", "2", "failed")


def test_a_process_that_is_not_in_the_registry_has_dashes(child: Child) -> None:
    """A process that is starting, or between end and restart, is in the table without numbers."""
    processes = [LocalProcess("worker-1", "worker", child), LocalProcess("bot-1", "bot")]
    assert rows(processes, {}) == [
        ["worker-1", "worker", str(child.pid), *["–"] * 6, "0"],
        ["bot-1", "bot", "restarting", *["–"] * 6, "0"],
    ]


def test_connections_are_set_against_both_limits() -> None:
    """The line has connections now, what the server can give, and the sum of what the pools may open."""
    assert connections_line(report(reserved=2), 8, {"worker": (4, 10), "bot": (1, 5)}) == (
        "connections: 9 of 55 available (max_connections=60, 5 reserved), 8 of them in these pools, "
        "which may open 45 (Σ DB_POOL_MAX = 4 workers × 10 + 1 bot × 5)"
    )


def test_pools_larger_than_the_server_are_pointed_out() -> None:
    """Where the pools may open more than the server has, the line says so, and what to do."""
    line = connections_line(report(), 8, {"worker": (6, 10), "bot": (0, 10)})
    assert line.endswith(
        "may open 60 (Σ DB_POOL_MAX = 6 workers × 10): more than the server has, "
        "lower DB_POOL_MAX or raise max_connections to 63"
    )
    assert "more than" not in connections_line(report(), 8, {"worker": (6, 10)}, through_pooler=True)
