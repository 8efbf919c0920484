"""A fleet on this machine from its first process to its last, with an exercise in between if asked for."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arq.connections import ArqRedis
from redis.exceptions import RedisError
from rich.console import RenderableType

from config import Settings
from config.exit_codes import ExitCode
from config.settings import Role
from db.database import open_database
from db.errors import DatabaseError
from db.schema import migrate
from db.server import ServerReport, connect, read_server
from fleet import ExercisePool, ProcessEntry, QueueLost, open_queue, read_fleet
from fleet.app import load_app
from fleet.errors import ExerciseStopped
from fleet.exercise import Exercise, summary
from fleet.queue import address
from fleet.registry import HEARTBEAT_S
from local import LocalError, LocalServers, Supervisor, Tether, open_supervisor
from poolctl.first_ended import first_ended
from poolctl.fleet_screen import FleetScreen
from poolctl.fleet_table import connections_line, counted, process_table

LOOK_S = 0.25
START_TIMEOUT_S = 120.0
STOP_MARGIN_S = 10.0  # beyond WORKER_SHUTDOWN_GRACE: cancelled jobs go back to the queue, pools close
EXERCISE_DEADLINE_S = 60 * 60.0  # arq forgets a result after that time
SERVERS_CHECK_S = 1.0


class NotUp(LocalError):
    """A process did not get into the registry in time."""


@dataclass(frozen=True, slots=True)
class Order:
    """What `poolctl up` was asked for."""

    workers: int
    bots: int
    exercise: int | None  # jobs
    once: bool
    fresh: bool
    configured_servers: bool
    max_connections: int

    @property
    def unfinished_code(self) -> ExitCode:
        """The exit code when somebody stops the fleet before it did what it was asked for."""
        return ExitCode.FINDING if self.once or self.exercise else ExitCode.OK


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the fleet runs in: the processes' environment and folder, what ties them to us, our own servers if any."""

    environ: dict[str, str] = field(repr=False)
    cwd: Path
    tether: Tether
    servers: LocalServers | None


@dataclass(slots=True)
class Outcome:
    """How it ended: an exit code, and what to print when everything has stopped."""

    exit_code: ExitCode = ExitCode.OK
    report: list[RenderableType] = field(default_factory=list)


async def run_fleet(order: Order, surroundings: Surroundings, screen: FleetScreen) -> Outcome:
    """Run until `order` is done, or until SIGINT or SIGTERM; a second signal cuts the orderly stop short.

    Raises SettingsError, DatabaseError, FleetError or LocalError, with all processes stopped.
    """
    run = _Run(order, surroundings, screen)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(run.work())
    signals: list[signal.Signals] = []

    def received(signum: signal.Signals) -> None:
        signals.append(signum)
        if len(signals) > 1:
            run.hurry.set()
            return
        screen.say(f"{signum.name}: stopping all in order; a second one kills them")
        run.stop.set()
        if run.starting:
            task.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, received, signum)
    try:
        await asyncio.wait({task})
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)
    if task.cancelled():
        return Outcome(order.unfinished_code)
    return task.result()


