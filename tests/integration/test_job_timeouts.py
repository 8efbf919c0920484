from __future__ import annotations

import asyncio
import random

from tortoise.transactions import in_transaction

from config import Settings
from db.models import Alert
from db.server import connect, read_server
from fleet.jobs import Arguments, Job, enqueue
from fleet.process import Process, open_process
from tests.waiting import until
from worker.job_run import Handler
from worker.runner import build_loop

TIMEOUTS = 500
LONGEST_MS = 25


class Sweep(Arguments):
    """A job that is to be cut off somewhere."""

    number: int


async def test_a_sweep_of_timeouts_loses_nothing(environ: dict[str, str]) -> None:
    """500 jobs that time out wherever they are leave no connection, transaction, row, slot or claim behind."""
    changes = {"DB_POOL_MIN": "2", "DB_POOL_MAX": "4", "WORKER_MAX_JOBS": "6"}
    settings = Settings.load("worker", environ | changes)
    begun = 0

    async def sweep(arguments: Sweep) -> int:
        nonlocal begun
        begun += 1
        while True:
            await Alert.filter(closed=None).count()
            async with in_transaction() as connection:
                await Alert.create(kind="sweep", value=float(arguments.number), using_db=connection)
                await asyncio.sleep(random.uniform(0, 0.003))
                async with in_transaction() as inner:
                    await Alert.all().using_db(inner).count()
                await connection.rollback()

    contracts = [Job(f"sweep_{ms}", Sweep, int, timeout_s=ms / 1000) for ms in range(1, LONGEST_MS + 1)]
    async with open_process(settings) as process, connect(Settings.load("poolctl", environ)) as observer:
        jobs = build_loop(process, [Handler(job, sweep) for job in contracts])
        running = asyncio.create_task(jobs.run())
        for number in range(TIMEOUTS):
            await enqueue(process.queue, contracts[number % LONGEST_MS], Sweep(number=number))
        await until(lambda: jobs.counts.failed == TIMEOUTS, timeout_s=60, what=f"{TIMEOUTS} time-outs")
        assert begun == TIMEOUTS
        assert jobs.counts.running == 0
        pool = process.database.pool_snapshot()
        assert (pool.in_use, pool.waiting) == (0, 0)

        async def at_rest() -> bool:
            server = await read_server(observer)
            return server.idle_in_transaction == 0 and server.by_application[process.id] <= 4

        await until(at_rest, what="no transaction is left at the server")
        await _all_slots_work(process, 4)
        assert await Alert.all().count() == 0
        jobs.stop()
        await running
        assert await process.queue.hlen("arq:queue:claims") == 0


async def _all_slots_work(process: Process, slots: int) -> None:
    """So many transactions at once, which a pool that had lost a connection could not have."""
    together = asyncio.Barrier(slots)

    async def hold() -> None:
        async with in_transaction():
            await together.wait()

    async with asyncio.timeout(10):
        await asyncio.gather(*(hold() for _ in range(slots)))
    assert process.database.pool_snapshot().in_use == 0
