"""The option `--role` of commands that look at one role's settings."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

RoleOption: TypeAlias = Annotated[
    Literal["worker", "bot"],
    typer.Option("--role", help="Whose settings: those with the prefix WORKER_DB_ or BOT_DB_ differ."),
]
