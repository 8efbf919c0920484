"""The option `--role` of commands that look at one role's settings, and a look with these settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

import typer

from config import Settings

RoleOption: TypeAlias = Annotated[
    Literal["worker", "bot"],
    typer.Option("--role", help="Whose settings: those with the prefix WORKER_DB_ or BOT_DB_ differ."),
]


def as_poolctl(settings: Settings) -> Settings:
    """The role's settings with a pool of one, under a name that is not taken for one of the role's processes."""
    name = settings.db.application_name.replace(settings.role, "poolctl", 1)
    return replace(
        settings,
        db=settings.db.model_copy(update={"pool_min": 1, "pool_max": 1, "application_name": name}),
    )
