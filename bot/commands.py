"""What operators may ask: the list of all commands, and those about the fleet and this bot."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from bot.command import Command, Reply, Request
from bot.errors import BadArguments
from bot.explain_command import explain_command
from bot.jobs_command import jobs_command
from bot.outage import asking_database
from bot.sessions import read_sessions
from bot.subscribers import subscribe, unsubscribe
from bot.table import table
from config.effective import effective_settings
from config.errors import shown
from db.server import ServerReport, read_server
from fleet.errors import ExerciseStopped
from fleet.exercise import Exercise, summary
from fleet.jobs import ExercisePool
from fleet.process import Process
from fleet.registry import ProcessEntry, read_fleet

DEFAULT_JOBS, MOST_JOBS = 10, 1000
EXERCISE_DEADLINE_S = 5 * 60.0


def commands(process: Process) -> list[Command]:
    """The commands of an open process, for a Router."""
    operator = _Operator(process)
    return [
        Command(
            "status",
            "processes, their pools, and connections against the limit",
            operator.status,
            details="Of each process: connections in use, open, and how many there may be; jobs now, done and failed.",
        ),
        Command(
            "connections",
            "connections by application and state",
            operator.connections,
            details="As the database server counts them, those of other programs too.",
        ),
        jobs_command(process),
        Command(
            "exercise",
            f"run n exercise jobs (1 to {MOST_JOBS}, otherwise {DEFAULT_JOBS}) on the workers",
            operator.exercise,
            arguments="[n]",
            details="Each job works the pool of its worker hard: 25 reads and 25 transactions, several at once.",
            deadline_s=EXERCISE_DEADLINE_S + 30.0,
        ),
        explain_command(process),
        Command(
            "settings",
            "settings of this bot, secrets masked, and where each came from",
            operator.settings,
            arguments="[part of a name]",
            details="With part of a name only those: /settings pool_max. Workers may have others of their own.",
        ),
        Command(
            "subscribe",
            "send alerts to this chat",
            operator.subscribe,
            details="Alerts say when connections run out, a process is missing, or jobs wait for too long.",
        ),
        Command("unsubscribe", "send no alerts to this chat", operator.unsubscribe, details="Undoes /subscribe."),
    ]


class _Operator:
    def __init__(self, process: Process) -> None:
        self._process = process

    async def status(self, _: Request) -> AsyncGenerator[Reply, None]:
        """Two replies, so that one is seen also when Redis or the database is away."""
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

    async def settings(self, request: Request) -> AsyncGenerator[Reply, None]:
        """One line for each setting with the words in its name."""
        part = request.arguments.upper()
        rows = [
            (setting.variable, shown(setting.text), setting.origin)
            for setting in effective_settings(self._process.settings)
            if part in setting.variable
        ]
        if not rows:
            raise BadArguments(f"no setting has {shown(request.arguments)} in its name")
        yield Reply(table(rows, header=("variable", "value", "from")), monospace=True)

    async def subscribe(self, request: Request) -> AsyncGenerator[Reply, None]:
        """Whether that was new."""
        new = await subscribe(request.message.chat)
        yield Reply("This chat gets alerts from now on." if new else "This chat gets alerts already.")

    async def unsubscribe(self, request: Request) -> AsyncGenerator[Reply, None]:
        """Whether there was anything to undo."""
        had = await unsubscribe(request.message.chat)
        yield Reply("This chat gets no alerts any more." if had else "This chat did not get alerts.")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """A connection of this process's pool. Raises DatabaseError, PoolTimeout where none is free."""
        with asking_database(self._process.settings):
            async with self._process.database.client.acquire_connection() as connection:
                yield connection


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
