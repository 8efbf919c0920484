"""Checked by mypy, not run: a job's contract ties its arguments to its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from arq.connections import ArqRedis
from arq.jobs import Job as QueuedJob

from fleet.jobs import EXERCISE_POOL, ExercisePool, ExerciseResult, Job, NoArguments, enqueue
from fleet.process import Process
from worker.runner import handler


@dataclass
class Greet:
    """Arguments may be a dataclass."""

    name: str


GREET = Job("greet", Greet, str, unique_key=lambda greet: greet.name)


async def greet(process: Process, arguments: Greet) -> str:
    """As the contract says."""
    return arguments.name


async def count(process: Process, arguments: Greet) -> int:
    """Not as the contract says."""
    return len(arguments.name)


async def check(queue: ArqRedis, process: Process) -> None:
    """What is right, and what is not."""
    assert_type(await enqueue(queue, EXERCISE_POOL, ExercisePool()), QueuedJob)
    assert_type(EXERCISE_POOL.read_result({}), ExerciseResult)
    assert_type(GREET.read_result("x"), str)
    handler(GREET, greet, process)
    handler(GREET, count, process)  # type: ignore[arg-type]
    await enqueue(queue, GREET, NoArguments())  # type: ignore[misc]
