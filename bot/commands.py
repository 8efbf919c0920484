"""What operators may ask: /status, /connections, /exercise."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import asyncpg
from redis.exceptions import RedisError

from bot.errors import BadArguments
from bot.router import Command, Reply, Request
from bot.sessions import read_sessions
from bot.table import table
from db.errors import classify
from db.server import ServerReport, read_server, target
from fleet.errors import ExerciseStopped, QueueLost
from fleet.exercise import Exercise, summary
from fleet.jobs import ExercisePool
from fleet.process import Process
from fleet.queue import address
from fleet.registry import ProcessEntry, read_fleet

DEFAULT_JOBS, MOST_JOBS = 10, 1000
EXERCISE_DEADLINE_S = 5 * 60.0


def commands(process: Process) -> list[Command]:
    """The commands of an open process, for a Router."""
    operator = _Operator(process)
    return [
        Command("status", "processes, their pools, and connections against the limit", operator.status),
        Command("connections", "connections by application and state", operator.connections),
        Command(
            "exercise",
            f"run n exercise jobs (1 to {MOST_JOBS}, otherwise {DEFAULT_JOBS}) on the workers",
            operator.exercise,
            arguments="[n]",
        ),
    ]


class _Operator:
    def __init__(self, process: Process) -> None:
        self._process = process

    async def status(self, _: Request) -> AsyncGenerator[Reply, None]:
        """Two replies, so that one is seen also when Redis or the database is away."""
        with self._asking_redis():
            entries = await read_fleet(self._process.queue)
        yield Reply(fleet_table(entries), monospace=True)
        async with self._connection() as connection:
            server = await read_server(connection)
        yield Reply(server_table(server), monospace=True)

    async def connections(self, _: Request) -> AsyncGenerator[Reply, None]:
        """One line for each application and state."""
        async with self._connection() as connection:
            sessions = await read_sessions(connection)
        rows = [(application or "(no name)", state or "(hidden)", count) for application, state, count in sessions]
        yield Reply(table(rows, header=("application", "state", "connections")), monospace=True)

    async def exercise(self, request: Request) -> AsyncGenerator[Reply, None]:
        """Progress, then the sum of what the jobs measured."""
        jobs = number_of_jobs(request.arguments)
        exercise = Exercise(self._process.queue, jobs, ExercisePool())
        yield Reply(f"0 of {jobs} done", progress=True)
        stopped = None
        with self._asking_redis():
            try:
                async with aclosing(exercise.follow(deadline_s=EXERCISE_DEADLINE_S)) as counts:
                    async for done in counts:
                        yield Reply(f"{done} of {jobs} done", progress=True)
            except ExerciseStopped as error:
                stopped = str(error)
        if exercise.done:
            yield Reply(summary(exercise.results, exercise.failures))
        if stopped is not None:
            yield Reply(f"/exercise: {stopped}")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """A connection of this process's pool. Raises DatabaseError, PoolTimeout for a pool that is empty."""
        try:
            async with self._process.database.client.acquire_connection() as connection:
                yield connection
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise classify(error, target(self._process.settings)) from error

    @contextmanager
    def _asking_redis(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            redis = address(self._process.settings.redis)
            raise QueueLost(f"Redis at {redis} does not answer ({str(error) or type(error).__name__})") from error


def number_of_jobs(arguments: str) -> int:
    """What follows /exercise. Raises BadArguments."""
    if not arguments:
        return DEFAULT_JOBS
    number = int(arguments) if arguments.isascii() and arguments.isdecimal() and len(arguments) < 10 else 0
    if not 1 <= number <= MOST_JOBS:
        raise BadArguments(f"n must be a number from 1 to {MOST_JOBS}")
    return number


def fleet_table(entries: list[ProcessEntry]) -> str:
    """The processes with their pools and jobs."""
    rows = [
        (
            entry.role,
            f"{entry.host}:{entry.pid}",
            entry.pool.in_use,
            entry.pool.size,
            entry.pool.limit,
            entry.jobs.running,
            entry.jobs.complete,
            entry.jobs.failed,
        )
        for entry in entries
    ]
    return table(rows, header=("role", "process", "in use", "size", "limit", "jobs", "done", "failed"))


def server_table(server: ServerReport) -> str:
    """Connections by application, each and together as a share of max_connections."""

    def share(connections: int) -> str:
        return f"{connections / server.max_connections:.0%}"

    rows = [(name or "(no name)", count, share(count)) for name, count in server.by_application.items()]
    rows.append(("all", server.total, f"{share(server.total)} of {server.max_connections}"))
    reserved = server.max_connections - server.available
    return (
        table(rows, header=("application", "connections", "of max_connections"))
        + f"\n{server.available} of {server.max_connections} are for everyone, {reserved} are reserved"
    )
