"""`python -m tests.job_worker`: a real worker whose jobs do what tests need.

Every start is a row in `starts`, every end one in `effects`, of which a job has one however often it is run. A test
makes the tables with `make_tables`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from arq.worker import Retry
from pydantic import Field
from tortoise.transactions import in_transaction

from config import Settings
from config.exit_codes import ExitCode
from fleet.backoff import Backoff
from fleet.entry import run
from fleet.hooks import Hooks
from fleet.jobs import Arguments, Job, NoArguments
from fleet.process import Process, open_process
from fleet.scheduled import Scheduled, Times
from worker.job_loop import JobLoop
from worker.runner import build_loop, handler
from worker.serving import serve


class Work(Arguments):
    """`key` names the job in the tables."""

    key: str
    seconds: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Trouble:
    """How a job misbehaves: a dataclass, as contracts may have."""

    key: str
    kind: str = "raise"


QUICK = Backoff(first_s=0.2, longest_s=0.2)
WORK = Job("work", Work, int)
SLOW = Job("slow", Work, int, timeout_s=0.5)
SLOW_AGAIN = Job("slow_again", Work, int, timeout_s=0.5, tries=3, retry_on_timeout=True, backoff=QUICK)
TROUBLE = Job("trouble", Trouble, int, tries=3, retry_on=(KeyError,), backoff=QUICK)
EVERY_SECOND = Job("every_second", NoArguments, int)
UNIQUE = Job("unique", Work, int, unique_key=lambda work: work.key)


async def make_tables(connection: asyncpg.Connection) -> None:
    """What the jobs write into."""
    await connection.execute(
        "CREATE TABLE starts (key text, process text, at timestamptz DEFAULT clock_timestamp());"
        "CREATE TABLE effects (key text PRIMARY KEY)"
    )


async def work(process: Process, arguments: Work) -> int:
    """Say that it started, take its time, have its effect."""
    await _start(process, arguments.key)
    await asyncio.sleep(arguments.seconds)
    async with in_transaction() as connection:
        await connection.execute_query("INSERT INTO effects (key) VALUES ($1) ON CONFLICT DO NOTHING", [arguments.key])
    return len(arguments.key)


async def slow(process: Process, arguments: Work) -> int:
    """Take its time inside a transaction."""
    async with in_transaction() as connection:
        await connection.execute_query("INSERT INTO starts (key, process) VALUES ($1, $2)", [arguments.key, process.id])
        await asyncio.sleep(arguments.seconds)
        await connection.execute_query("INSERT INTO effects (key) VALUES ($1)", [arguments.key])
    return 0


async def trouble(process: Process, arguments: Trouble) -> int:
    """Misbehave."""
    await _start(process, arguments.key)
    match arguments.kind:
        case "raise":
            raise ValueError("a job's own error")
        case "retry":
            raise Retry(defer=0.2)
        case "key error":
            raise KeyError("one of the contract")
        case "no json":
            return object()  # type: ignore[return-value] # what the test is about
        case "exit":
            sys.exit(7)
        case "swallow":
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    continue
        case "block":
            time.sleep(3600)  # noqa: ASYNC251 - what the test is about
    return 0


async def every_second(process: Process, arguments: NoArguments) -> int:
    """Say that it started."""
    await _start(process, "every second")
    return 0


async def _start(process: Process, key: str) -> None:
    await process.database.client.execute_query("INSERT INTO starts (key, process) VALUES ($1, $2)", [key, process.id])


async def _fails(_: str) -> None:
    raise ZeroDivisionError("a hook's own error")


async def _main(settings: Settings) -> ExitCode:
    loops: list[JobLoop] = []
    async with open_process(settings) as process:
        handlers = [
            handler(WORK, work, process),
            handler(SLOW, slow, process),
            handler(SLOW_AGAIN, slow, process),
            handler(TROUBLE, trouble, process),
            handler(EVERY_SECOND, every_second, process),
            handler(UNIQUE, work, process),
        ]
        scheduled: list[Scheduled[Any]] = [Scheduled(EVERY_SECOND, NoArguments(), Times(second=frozenset(range(60))))]
        if "--schedule-breaks" in sys.argv:  # in about three seconds, by arguments of another job
            at = datetime.now(UTC) + timedelta(seconds=3)
            breaks = Times(frozenset({at.second}), frozenset({at.minute}), frozenset({at.hour}))
            wrong: Any = Work(key="wrong")
            scheduled = [Scheduled(EVERY_SECOND, wrong, breaks)]
        if "--cron-long" in sys.argv:
            scheduled = [Scheduled(WORK, Work(key="long run", seconds=4), Times(second=frozenset(range(0, 60, 10))))]
        loops.append(
            build_loop(
                process,
                handlers,
                scheduled if {"--cron", "--cron-long", "--schedule-breaks"} & set(sys.argv) else [],
                hooks=Hooks(before=_fails, after=_fails) if "--bad-hooks" in sys.argv else None,
            )
        )
        await serve(loops[0], settings.worker.shutdown_grace)
    logging.getLogger(__name__).info("ended by itself")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run("worker", _main))
