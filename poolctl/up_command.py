"""`poolctl up`: a whole fleet on this machine, on servers of its own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from config import Settings, SettingsError
from config.environment import read
from config.exit_codes import ExitCode
from config.settings import Role
from fleet.app import load_app
from local import LocalError, TetherKind, data_directory, open_servers, open_tether
from poolctl.fleet_environ import configured_environ, own_servers_environ
from poolctl.fleet_run import Order, Surroundings, run_fleet
from poolctl.fleet_screen import open_fleet_screen
from poolctl.screen import open_screen

MAX_CONNECTIONS = 100  # PostgreSQL's own default
LEAST_CONNECTIONS = 10  # 3 are reserved for superusers, and a fleet wants some


def up(
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    bots: Annotated[int, typer.Option(min=0, help="Bot processes.")] = 0,
    exercise: Annotated[
        int | None, typer.Option(min=1, metavar="JOBS", help="Load the pools with so many jobs, and sum up.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop after that, with the table of processes.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard the data of earlier runs first.")] = False,
    configured_servers: Annotated[
        bool,
        typer.Option("--configured-servers", help="Use database and Redis of the environment or .env."),
    ] = False,
    max_connections: Annotated[
        int | None,
        typer.Option(min=LEAST_CONNECTIONS, help=f"Of the database of its own.  [default: {MAX_CONNECTIONS}]"),
    ] = None,
) -> None:
    """Run a whole fleet on this machine, on a PostgreSQL and a Redis of its own, until Ctrl-C.

    Those have generated passwords, and listen on free ports of this machine only. Pool settings of the environment
    and of .env hold; everything there that names a server is left aside, unless --configured-servers is given.
    """
    if configured_servers and (fresh or max_connections is not None):
        raise typer.BadParameter("--fresh and --max-connections are for servers of its own: leave out one or the other")
    order = Order(workers, bots, exercise, once, fresh, configured_servers, max_connections or MAX_CONNECTIONS)
    raise typer.Exit(carry_out(order))


def carry_out(order: Order, tether_kind: TetherKind | None = None) -> ExitCode:
    """Start servers and fleet, run until `order` is done or a signal comes, stop all; the exit code.

    tether_kind: how the processes are made to end with this one, None for the way of this platform. Raises
    SettingsError or AppRefused before anything was started, DatabaseError or FleetError when everything has stopped.
    """
    values = _checked_environment(order.configured_servers)
    try:
        with _sigterm_as_interrupt(), open_tether(tether_kind) as tether, ExitStack() as stack:
            if order.configured_servers:
                return _run(order, Surroundings(configured_environ(values), Path.cwd(), tether, None))
            directory = data_directory(Path.cwd())
            servers = stack.enter_context(
                open_servers(directory, tether, max_connections=order.max_connections, fresh=order.fresh)
            )
            environ = own_servers_environ(values, servers.environ())
            return _run(order, Surroundings(environ, directory, tether, servers))
    except LocalError as error:
        typer.echo(str(error), err=True)
        return error.exit_code
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        return order.unfinished_code


def _checked_environment(configured_servers: bool) -> Mapping[str, str]:
    """All variables, once it is known that every role's settings are sound, and the app: before anything is started."""
    environment = read()
    if environment.faults:
        raise SettingsError(environment.faults)
    values = environment.values
    environ = configured_environ(values) if configured_servers else own_servers_environ(values, {})
    roles: tuple[Role, ...] = ("worker", "bot", "poolctl")
    settings = [Settings.load(role, environ) for role in roles]
    load_app(settings[0])
    return values


def _run(order: Order, surroundings: Surroundings) -> ExitCode:
    console = open_screen()
    with open_fleet_screen(console) as screen:
        if surroundings.servers is not None:
            screen.say(f"{surroundings.servers}, data in {surroundings.cwd}")
        try:
            outcome = asyncio.run(run_fleet(order, surroundings, screen))
        finally:
            # asyncio has put SIGTERM back to its default, and the servers are still to be stopped.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
    for part in outcome.report:
        console.print(part)
    return outcome.exit_code


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, while servers start and stop outside of an event loop."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
