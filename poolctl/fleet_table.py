"""The fleet of `poolctl up` as a table and a line about its connections. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from db.server import ServerReport
from fleet import ProcessEntry
from local import LocalProcess
from poolctl.screen import plain_table

COLUMNS = ("process", "role", "pid", "pool size", "in use", "peak", "queries", "jobs", "p95 wait", "restarts")
NUMBERS = COLUMNS[2:]


def process_table(processes: Sequence[LocalProcess], entries: Mapping[int, ProcessEntry]) -> Table:
    """A row for each process; `entries` are those of the registry by process id. A dash is for "not known yet".

    Pool size is "open of at most", jobs are those done and failed since the process started.
    """
    table = plain_table(*COLUMNS)
    for column in table.columns:
        if column.header in NUMBERS:
            column.justify = "right"
    for process in processes:
        entry = None if process.pid is None else entries.get(process.pid)
        pid = "restarting" if process.pid is None else str(process.pid)
        numbers = ["–"] * 6 if entry is None else _numbers(entry)
        table.add_row(process.name, process.role, pid, *numbers, str(process.restarts))
    return table


def _numbers(entry: ProcessEntry) -> list[str]:
    pool, jobs = entry.pool, entry.jobs
    done = f"{jobs.complete}" + (f" + {jobs.failed} failed" if jobs.failed else "")
    return [
        f"{pool.size} of {pool.limit}",
        str(pool.in_use),
        str(pool.peak),
        str(pool.queries),
        done,
        f"{pool.wait_p95_s * 1000:.1f} ms",
    ]


def connections_line(
    report: ServerReport, held: int, pools: Mapping[str, tuple[int, int]], *, through_pooler: bool = False
) -> str:
    """Connections now, against the server's limit and against what the pools may open.

    held: connections in the pools of the fleet. pools: for each role its number of processes and DB_POOL_MAX.
    """
    wanted = sum(count * pool_max for count, pool_max in pools.values())
    terms = " + ".join(f"{counted(count, role)} × {pool_max}" for role, (count, pool_max) in pools.items() if count)
    reserved = report.max_connections - report.available
    text = (
        f"connections: {report.total} of {report.available} available "
        f"(max_connections={report.max_connections}, {reserved} reserved), {held} of them in these pools, "
        f"which may open {wanted} (Σ DB_POOL_MAX = {terms})"
    )
    if wanted > report.available and not through_pooler:
        text += f": more than the server has, lower DB_POOL_MAX or raise max_connections to {wanted + reserved}"
    return text


def counted(count: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