class _Run:
    def __init__(self, order: Order, surroundings: Surroundings, screen: FleetScreen) -> None:
        self.starting = True
        self.stop = asyncio.Event()  # orderly
        self.hurry = asyncio.Event()  # at once
        self._order = order
        self._surroundings = surroundings
        self._screen = screen
        self._settings = Settings.load("poolctl", surroundings.environ)
        self._app = load_app(self._settings)
        self._grace_s = self._settings.worker.shutdown_grace + STOP_MARGIN_S
        self._counts: dict[Role, int] = {"worker": order.workers, "bot": order.bots}
        self._pools: dict[str, tuple[int, int]] = {
            role: (count, Settings.load(role, surroundings.environ).db.pool_max) for role, count in self._counts.items()
        }

    async def work(self) -> Outcome:
        if self._surroundings.servers is not None:
            await migrate(self._settings, apps=self._app.tables)
        else:
            # Unreachable, wrong password, schema behind: said once, here.
            async with open_database(self._settings, apps=self._app.tables):
                pass
        async with (
            open_queue(self._settings) as queue,
            open_supervisor(
                self._surroundings.tether,
                self._surroundings.environ,
                self._surroundings.cwd,
                self._counts,
                on_line=self._screen.line,
                grace_s=self._grace_s,
                hurry=self.hurry,
            ) as supervisor,
        ):
            self.starting = False
            fleet = _Fleet(supervisor, queue)
            watches: list[Coroutine[Any, Any, Any]] = [supervisor.failure(), self._watch_servers(), self._stopped()]
            if self._screen.live:
                watches.append(self._draw(fleet))
            try:
                outcome: Outcome = await first_ended([self._job(fleet), *watches])
                return outcome
            except (RedisError, OSError) as error:
                await self._blame_servers()
                raise QueueLost(f"Redis at {address(self._settings.redis)} went away: {error}") from None

    async def _job(self, fleet: _Fleet) -> Outcome:
        """What the fleet is for: be up, do the exercise, then stop or stay."""
        order, outcome = self._order, Outcome()
        await fleet.wait_until_up(START_TIMEOUT_S if order.once or order.exercise else None)
        self._screen.say(f"the fleet is up: {', '.join(counted(n, role) for role, n in self._counts.items())}")
        if order.exercise is not None:
            outcome = await self._exercise(fleet.queue, order.exercise)
            await fleet.wait_for_heartbeats()
        if order.exercise is not None or order.once:
            outcome.report[:0] = await self._report(fleet)
        if not order.once:
            for part in outcome.report:
                self._screen.part(part)
            await asyncio.Event().wait()
        return outcome

    async def _exercise(self, queue: ArqRedis, jobs: int) -> Outcome:
        """Run so many jobs; what came of them."""
        exercise = Exercise(queue, jobs, ExercisePool())
        started_s = time.monotonic()
        stopped: list[RenderableType] = []
        self._screen.say(f"exercise of {counted(jobs, 'job')}")
        self._screen.progress(0, jobs)
        try:
            async for done in exercise.follow(deadline_s=EXERCISE_DEADLINE_S):
                self._screen.progress(done, jobs)
        except ExerciseStopped as error:
            stopped.append(f"exercise: {error}")
        elapsed_s = time.monotonic() - started_s
        bad = stopped or exercise.failures or any(result.errors for result in exercise.results)
        return Outcome(
            ExitCode.FINDING if bad else ExitCode.OK,
            [
                f"exercise: {exercise.done} of {counted(jobs, 'job')} in {elapsed_s:.1f} s",
                summary(exercise.results, exercise.failures),
                *stopped,
            ],
        )

    async def _report(self, fleet: _Fleet) -> list[RenderableType]:
        entries = await fleet.entries()
        try:
            async with connect(self._settings, direct=True) as connection:
                server = await read_server(connection)
        except DatabaseError as error:
            return [process_table(fleet.supervisor.processes, entries), f"connections: unknown, {error}"]
        return [process_table(fleet.supervisor.processes, entries), self._connections(server, entries)]

    def _connections(self, server: ServerReport, entries: dict[int, ProcessEntry]) -> str:
        db = self._settings.db
        held = sum(entry.pool.size for entry in entries.values())
        pooler = db.addresses != db.direct_addresses
        return connections_line(server, held, self._pools, through_pooler=pooler)

    async def _stopped(self) -> Outcome:
        """Wait until somebody asks for the end."""
        await self.stop.wait()
        return Outcome(self._order.unfinished_code)

    async def _draw(self, fleet: _Fleet) -> None:
        """The table, again and again."""
        while True:
            try:
                self._screen.table(process_table(fleet.supervisor.processes, await fleet.entries()))
            except (RedisError, OSError):
                self._screen.table("the registry does not answer")
            await asyncio.sleep(LOOK_S)

    async def _watch_servers(self) -> None:
        """Raise ServerFailed when a server of our own has ended."""
        while True:
            if self._surroundings.servers is not None:
                self._surroundings.servers.check()
            await asyncio.sleep(LOOK_S)

    async def _blame_servers(self) -> None:
        """Raise ServerFailed if a lost connection was the end of a server of our own."""
        deadline = time.monotonic() + SERVERS_CHECK_S
        while self._surroundings.servers is not None and time.monotonic() < deadline:
            self._surroundings.servers.check()
            await asyncio.sleep(0.05)


class _Fleet:
    """Our processes as the registry knows them."""

    def __init__(self, supervisor: Supervisor, queue: ArqRedis) -> None:
        self.supervisor = supervisor
        self.queue = queue
        self._host = socket.gethostname()

    async def entries(self) -> dict[int, ProcessEntry]:
        """The entries of our own processes, by process id."""
        pids = {process.pid for process in self.supervisor.processes}
        return {
            entry.pid: entry for entry in await read_fleet(self.queue) if entry.host == self._host and entry.pid in pids
        }

    async def wait_until_up(self, timeout_s: float | None) -> None:
        """Wait until each process is in the registry. Raises NotUp after `timeout_s`."""
        deadline = time.monotonic() + (timeout_s or float("inf"))
        while missing := await self._missing():
            if time.monotonic() > deadline:
                raise NotUp(f"not up within {timeout_s:g} s: {', '.join(missing)}; see their log above")
            await asyncio.sleep(LOOK_S)

    async def _missing(self) -> list[str]:
        entries = await self.entries()
        return [process.name for process in self.supervisor.processes if process.pid not in entries]

    async def wait_for_heartbeats(self) -> None:
        """Wait until each process that lives has told of all it did until now: one heartbeat at most."""
        called_s = time.monotonic()
        while time.monotonic() - called_s < 2 * HEARTBEAT_S:
            entries = await self.entries()
            if all(entry.silent_s < time.monotonic() - called_s for entry in entries.values()):
                return
            await asyncio.sleep(LOOK_S)
