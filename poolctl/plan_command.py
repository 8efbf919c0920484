"""`poolctl plan`: how many connections a fleet takes, and what to do when they are too many."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from config import Settings
from config.environment import read as read_environment
from config.exit_codes import ExitCode
from config.groups import LARGEST_POOL
from config.presets import PRESETS, Preset
from db.errors import DatabaseError
from db.pooler import PoolerDatabase, PoolerReport
from fleet.plan import OVERHEAD, Demand, Plan, PlanError, PooledDatabase, Pooler, Supply, Verdict
from fleet.plan_inputs import (
    PREFIXES,
    demand_of,
    from_fleet,
    from_settings,
    goes_through_pooler,
    pooler_from,
    supply_from,
)
from poolctl.plan_chart import plot
from poolctl.plan_live import Live, read_live
from poolctl.plan_picture import draw
from poolctl.plan_report import RedisShare, as_env, as_json, as_text
from poolctl.role import as_poolctl

REDIS_MAXCLIENTS = 10_000  # Redis' default

Count = int | None


def plan(
    context: typer.Context,
    workers: Annotated[
        Count, typer.Option(help="Worker processes. [default: WORKERS, or those alive with --live]")
    ] = None,
    bots: Annotated[Count, typer.Option(help="Bots beside the one that is part of the overhead. [default: 0]")] = None,
    overhead: Annotated[
        Count,
        typer.Option(
            help="Bot, interface, migrations and administrator together. [default: 10, or the bot's pool if larger]"
        ),
    ] = None,
    pool_min: Annotated[Count, typer.Option(help="[default: a worker's DB_POOL_MIN]")] = None,
    pool_max: Annotated[Count, typer.Option(help="[default: a worker's DB_POOL_MAX]")] = None,
    bot_pool_min: Annotated[Count, typer.Option(help="[default: a bot's DB_POOL_MIN]")] = None,
    bot_pool_max: Annotated[Count, typer.Option(help="[default: a bot's DB_POOL_MAX]")] = None,
    surge: Annotated[int, typer.Option(help="Old and new processes together, in a deployment, as a multiple.")] = 2,
    max_connections: Annotated[Count, typer.Option(help="The server's. [default: POSTGRES_MAX_CONNECTIONS]")] = None,
    superuser_reserved: Annotated[Count, typer.Option(help="superuser_reserved_connections. [default: 3]")] = None,
    reserved: Annotated[Count, typer.Option(help="reserved_connections, PostgreSQL 16+. [default: 0]")] = None,
    head_room: Annotated[int, typer.Option(help="Per cent that stay free.")] = 20,
    memory_per_connection: Annotated[int, typer.Option(help="MB of the server for each connection.")] = 10,
    pgbouncer: Annotated[
        bool | None,
        typer.Option(
            "--pgbouncer/--no-pgbouncer",
            help="Behind PgBouncer in transaction mode. [default: as COMPOSE_PROFILES says, or with --live whether"
            " DB_HOST is one]",
            show_default=False,
        ),
    ] = None,
    default_pool_size: Annotated[Count, typer.Option(help="[default: PGBOUNCER_DEFAULT_POOL_SIZE]")] = None,
    reserve_pool_size: Annotated[Count, typer.Option(help="[default: PGBOUNCER_RESERVE_POOL_SIZE]")] = None,
    databases: Annotated[
        Count, typer.Option(help="PgBouncer has a pool for each database and user. [default: 1]")
    ] = None,
    users: Annotated[Count, typer.Option(help="PgBouncer has a pool for each database and user. [default: 1]")] = None,
    max_client_conn: Annotated[Count, typer.Option(help="[default: PGBOUNCER_MAX_CLIENT_CONN]")] = None,
    max_db_connections: Annotated[
        Count, typer.Option(help="0 = no limit. [default: PGBOUNCER_MAX_DB_CONNECTIONS]")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Read server, PgBouncer, registry and Redis; options given win.")
    ] = False,
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
    if plot_ and format != "table":
        raise PlanError(f"--plot and --format {format} exclude each other: leave out one of them")
    if preset is not None and format == "env":
        if others := sorted(_given(context) - {"--preset", "--format"}):
            raise PlanError(f"--preset {preset} --format env prints this preset alone: leave out {', '.join(others)}")
        typer.echo(PRESETS[preset].as_env())
        return
    settings, bot_settings = Settings.load("worker"), Settings.load("bot")
    seen = asyncio.run(read_live(as_poolctl(settings), pgbouncer)) if live else None
    asked_for = {
        "workers": workers,
        "bots": bots,
        "overhead": overhead,
        "pool_min": pool_min,
        "pool_max": pool_max,
        "bot_pool_min": bot_pool_min,
        "bot_pool_max": bot_pool_max,
        "surge": surge,
    }
    given = {name: number for name, number in asked_for.items() if number is not None}
    demand = _demand(settings, bot_settings, seen, None if preset is None else PRESETS[preset], given)
    usual = supply_from(settings)
    supply = Supply(
        max_connections=_first(max_connections, seen and seen.server.max_connections, usual.max_connections),
        superuser_reserved=_first(
            superuser_reserved, seen and seen.server.superuser_reserved, usual.superuser_reserved
        ),
        reserved=_first(reserved, seen and seen.server.reserved, usual.reserved),
        head_room_percent=head_room,
        memory_per_connection_mb=memory_per_connection,
    )
    pooler = _pooler(
        pooler_from(settings),
        seen.pooler if seen else None,
        databases=databases,
        users=users,
        default_pool_size=default_pool_size,
        reserve_pool_size=reserve_pool_size,
        max_client_conn=max_client_conn,
        max_db_connections=max_db_connections,
    )
    behind_pooler = _first(pgbouncer, seen and seen.pooler is not None, goes_through_pooler(settings))
    now = None if seen is None else seen.server.total - 1  # without the connection that asked
    made = Plan(demand, supply, pooler if behind_pooler else None, now, settings.stack.compose_profiles)
    redis = RedisShare(
        processes=demand.workers + demand.bots + 1,  # the one bot of the overhead
        max_connections=settings.redis.max_connections,
        maxclients=REDIS_MAXCLIENTS if seen is None else seen.maxclients,
    )
    if pgbouncer is None and seen is None and settings.stack.pgbouncer and not behind_pooler:
        given_by = "DATABASE_URL" if settings.legacy else "DB_HOST"
        typer.echo(
            f"COMPOSE_PROFILES starts PgBouncer, but {given_by} leads past it to {settings.db.addresses}: planned"
            " without it; --pgbouncer plans with it",
            err=True,
        )
    for note in _notes(demand, seen, given, preset):
        typer.echo(note, err=True)
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


def _given(context: typer.Context) -> set[str]:
    """The options that were typed, by their names."""
    typed = (
        parameter
        for parameter in context.command.params
        if parameter.name is not None
        and (source := context.get_parameter_source(parameter.name)) is not None
        and source.name == "COMMANDLINE"
    )
    return {parameter.opts[0] for parameter in typed}


def _demand(
    worker: Settings, bot: Settings, seen: Live | None, preset: Preset | None, given: Mapping[str, int]
) -> Demand:
    """Each number by what was asked for, else by the preset, else by what lives, else by the settings."""
    numbers = from_settings(worker, bot)
    if worker.fleet.workers is not None:
        numbers["workers"] = worker.fleet.workers
    if seen is not None:
        numbers |= from_fleet(seen.entries)
    if preset is not None:
        # As if its lines stood in `.env`: WORKER_DB_POOL_MAX still wins over its DB_POOL_MAX.
        environ = {**read_environment().values, **preset.lines}
        numbers |= from_settings(Settings.load("worker", environ), Settings.load("bot", environ))
    numbers |= given
    if "workers" not in numbers:
        nobody = ", and no worker is alive" if seen else ""
        raise PlanError(f"how many workers? WORKERS is not set{nobody}: give --workers N")
    for prefix in PREFIXES.values():
        low, high = f"{prefix}pool_min", f"{prefix}pool_max"
        if low not in given:  # a floor that nobody asked for yields to the ceiling
            numbers[low] = min(numbers[low], numbers[high])
    return demand_of(numbers, legacy=worker.legacy)


def _notes(demand: Demand, seen: Live | None, given: Mapping[str, int], preset: str | None) -> Iterator[str]:
    """What in the plan may surprise, a line each."""
    if "overhead" not in given and demand.overhead > OVERHEAD:
        yield (
            f"the bot's pool of {demand.overhead} is larger than the overhead of {OVERHEAD} that it is part of:"
            f" the overhead is {demand.overhead}"
        )
    if seen is None:
        return
    for role, prefix in PREFIXES.items():
        sizes = Counter(entry.pool.limit for entry in seen.entries if entry.role == role)
        if len(sizes) > 1 and preset is None and f"{prefix}pool_max" not in given:
            each = " + ".join(f"{count} × {size}" for size, count in sorted(sizes.items()))
            total, mean = sum(sizes.elements()), getattr(demand, f"{prefix}pool_max")
            yield f"the pools of the live {role}s differ, {each} = {total}: planned with their mean, {mean}"
    if isinstance(seen.pooler, DatabaseError):
        yield f"PgBouncer's settings are not read, the options and defaults count: {seen.pooler}"


def _pooler(
    default: Pooler,
    seen: PoolerReport | DatabaseError | None,
    *,
    databases: Count,
    users: Count,
    max_client_conn: Count,
    **given: Count,
) -> Pooler:
    """Each setting by what was asked for, else by what PgBouncer says, else by PGBOUNCER_*.

    What was asked for also wins over a database's own setting.
    """
    for option, count in (("--databases", _first(databases, 1)), ("--users", _first(users, 1))):
        if not 1 <= count <= LARGEST_POOL:
            raise PlanError(f"{option} {count} is not from 1 to {LARGEST_POOL}: give so many")
    read = seen if isinstance(seen, PoolerReport) else None
    usual = {name: _first(value, getattr(read or default, name)) for name, value in given.items()}
    if read is None or databases is not None:
        pooled: tuple[PooledDatabase, ...] = (PooledDatabase(users=_first(users, 1)),) * _first(databases, 1)
    else:
        pooled = tuple(_pooled(each, usual, users, given) for each in read.databases)
    return Pooler(max_client_conn=_first(max_client_conn, (read or default).max_client_conn), databases=pooled, **usual)


def _pooled(database: PoolerDatabase, usual: dict[str, int], users: Count, given: dict[str, Count]) -> PooledDatabase:
    """A database that PgBouncer has, with those of its own settings that differ from the usual ones."""

    def own(setting: str, value: int) -> Count:
        return None if given[setting] is not None or value == usual[setting] else value

    return PooledDatabase(
        name=database.name,
        users=_first(users, database.users),
        pool_size=own("default_pool_size", database.pool_size),
        reserve_pool_size=own("reserve_pool_size", database.reserve_pool_size),
        max_db_connections=own("max_db_connections", database.max_db_connections),
    )


def _first(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
