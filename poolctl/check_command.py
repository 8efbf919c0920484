"""`poolctl check`: what a process would find if it started now, and what is wrong with that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import typer
from redis.exceptions import RedisError

from config import Settings
from config.exit_codes import ExitCode
from config.variables import VARIABLES, as_text
from db.database import open_database
from db.errors import SchemaBehind
from db.pooler import is_pooled, is_unused
from db.server import connect, read_server, target
from fleet.app import load_app
from fleet.errors import FleetError, QueueLost
from fleet.queue import address, open_queue
from fleet.registry import ProcessEntry, read_fleet
from poolctl.findings import Finding, Reading, find, may_open
from poolctl.role import RoleOption, as_poolctl
from poolctl.screen import open_screen, plain_table


def check(role: RoleOption = "worker") -> None:
    """Connect to database and Redis, and say what is there and what is wrong with it."""
    settings = Settings.load(role)
    reading = asyncio.run(read(settings))
    findings = list(find(reading))
    show(reading, findings)
    raise typer.Exit(max((finding.exit_code for finding in findings), default=ExitCode.OK))


async def read(settings: Settings) -> Reading:
    """Ask the server, a process's own way to it, the schema, and the fleet.

    Raises DatabaseError if unreachable, and AppRefused.
    """
    ours = as_poolctl(settings)
    app = load_app(ours)
    async with connect(ours, direct=True) as connection:
        server = await read_server(connection)
        direct_is_pooler = await is_pooled(connection)
    schema = None
    try:
        async with open_database(ours, apps=app.tables):  # by DB_HOST, as every process does
            pass
    except SchemaBehind as error:
        schema = error
    fleet, unused_pooler = await _read_fleet(ours), await is_unused(ours)
    return Reading(settings, server, fleet, schema, direct_is_pooler, unused_pooler)


async def _read_fleet(settings: Settings) -> Sequence[ProcessEntry] | FleetError:
    try:
        async with open_queue(settings) as queue:
            return await read_fleet(queue)
    except FleetError as error:
        return error
    except (RedisError, OSError) as error:
        return QueueLost(f"Redis at {address(settings.redis)} went away: {error}")


def show(reading: Reading, findings: Sequence[Finding]) -> None:
    """Print what was read, then the warnings of the settings, then the findings."""
    settings, server, fleet = reading.settings, reading.server, reading.fleet
    screen = open_screen()
    screen.print(f"database: {target(settings, direct=True)}, PostgreSQL {server.version}")
    if reading.behind_pooler:
        screen.print(f"pooler: {target(settings)}")
    screen.print(
        f"max_connections: {server.max_connections}, of these {server.superuser_reserved} for superusers and"
        f" {server.reserved} for roles with pg_use_reserved_connections: {server.available} available"
    )
    screen.print(
        f"connections now: {server.total}: {server.active} active, {server.idle} idle,"
        f" {server.idle_in_transaction} idle in transaction"
    )
    _print_table(
        ("application", "connections"), [(name or "(no name)", n) for name, n in server.by_application.items()]
    )
    screen.print(f"schema: {'behind' if reading.schema else 'up to date'}")
    screen.print(f"pool of each {settings.role}: {_pool_settings(settings)}")
    if isinstance(fleet, FleetError):
        screen.print("pools of all live processes: not known without Redis")
    else:
        screen.print(f"pools of all live processes ({len(fleet)}): up to {may_open(fleet)} connections")
        _print_table(
            ("process", "in use", "open", "may open"),
            [(entry.id, entry.pool.in_use, entry.pool.size, entry.pool.limit) for entry in fleet],
        )
    for warning in settings.warnings:
        screen.print(f"warning: {warning}")
    for finding in findings:
        screen.print(f"finding: {finding.text}", style="bold red")
    if not findings:
        screen.print("no findings")


def _pool_settings(settings: Settings) -> str:
    mode = "legacy mode, DATABASE_URL: " if settings.legacy else ""
    pool = (variable for variable in VARIABLES if variable.is_pool_setting)
    return mode + ", ".join(f"{setting.name}={as_text(getattr(settings.db, setting.field))}" for setting in pool)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if rows:
        table = plain_table(*columns)
        for row in rows:
            table.add_row(*map(str, row))
        open_screen().print(table)
