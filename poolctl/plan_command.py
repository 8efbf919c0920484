"""`poolctl plan`: how many connections a fleet takes, and what to do when they are too many."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from config import Settings
from config.exit_codes import ExitCode
from config.presets import PRESETS
from db.server import ServerReport, connect, read_server
from fleet.plan import Demand, Plan, PlanError, Pooler, Supply, Verdict
from fleet.queue import open_queue
from fleet.registry import ProcessEntry, read_fleet
from poolctl.plan_chart import draw, plot
from poolctl.plan_report import RedisShare, as_env, as_json, as_text

REDIS_MAXCLIENTS = 10_000  # Redis' default

Count = int | None


@dataclass(frozen=True, slots=True)
class Live:
    """What `--live` reads: the server, the processes, and how many clients Redis lets in."""

    server: ServerReport
    entries: Sequence[ProcessEntry]
    maxclients: int

    def of(self, role: str) -> list[ProcessEntry]:
        """The live processes of a role."""
        return [entry for entry in self.entries if entry.role == role]


def plan(
    workers: Annotated[
        Count, typer.Option(help="Worker processes. [default: WORKERS, or those alive with --live]")
    ] = None,
    bots: Annotated[Count, typer.Option(help="Bots beside the one that is part of the overhead. [default: 0]")] = None,
    overhead: Annotated[int, typer.Option(help="Bot, interface, migrations and administrator together.")] = 10,
    pool_min: Annotated[Count, typer.Option(help="[default: a worker's DB_POOL_MIN]")] = None,
    pool_max: Annotated[Count, typer.Option(help="[default: a worker's DB_POOL_MAX]")] = None,
    bot_pool_min: Annotated[Count, typer.Option(help="[default: a bot's DB_POOL_MIN]")] = None,
    bot_pool_max: Annotated[Count, typer.Option(help="[default: a bot's DB_POOL_MAX]")] = None,
    surge: Annotated[int, typer.Option(help="Old and new processes together, in a deployment, as a multiple.")] = 2,
    max_connections: Annotated[Count, typer.Option(help="The server's. [default: 100]")] = None,
    superuser_reserved: Annotated[Count, typer.Option(help="superuser_reserved_connections. [default: 3]")] = None,
    reserved: Annotated[Count, typer.Option(help="reserved_connections, PostgreSQL 16+. [default: 0]")] = None,
    head_room: Annotated[int, typer.Option(help="Per cent that stay free.")] = 20,
    memory_per_connection: Annotated[int, typer.Option(help="MB of the server for each connection.")] = 10,
    pgbouncer: Annotated[bool, typer.Option("--pgbouncer", help="Behind PgBouncer in transaction mode.")] = False,
    default_pool_size: Annotated[int, typer.Option(help="PgBouncer's.")] = 25,
    reserve_pool_size: Annotated[int, typer.Option(help="PgBouncer's.")] = 5,
    databases: Annotated[int, typer.Option(help="PgBouncer has a pool for each database and user.")] = 1,
    users: Annotated[int, typer.Option(help="PgBouncer has a pool for each database and user.")] = 1,
    max_client_conn: Annotated[int, typer.Option(help="PgBouncer's.")] = 1000,
    max_db_connections: Annotated[int, typer.Option(help="PgBouncer's; 0 = no limit.")] = 0,
    live: Annotated[bool, typer.Option("--live", help="Read server, registry and Redis; options given win.")] = False,
    preset: Annotated[str | None, typer.Option(help=f"Pool settings: {', '.join(PRESETS)}.")] = None,
    format: Annotated[Literal["table", "json", "env"], typer.Option()] = "table",  # noqa: A002 the option's name
    plot_: Annotated[bool, typer.Option("--plot", help="Draw a chart: in the terminal, or into FILE.")] = False,
    file: Annotated[Path | None, typer.Argument(help="With --plot: FILE.svg or FILE.png.")] = None,
) -> None:
    """How many connections the fleet takes, against what the server has; exit 1 if the peak is over that."""
    if preset is not None and preset not in PRESETS:
        raise PlanError(f"--preset {preset} is unknown: give one of {', '.join(PRESETS)}")
    if file is not None and not plot_:
        raise PlanError(f"{file} is not expected: give a file together with --plot")
    if preset is not None and format == "env":
        typer.echo(PRESETS[preset].as_env())
        return
    settings, bot_settings = Settings.load("worker"), Settings.load("bot")
    seen = asyncio.run(read_live(settings)) if live else None
    demand = _demand(
        settings,
        bot_settings,
        seen,
        preset,
        workers=workers,
        bots=bots,
        pool_min=pool_min,
        pool_max=pool_max,
        bot_pool_min=bot_pool_min,
        bot_pool_max=bot_pool_max,
        overhead=overhead,
        surge=surge,
    )
    supply = Supply(
        max_connections=_first(max_connections, seen and seen.server.max_connections, 100),
        superuser_reserved=_first(superuser_reserved, seen and seen.server.superuser_reserved, 3),
        reserved=_first(reserved, seen and seen.server.reserved, 0),
        head_room_percent=head_room,
        memory_per_connection_mb=memory_per_connection,
    )
    if databases < 1 or users < 1:
        raise PlanError(f"--databases {databases} × --users {users} is less than 1: give 1 or more of each")
    pooler = Pooler(
        default_pool_size=default_pool_size,
        reserve_pool_size=reserve_pool_size,
        pairs=databases * users,
        max_client_conn=max_client_conn,
        max_db_connections=max_db_connections,
    )
    made = Plan(demand, supply, pooler if pgbouncer else None, now=None if seen is None else seen.server.total)
    redis = RedisShare(
        processes=demand.workers + demand.bots + 1,  # the one bot of the overhead
        max_connections=settings.redis.max_connections,
        maxclients=REDIS_MAXCLIENTS if seen is None else seen.maxclients,
    )
    if plot_ and file is not None:
        draw(made, file)
        typer.echo(f"wrote {file}")
    elif plot_:
        typer.echo(plot(made, shutil.get_terminal_size((100, 24)).columns))
    elif format == "json":
        typer.echo(as_json(made, redis))
    elif format == "env":
        typer.echo(as_env(made))
    else:
        typer.echo(as_text(made, redis))
    if made.verdict is Verdict.OVER:
        raise typer.Exit(ExitCode.FINDING)


async def read_live(settings: Settings) -> Live:
    """The server past a pooler, the registry, and Redis' own limit. Raises DatabaseError or FleetError."""
    async with connect(settings, direct=True) as connection:
        server = await read_server(connection)
    async with open_queue(settings) as queue:
        entries = await read_fleet(queue)
        clients = await queue.info("clients")
    return Live(server, entries, int(clients.get("maxclients", REDIS_MAXCLIENTS)))


