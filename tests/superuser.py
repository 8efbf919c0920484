"""What the superuser does in a test's own database, over a connection past every pool and proxy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from config import Settings
from db import connect
from tests.waiting import until


async def execute(environ: Mapping[str, str], *statements: str) -> None:
    """Runs them one after the other."""
    async with connect(Settings.load("poolctl", environ)) as connection:
        for statement in statements:
            await connection.execute(statement)


async def value(environ: Mapping[str, str], query: str, *arguments: object) -> Any:
    """The first column of the query's first row."""
    async with connect(Settings.load("poolctl", environ)) as connection:
        return await connection.fetchval(query, *arguments)


async def connections(environ: Mapping[str, str], name: str) -> int:
    """How many connections of that application name the server has, to whatever database."""
    return int(await value(environ, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", name))


async def disconnected(environ: Mapping[str, str], name: str) -> None:
    """Waits until the server has none of that application name: a closed one takes a moment to go."""

    async def none() -> bool:
        return await connections(environ, name) == 0

    await until(none, what=f"no connection of {name} is left")


async def create_role(environ: Mapping[str, str], name: str) -> None:
    """A role that may do everything with the rows, and nothing else; its password is `pw-of-` and its name."""
    await execute(
        environ,
        f"CREATE ROLE {name} LOGIN PASSWORD 'pw-of-{name}'",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )
