"""`poolctl migrate`: bring the schema up to date."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from config import Settings, SettingsError
from db.errors import first_line
from db.schema import migrate as apply_migrations
from db.server import target
from fleet.plan_check import CANNOT_TELL, DeploymentTooLarge, check_deployment


def migrate(
    fake: Annotated[
        bool, typer.Option("--fake", help="Record a migration whose tables are there already as applied.")
    ] = False,
) -> None:
    """Apply the migrations that the database lacks. Safe to run in many places at once."""
    settings = Settings.load("poolctl")
    for warning in settings.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if settings.fleet.workers is not None and (problem := _problem(settings)) is not None:
        if settings.fleet.plan_check == "error":
            raise DeploymentTooLarge(f"{problem}; PLAN_CHECK=error, so nothing was migrated")
        typer.echo(f"warning: {problem}", err=True)
    names = asyncio.run(apply_migrations(settings, fake=fake))
    where = target(settings, direct=True)
    for name in names:
        typer.echo(f"{where}: applied {name}")
    if not names:
        typer.echo(f"{where}: nothing to apply, the schema is up to date")


def _problem(settings: Settings) -> str | None:
    """Why the fleet that is to be deployed does not fit, or None. Warns where that cannot be told, and goes on."""
    try:
        return asyncio.run(check_deployment(settings, Settings.load("worker"), Settings.load("bot")))
    except (SettingsError, *CANNOT_TELL) as error:
        workers = settings.fleet.workers
        typer.echo(f"warning: PLAN_CHECK: cannot tell whether WORKERS={workers} fit: {first_line(error)}", err=True)
        return None
