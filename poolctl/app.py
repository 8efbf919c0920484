"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from poolctl import __version__
from poolctl.check_command import check
from poolctl.config_command import config
from poolctl.deploy_command import deploy
from poolctl.jobs_command import jobs
from poolctl.migrate_command import migrate
from poolctl.plan_command import plan
from poolctl.up_command import up


def build_app() -> typer.Typer:
    """A typer app with every command. Each command is in the file of its name."""
    app = typer.Typer(
        name="poolctl",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # plain help, the same in a pipe and on a terminal
        pretty_exceptions_enable=False,  # their frames show local variables' values
    )
    app.callback()(_options)
    for command in (config, check, deploy, jobs, migrate, plan, up):
        app.command()(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poolctl {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Looks after one PostgreSQL under many worker processes.

    Exit codes: 0 fine, 1 a finding or a failed job, 2 bad settings or usage, 3 database or Redis unreachable or
    schema behind.
    """
