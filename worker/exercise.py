"""The job that loads a worker's pool as real work would, and measures it: for trying settings before production."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from tortoise.transactions import in_transaction

from db.models import Alert, ConnectionSample
from fleet.jobs import ExercisePool, ExerciseResult
from fleet.process import Process
from pool import recording


class ExerciseFailed(Exception):
    """Not one unit of an exercise succeeded; the text is the first unit's error, which is its cause."""


async def exercise_pool(process: Process, arguments: ExercisePool) -> ExerciseResult:
    """Run `arguments.queries` units in `arguments.concurrency` tasks: in turn one read and one transaction.

    A transaction reads, inserts an alert, holds its connection for `hold_ms` and is rolled back. No row stays; only
    the sequence of alert ids advances. A unit that fails is counted in `errors`, the first error's text is kept, and
    the others go on. Raises ExerciseFailed if all failed.
    """
    tally = _Tally()
    units = iter(range(arguments.queries))  # shared: each task takes the next unit
    started = time.perf_counter()
    with recording() as recorded:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(arguments.concurrency, arguments.queries)):
                tasks.create_task(_run_units(units, arguments.hold_ms / 1000, tally))
    elapsed_s = time.perf_counter() - started
    if tally.errors == arguments.queries:
        failed = tally.first_error
        raise ExerciseFailed(f"all {tally.errors} units failed, the first one with {_told(failed)}") from failed
    return ExerciseResult(
        process=process.id,
        reads=tally.reads,
        transactions=tally.transactions,
        errors=tally.errors,
        first_error=None if tally.first_error is None else _told(tally.first_error),
        elapsed_ms=elapsed_s * 1000,
        checkouts=len(recorded.waits),
        wait_p50_ms=percentile(recorded.waits, 50) * 1000,
        wait_p95_ms=percentile(recorded.waits, 95) * 1000,
        wait_p99_ms=percentile(recorded.waits, 99) * 1000,
        queries=len(recorded.queries),
        query_p50_ms=percentile(recorded.queries, 50) * 1000,
        query_p95_ms=percentile(recorded.queries, 95) * 1000,
        query_p99_ms=percentile(recorded.queries, 99) * 1000,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed (nearest rank); 0.0 of none.

    https://en.wikipedia.org/wiki/Percentile#The_nearest-rank_method
    """
    if not values:
        return 0.0
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


@dataclass(slots=True)
class _Tally:
    reads: int = 0
    transactions: int = 0
    errors: int = 0
    first_error: Exception | None = None


def _told(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}"


async def _run_units(units: Iterator[int], hold_s: float, tally: _Tally) -> None:
    task = cast("asyncio.Task[None]", asyncio.current_task())
    for unit in units:
        try:
            if unit % 2 == 0:
                await _read()
                tally.reads += 1
            else:
                await _transaction(hold_s)
                tally.transactions += 1
        except Exception as error:  # a full pool, a lost connection …: what an exercise is there to find
            if task.cancelling():  # the rollback of a lost connection hides the cancellation behind its own error
                raise asyncio.CancelledError from error
            tally.errors += 1
            if tally.first_error is None:
                tally.first_error = error


async def _read() -> None:
    await ConnectionSample.all().order_by("-at").first()


async def _transaction(hold_s: float) -> None:
    async with in_transaction() as connection:
        await Alert.filter(closed=None).using_db(connection).count()
        await Alert.create(kind="exercise", value=0.0, using_db=connection)
        await asyncio.sleep(hold_s)
        await connection.rollback()