def _demand(
    worker: Settings, bot: Settings, seen: Live | None, preset: str | None, *, overhead: int, surge: int, **given: Count
) -> Demand:
    """Each number by what was asked for, else by what lives, else by the preset, else by the settings."""
    live_workers = seen.of("worker") if seen else []
    live_bots = seen.of("bot") if seen else []
    workers = _first(given["workers"], len(live_workers) or None, worker.fleet.workers, None)
    if workers is None:
        nobody = ", and no worker is alive" if seen else ""
        raise PlanError(f"how many workers? WORKERS is not set{nobody}: give --workers N")
    values = {name: int(PRESETS[preset].values[name][0]) for name in ("DB_POOL_MIN", "DB_POOL_MAX")} if preset else {}
    pools: dict[str, Any] = {}
    for prefix, settings, entries in (("", worker, live_workers), ("bot_", bot, live_bots)):
        largest = max((entry.pool.limit for entry in entries), default=None)
        floor = max((entry.pool.floor for entry in entries), default=None)
        ceiling = _first(given[f"{prefix}pool_max"], largest, values.get("DB_POOL_MAX"), settings.db.pool_max)
        usual = _first(floor, values.get("DB_POOL_MIN"), settings.db.pool_min)
        low = _first(given[f"{prefix}pool_min"], min(usual, ceiling))
        pools |= {f"{prefix}pool_max": ceiling, f"{prefix}pool_min": low}
    bots = _first(given["bots"], max(0, len(live_bots) - 1) if seen else None, 0)
    return Demand(workers=workers, bots=bots, overhead=overhead, surge=surge, **pools)


def _first(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
