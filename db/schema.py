"""The schema: which migrations the database lacks, and applying them one process at a time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
from tortoise.context import TortoiseContext
from tortoise.exceptions import OperationalError
from tortoise.migrations.executor import MigrationExecutor, MigrationTarget

from config import Settings, tortoise_config
from config.tortoise import Tables, asyncpg_connect_kwargs
from db.errors import DRIVER_ERRORS, DatabaseError, MigrationFailed, SchemaBehind, classify, first_line
from db.server import connect, target
from db.tls import ssl_argument

LOCK_KEY = 0x706F6F6C63746C  # "poolctl"; advisory locks are per database
LOCK_TIMEOUT_S = 60.0

RECORDS_TABLE = "tortoise_migrations"

# What PostgreSQL answers to a migration that was applied already.
_EXISTS_ALREADY = (asyncpg.DuplicateTableError, asyncpg.DuplicateColumnError, asyncpg.DuplicateObjectError)
_NOT_ALLOWED = (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError)

logger = logging.getLogger(__name__)


async def pending(client: Any, config: dict[str, Any]) -> list[MigrationTarget]:
    """The migrations that the database behind a Tortoise client lacks, in order. `config` is that of Tortoise's apps.

    Raises asyncpg's or Tortoise's error if that cannot be read. Tortoise itself takes any error to mean that
    nothing was applied, so the records are read here first.
    """
    _, rows = await client.execute_query("SELECT to_regclass($1) IS NOT NULL AS present", [RECORDS_TABLE])
    if rows[0]["present"]:
        await client.execute_query(f"SELECT app, name FROM {RECORDS_TABLE} LIMIT 1")  # noqa: S608 - a constant
    steps = [step.migration for step in await MigrationExecutor(client, config).plan()]
    return [MigrationTarget(migration.app_label, migration.name) for migration in steps]


async def check_current(client: Any, settings: Settings, *, apps: Sequence[Tables] = ()) -> None:
    """Raises SchemaBehind if the database lacks a migration that this program or one of `apps` has.

    A database that is ahead is fine: while a new version is rolled out, processes of the old one go on.
    """
    try:
        missing = await pending(client, tortoise_config(settings, apps=apps)["apps"])
    except DRIVER_ERRORS as error:
        if isinstance(error.__cause__, asyncpg.InsufficientPrivilegeError):
            raise DatabaseError(
                f"{target(settings)}: {error}: GRANT SELECT, so that the schema can be compared with the program"
            ) from error
        raise classify(error, target(settings)) from error
    if missing:
        raise SchemaBehind(
            f"{target(settings)}: the schema is behind, not applied: {', '.join(map(_name, missing))}:"
            " run `poolctl migrate`"
        )


async def migrate(
    settings: Settings, *, apps: Sequence[Tables] = (), fake: bool = False, lock_timeout_s: float = LOCK_TIMEOUT_S
) -> list[str]:
    """Applies the pending migrations of the fleet and of `apps` on the direct host; their names: "fleet.0001_initial".

    Any number of processes may do this at once: an advisory lock lets one in after the other, each for at most
    `lock_timeout_s` seconds of waiting. With `fake`, a migration that fails because its tables are there already
    is recorded as applied: Tortoise writes the record after the migration's transaction, so a crash in between
    loses it.

    Raises DatabaseError: MigrationFailed if a migration or the wait for the lock fails, else why there is no
    connection.
    """
    async with connect(settings, direct=True, patient=True, command_timeout_s=0) as connection:
        await _lock(connection, settings, lock_timeout_s)  # until the connection closes
        if settings.db.schema_name is not None:
            await _ensure_schema(connection, settings)
        async with _tortoise(settings, apps) as (client, config):
            return await _apply(client, config, settings, fake=fake)


def _name(migration: MigrationTarget) -> str:
    return f"{migration.app_label}.{migration.name}"


async def _lock(connection: Any, settings: Settings, timeout_s: float) -> None:
    await connection.execute(f"SET lock_timeout = {round(timeout_s * 1000)}")
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
    except asyncpg.LockNotAvailableError as error:
        holder = await connection.fetchval(_LOCK_HOLDER, LOCK_KEY) or "nobody any more"
        raise MigrationFailed(
            f"{target(settings, direct=True)}: another process has been migrating for more than {timeout_s:g} s:"
            f" {holder}: wait for it, or end it"
        ) from error


_LOCK_HOLDER = """
    SELECT format('%s, pid %s, since %s', application_name, pid, date_trunc('second', backend_start))
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32) | objid::bigint = $1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def _ensure_schema(connection: Any, settings: Settings) -> None:
    """Creates DB_SCHEMA. Asks first: even IF NOT EXISTS takes a privilege that the role may not have."""
    if await connection.fetchval("SELECT current_schema()") is None:
        name = str(settings.db.schema_name).replace('"', '""')
        try:
            await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{name}"')
        except asyncpg.PostgresError as error:
            raise MigrationFailed(
                f"{target(settings, direct=True)}: DB_SCHEMA={settings.db.schema_name} does not exist"
                f" and cannot be created: {first_line(error)}: create it, or correct DB_SCHEMA"
            ) from error


@contextlib.asynccontextmanager
async def _tortoise(settings: Settings, apps: Sequence[Tables]) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
    """A Tortoise context on the direct host with a pool of its own, and the apps' configuration.

    On the engine of all other work, so that there is one way of connecting; Tortoise picks its schema editor by
    the dialect, and the one for asyncpg is the same. Two connections at most: a transaction and the record. No
    statement timeout: to build an index takes as long as it takes.
    """
    config = tortoise_config(settings, apps=apps)
    direct = asyncpg_connect_kwargs(settings, direct=True)
    config["connections"]["default"]["credentials"] |= {
        "host": direct["host"],
        "port": direct["port"],
        "ssl": ssl_argument(settings),
        "minsize": 0,
        "maxsize": 2,
        "command_timeout": None,
    }
    async with TortoiseContext() as context:
        await context.init(config=config)
        yield context.db(), config["apps"]


async def _apply(client: Any, config: dict[str, Any], settings: Settings, *, fake: bool) -> list[str]:
    where = target(settings, direct=True)
    executor = MigrationExecutor(client, config)
    done = []
    try:
        for migration in await pending(client, config):
            name = _name(migration)
            try:
                await executor.migrate([migration])
            except (OperationalError, asyncpg.PostgresError) as error:
                cause = error.__cause__ if isinstance(error.__cause__, asyncpg.PostgresError) else error
                if not fake or not isinstance(cause, _EXISTS_ALREADY):
                    raise _failure(name, cause, where) from error
                await executor.migrate([migration], fake=True)
                logger.warning("%s: recorded migration %s without running it: %s", where, name, error)
            done.append(name)
    except DRIVER_ERRORS as error:
        raise classify(error, where) from error
    return done


def _failure(name: str, cause: BaseException, where: str) -> DatabaseError:
    if isinstance(cause, _EXISTS_ALREADY):
        remedy = (
            ", but there is no record of this migration: if a crash lost it, run `poolctl migrate --fake`;"
            " if this is not the program's own, set DB_SCHEMA to a schema for the program alone"
        )
    elif isinstance(cause, _NOT_ALLOWED):
        remedy = ": GRANT USAGE, CREATE ON SCHEMA to this role, or set DB_SCHEMA to a schema that it owns"
    elif isinstance(cause, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError):
        return classify(cause, where)
    else:
        remedy = ""
    return MigrationFailed(f"{where}: migration {name} failed: {first_line(cause)}{remedy}")
