"""How often in a second a contender does its work."""

from __future__ import annotations

import asyncio
import time

from benchmarks.contender import Contender
from benchmarks.work import Work


async def rate(contender: Contender, work: Work, tasks: int, seconds: float) -> float:
    """Operations per second of so many tasks at once, each in a loop for so many seconds.

    Each does its work once beforehand, so that a health check after the other contenders' turns is not counted.
    """
    operation = contender.operations[work]
    tasks = min(tasks, contender.most_tasks or tasks)

    async def loop(task: int) -> int:
        done = 0
        while time.perf_counter() < end:
            await operation(task)
            done += 1
        return done

    async with asyncio.TaskGroup() as group:
        for task in range(tasks):
            group.create_task(_once(contender, work, task), context=contender.context.copy())
    started = time.perf_counter()
    end = started + seconds
    async with asyncio.TaskGroup() as group:
        loops = [group.create_task(loop(task), context=contender.context.copy()) for task in range(tasks)]
    return sum(task.result() for task in loops) / (time.perf_counter() - started)


async def _once(contender: Contender, work: Work, task: int) -> None:
    await contender.operations[work](task)
