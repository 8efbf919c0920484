"""`poolctl migrate`: bring the schema up to date, and PgBouncer with it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from config import Settings, SettingsError
from db.errors import DatabaseError, first_line
from db.pooler import reconnect
from db.schema import migrate as apply_migrations
from db.server import target
from fleet.app import load_app
from fleet.plan_check import CANNOT_TELL, DeploymentTooLarge, check_deployment


def migrate(
    fake: Annotated[
        bool, typer.Option("--fake", help="Record a migration whose tables are there already as applied.")
    ] = False,
) -> None:
    """Apply the migrations that the database lacks. Safe to run in many places at once.

    Where PgBouncer runs at PGBOUNCER_HOST it gets new connections to the server.
    """
    settings = Settings.load("poolctl")
    app = load_app(settings)
    for warning in settings.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if settings.fleet.workers is not None and (problem := _problem(settings)) is not None:
        if settings.fleet.plan_check == "error":
            raise DeploymentTooLarge(f"{problem}; PLAN_CHECK=error, so nothing was migrated")
        typer.echo(f"warning: {problem}", err=True)
    names = asyncio.run(apply_migrations(settings, apps=app.tables, fake=fake))
    where = target(settings, direct=True)
    for name in names:
        typer.echo(f"{where}: applied {name}")
    if not names:
        typer.echo(f"{where}: nothing to apply, the schema is up to date")
    _reconnect(settings)


def _reconnect(settings: Settings) -> None:
    """Also where nothing was applied: the run that did may have ended before it came to this."""
    try:
        pooler = asyncio.run(reconnect(settings))
    except DatabaseError as error:  # the schema is right all the same
        typer.echo(f"warning: {error}", err=True)
    else:
        if pooler is not None:
            typer.echo(f"PgBouncer at {pooler}: RECONNECT")


def _problem(settings: Settings) -> str | None:
    """Why the fleet that is to be deployed does not fit, or None. Warns where that cannot be told, and goes on.

    Raises DatabaseError where the server cannot be asked: it could not be migrated either.
    """
    try:
        return asyncio.run(check_deployment(settings, Settings.load("worker"), Settings.load("bot")))
    except DatabaseError:
        raise
    except (SettingsError, *CANNOT_TELL) as error:
        workers = settings.fleet.workers
        typer.echo(f"warning: PLAN_CHECK: cannot tell whether WORKERS={workers} fit: {first_line(error)}", err=True)
        return None
