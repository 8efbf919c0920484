"""`poolctl config`: the effective settings of a role, and where each came from."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from config import Settings
from config.effective import effective_settings
from config.environment import read
from poolctl.effective import as_env, as_json
from poolctl.role import RoleOption
from poolctl.screen import open_screen, plain_table


def config(
    role: RoleOption = "worker",
    format: Annotated[  # noqa: A002 the option's name
        Literal["table", "json", "env"], typer.Option(help="env is the text of a .env file.")
    ] = "table",
) -> None:
    """Show the effective settings, secrets masked, and where each came from."""
    settings, environment = Settings.load(role), read()
    match format:
        case "json":
            typer.echo(as_json(settings, environment))
        case "env":
            typer.echo(as_env(settings, environment))
        case "table":
            table = plain_table("variable", "value", "from")
            for setting in effective_settings(settings, environment):
                table.add_row(setting.variable, setting.text, setting.origin)
            open_screen().print(table)
    if format != "json":
        for warning in settings.warnings:
            typer.echo(f"warning: {warning}", err=True)
