"""The server itself: one plain connection to it, and what it says of its connections."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg

from config import Settings
from config.tortoise import asyncpg_connect_kwargs
from db.errors import DRIVER_ERRORS, classify
from db.retry import open_patiently
from db.tls import ssl_argument

CLOSE_TIMEOUT_S = 1.0

# Of a session of another role a plain role sees neither state nor backend_type; walsenders and the server's own
# processes have no database. A session that is not yet logged in has none either.
_SESSIONS = """
    SELECT application_name, state, count(*)
    FROM pg_stat_activity
    WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
    GROUP BY application_name, state
"""
_LIMITS = """
    SELECT current_setting('server_version') AS version,
           current_setting('max_connections')::int AS max_connections,
           current_setting('superuser_reserved_connections')::int AS superuser_reserved,
           coalesce(current_setting('reserved_connections', true), '0')::int AS reserved
"""


@dataclass(frozen=True, slots=True)
class ServerReport:
    """The server's limits and its client connections at one moment, the asking one included.

    `reserved` is PostgreSQL 16's `reserved_connections`, 0 before. `by_application` counts by
    `application_name`, most first; it may be empty text. `active`, `idle` and `idle_in_transaction` add up to
    less than `total` where the role may not see the state of others' sessions (it can with `pg_monitor`).
    """

    version: str
    max_connections: int
    superuser_reserved: int
    reserved: int
    total: int
    active: int
    idle: int
    idle_in_transaction: int
    by_application: dict[str, int]

    @property
    def available(self) -> int:
        """Connections that ordinary roles may hold together."""
        return self.max_connections - self.superuser_reserved - self.reserved


async def read_server(connection: Any) -> ServerReport:
    """What the server says now, over an asyncpg connection (plain, or of a pool)."""
    limits = await connection.fetchrow(_LIMITS)
    by_state: dict[str | None, int] = {}
    by_application: dict[str, int] = {}
    for application, state, count in await connection.fetch(_SESSIONS):
        by_state[state] = by_state.get(state, 0) + count
        by_application[application] = by_application.get(application, 0) + count
    return ServerReport(
        **limits,
        total=sum(by_state.values()),
        active=by_state.get("active", 0),
        idle=by_state.get("idle", 0),
        idle_in_transaction=by_state.get("idle in transaction", 0) + by_state.get("idle in transaction (aborted)", 0),
        by_application=dict(sorted(by_application.items(), key=lambda item: (-item[1], item[0]))),
    )


def target(settings: Settings, *, direct: bool = False) -> str:
    """`user@host:port/database` for messages; all hosts where there are several."""
    db = settings.db
    return f"{db.user}@{db.direct_addresses if direct else db.addresses}/{db.name}"


@contextlib.asynccontextmanager
async def connect(
    settings: Settings, *, direct: bool = False, patient: bool = False, command_timeout_s: float | None = None
) -> AsyncIterator[Any]:
    """One plain asyncpg connection, outside of any pool; with `direct`, to the server behind a pooler.

    With `patient`, tries again for DB_CONNECT_TIMEOUT while the error may pass. `command_timeout_s` replaces
    DB_COMMAND_TIMEOUT, 0 for none. Raises a DatabaseError if it cannot connect, or if the connection breaks
    while it is used.
    """
    where = target(settings, direct=direct)
    arguments = asyncpg_connect_kwargs(settings, direct=direct) | {"ssl": ssl_argument(settings)}
    # In a pooler's transaction mode the next query may find another server connection, without the named statements
    # of this one and with those of others.
    arguments["statement_cache_size"] = 0
    if command_timeout_s is not None:
        arguments["command_timeout"] = command_timeout_s or None

    async def open_once() -> Any:
        return await asyncpg.connect(**arguments)

    if patient:
        connection = await open_patiently(open_once, target=where, within_s=settings.db.connect_timeout)
    else:
        try:
            connection = await open_once()
        except DRIVER_ERRORS as error:
            raise classify(error, where) from error
    try:
        yield connection
    except (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError) as error:
        raise classify(error, where) from error
    finally:
        # asyncpg hangs up by itself where saying goodbye fails; what the caller did counts, not this.
        with contextlib.suppress(*DRIVER_ERRORS):
            await connection.close(timeout=CLOSE_TIMEOUT_S)
