from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from arq.connections import ArqRedis

from config import Settings
from fleet.jobs import PRUNE_SAMPLES, SAMPLE_CONNECTIONS, NoArguments
from fleet.queue import open_queue
from fleet.scheduled import Scheduled, Times
from tests.waiting import until
from worker.schedule import Schedule

EVERY_SECOND = Scheduled(SAMPLE_CONNECTIONS, NoArguments(), Times(second=frozenset(range(60))))


@pytest.fixture
async def queue(environ: dict[str, str]) -> AsyncIterator[ArqRedis]:
    async with open_queue(Settings.load("worker", environ)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("times", "moment", "expected"),
    [
        (Times(second=frozenset({0, 30})), "10:00:00", "10:00:30"),
        (Times(second=frozenset({0, 30})), "10:00:29.999999", "10:00:30"),
        (Times(second=frozenset({0, 30})), "10:00:30", "10:01:00"),
        (Times(second=frozenset({0, 30})), "10:59:59", "11:00:00"),
        (Times(minute=frozenset({17}), hour=frozenset({3})), "03:16:59.5", "03:17:00"),
        (Times(minute=frozenset({17}), hour=frozenset({3})), "02:00:00", "03:17:00"),
        (Times(second=frozenset(range(60))), "10:00:00.5", "10:00:01"),
        (Times(second=None), "10:00:00.5", "10:00:01"),
    ],
)
def test_times(times: Times, moment: str, expected: str) -> None:
    """The next time of a schedule is the first one after the moment, to the second."""
    at = datetime.fromisoformat(f"2030-01-01T{moment}").replace(tzinfo=UTC)
    assert times.after(at) == datetime.fromisoformat(f"2030-01-01T{expected}").replace(tzinfo=UTC)


@pytest.mark.parametrize("numbers", [{"hour": {24}}, {"minute": {60}}, {"second": set()}, {"second": {0.5}}])
def test_times_that_never_are(numbers: dict[str, set[Any]]) -> None:
    """They are refused when they are made: the search for the next one would never end."""
    with pytest.raises(ValueError, match="is at no time: give some of 0 to"):
        Times(**{unit: frozenset(each) for unit, each in numbers.items()})


async def test_many_workers_enqueue_a_run_once(queue: ArqRedis) -> None:
    """Of ten workers one enqueues the run of each second, and none is left out."""
    schedules = [Schedule(queue, [EVERY_SECOND]) for _ in range(10)]
    tasks = [asyncio.create_task(_keep(schedule)) for schedule in schedules]
    seconds = await until(lambda: _enqueued(queue, 4), what="four runs")
    for task in tasks:
        task.cancel()
    assert seconds == list(range(seconds[0], seconds[0] + len(seconds)))


async def test_a_late_worker_enqueues_nothing_twice(queue: ArqRedis) -> None:
    """A worker that was asleep when a run was due leaves it to the one that took it, though that run is long over."""
    late, punctual = Schedule(queue, [EVERY_SECOND]), Schedule(queue, [EVERY_SECOND])
    await late.enqueue_due()
    keeping = asyncio.create_task(_keep(punctual))
    seconds = await until(lambda: _enqueued(queue, 2), what="two runs")
    keeping.cancel()
    await asyncio.wait({keeping})
    await queue.delete("arq:queue", *[f"arq:job:sample_connections:{second}000" for second in seconds])
    await late.enqueue_due()
    assert set(await _enqueued(queue, 0)) & set(seconds) == set()


async def test_a_run_that_is_long_past_is_left_out(queue: ArqRedis, caplog: pytest.LogCaptureFixture) -> None:
    """What was due more than a minute ago is told of, not run."""
    schedule = Schedule(queue, [Scheduled(PRUNE_SAMPLES, NoArguments(), Times(second=frozenset(range(60))))])
    await schedule.enqueue_due()
    schedule._next["prune_samples"] = datetime(2020, 1, 1, tzinfo=UTC)  # as after a laptop's sleep
    assert 0 < await schedule.enqueue_due() <= 1
    assert "prune_samples at 2020-01-01 00:00:00+00:00 is left out" in caplog.text
    assert await queue.zcard("arq:queue") == 0


async def test_a_run_that_all_workers_missed(queue: ArqRedis) -> None:
    """What was due while no worker was up, less than a minute ago, is made up for by one; a first run never is."""
    await Schedule(queue, [EVERY_SECOND]).enqueue_due()
    assert await queue.zcard("arq:queue") == 0
    now_s, _ = await queue.time()
    await queue.hset("arq:queue:schedule", "sample_connections", (now_s - 30) * 1000)  # the latest, so long ago
    await Schedule(queue, [EVERY_SECOND]).enqueue_due()
    (made_up,) = await _enqueued(queue, 1)
    assert made_up >= now_s
    for _ in range(3):
        await Schedule(queue, [EVERY_SECOND]).enqueue_due()
    later_s, _ = await queue.time()
    assert len(await _enqueued(queue, 1)) <= 1 + later_s - now_s  # each second has one


async def test_a_first_run_is_not_lost(queue: ArqRedis) -> None:
    """A worker that starts just when the very first run is due leaves it to the one that waited for it."""
    waiting = Schedule(queue, [EVERY_SECOND])
    nap_s = await waiting.enqueue_due()
    await asyncio.sleep(nap_s)
    await Schedule(queue, [EVERY_SECOND]).enqueue_due()
    await waiting.enqueue_due()
    assert await _enqueued(queue, 1)


async def test_one_job_at_several_times(queue: ArqRedis) -> None:
    """A job that is scheduled twice has both, by their names."""
    again = Scheduled(SAMPLE_CONNECTIONS, NoArguments(), Times(second=frozenset(range(60))), name="again")
    keeping = asyncio.create_task(_keep(Schedule(queue, [EVERY_SECOND, again])))

    async def both() -> bool:
        ids = [raw.decode().rpartition(":")[0] for raw in await queue.zrange("arq:queue", 0, -1)]
        return {"sample_connections", "sample_connections:again"} == set(ids)

    await until(both, what="a run of each")
    keeping.cancel()
    await asyncio.wait({keeping})


async def _keep(schedule: Schedule) -> None:
    while True:
        nap_s = await schedule.enqueue_due()
        await asyncio.sleep(nap_s)


async def _enqueued(queue: ArqRedis, least: int) -> list[int]:
    """The seconds for which runs are on the queue; none before there are so many."""
    ids = [raw.decode() for raw in await queue.zrange("arq:queue", 0, -1)]
    seconds = [int(job_id.rpartition(":")[2]) // 1000 for job_id in ids]
    assert len(set(seconds)) == len(seconds)
    return sorted(seconds) if len(seconds) >= least else []
