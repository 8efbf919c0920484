"""PgBouncer, where it stands between the processes and the server: is it there, and what are its settings?

Its admin console speaks the simple query protocol alone, in which asyncpg reads no rows; pg8000 does.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pg8000.native

from config import Settings
from config.groups import join_addresses
from db.errors import PoolerNotRead, first_line
from db.server import connect
from db.tls import socket_tls

ADMIN_DATABASE = "pgbouncer"
NOT_ALLOWED = "not allowed"  # to a user who is in neither admin_users nor stats_users; it has no code of its own

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class PoolerDatabase:
    """One database of PgBouncer's, with the settings that count for it: its own, else those for all.

    `users` have a pool each. `pool_size` and `reserve_pool_size` are of each pool (where a user has its own, the
    largest); `max_db_connections` of all of them together, 0 for no limit.
    """

    name: str
    users: int
    pool_size: int
    reserve_pool_size: int
    max_db_connections: int


@dataclass(frozen=True, slots=True)
class PoolerReport:
    """PgBouncer's settings at this moment, by its own names.

    `max_client_conn` is what the fleet's own database lets in, where that is less. `databases` are those that have
    pools now, the fleet's own among them in any case, as far as they are on the same server as that.
    """

    default_pool_size: int
    reserve_pool_size: int
    max_client_conn: int
    max_db_connections: int
    databases: tuple[PoolerDatabase, ...]


async def is_pooler(settings: Settings) -> bool:
    """Whether DB_HOST is a pooler: its greeting names another process than the one that answers queries.

    Raises DatabaseError if it cannot be asked.
    """
    async with connect(settings) as connection:
        return bool(await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid())


async def read_pooler(settings: Settings) -> PoolerReport:
    """What the admin console at DB_HOST says; of several hosts the first that lets us in.

    Takes DB_CONNECT_TIMEOUT for each answer. Raises PoolerNotRead.
    """
    db = settings.db
    ports = db.port * len(db.host) if len(db.port) == 1 else db.port
    tls = socket_tls(settings)
    failures: list[PoolerNotRead] = []
    for host, port in zip(db.host, ports, strict=True):
        try:
            return await asyncio.to_thread(_read, settings, host, port, tls)
        except PoolerNotRead as error:
            failures.append(error)
    raise failures[0]


def _read(settings: Settings, host: str, port: int, tls: ssl.SSLContext | bool | None) -> PoolerReport:
    db = settings.db
    where = f"{db.user}@{join_addresses((host,), (port,))}/{ADMIN_DATABASE}"
    try:
        with _connect(host, port, db.connect_timeout) as connected:
            console = pg8000.native.Connection(
                db.user,
                host=host,
                password=db.password.get_secret_value(),
                database=ADMIN_DATABASE,
                application_name=db.application_name,
                ssl_context=False if connected.family == socket.AF_UNIX else tls,
                sock=connected,
            )
            with console:
                config, databases, users, pools = (
                    _ask(console, f"SHOW {what}") for what in ("CONFIG", "DATABASES", "USERS", "POOLS")
                )
        return _report(db.name, db.user, config, databases, users, pools)
    except pg8000.native.DatabaseError as error:
        said = str(error.args[0].get("M"))
        remedy = "see PgBouncer's log, and correct DB_USER and DB_PASSWORD, or DB_HOST and DB_PORT"
        if NOT_ALLOWED in said:
            remedy = f"add to pgbouncer.ini, and RELOAD: stats_users = {db.user}"
        raise PoolerNotRead(f"{where}: {first_line(Exception(said))}: {remedy}") from error
    except (OSError, pg8000.native.InterfaceError) as error:
        remedy = "is PgBouncer running, and are DB_HOST, DB_PORT and DB_SSLMODE right?"
        raise PoolerNotRead(f"{where}: {first_line(error)}: {remedy}") from error
    except Exception as error:
        # Whatever else listens there: pg8000 lets a KeyError, a struct.error or scramp's own errors through. Their
        # texts may quote what was sent, so only the type is shown.
        raise PoolerNotRead(
            f"{where}: {type(error).__name__}: what answers is not PgBouncer: name it in DB_HOST and DB_PORT"
        ) from error


def _connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """A socket of our own, so that its errors are the system's, and it is closed whatever happens."""
    if not host.startswith("/"):
        return socket.create_connection((host, port), timeout_s)
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(timeout_s)
        connected.connect(f"{host}/.s.PGSQL.{port}")
    except OSError:
        connected.close()
        raise
    return connected


def _ask(console: pg8000.native.Connection, statement: str) -> Rows:
    rows = console.run(statement)
    names = [column["name"] for column in console.columns]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _report(name: str, user: str, config: Rows, databases: Rows, users: Rows, pools: Rows) -> PoolerReport:
    """Put together what the console says; `name` and `user` are what the fleet asks PgBouncer for."""
    values = {row["key"]: row["value"] for row in config}
    default_size, default_reserve = int(values["default_pool_size"]), int(values["reserve_pool_size"])
    max_client_conn, max_db_connections = int(values["max_client_conn"]), int(values["max_db_connections"])
    known = {row["name"]: row for row in databases}
    own = known.get(name, {})  # none yet where the database is PgBouncer's `*` and nobody has used it
    if limit := own.get("max_client_connections", 0):  # since 1.24
        max_client_conn = min(max_client_conn, limit)
    pairs = {(row["database"], row["user"]) for row in pools if row["database"] != ADMIN_DATABASE}
    pairs.add((name, own.get("force_user") or user))
    of_users = {row["name"]: row for row in users}

    def read() -> Iterator[PoolerDatabase]:
        for each in sorted({database for database, _ in pairs}):
            row: dict[str, Any] = known.get(each, {})
            if row and own and (row["host"], row["port"]) != (own["host"], own["port"]):
                continue  # another server's connections
            members = [of_users.get(member, {}) for database, member in pairs if database == each]
            size: int = row.get("pool_size", default_size)
            reserve: int = row.get("reserve_pool_size", row.get("reserve_pool", default_reserve))  # renamed in 1.24
            yield PoolerDatabase(
                name=each,
                users=len(members),
                pool_size=_largest(members, "pool_size", size),
                reserve_pool_size=_largest(members, "reserve_pool_size", reserve),
                max_db_connections=row.get("max_connections", max_db_connections),
            )

    return PoolerReport(default_size, default_reserve, max_client_conn, max_db_connections, tuple(read()))


def _largest(users: Rows, name: str, usual: int) -> int:
    """Of the users' own values, which they may have since 1.24, and of the database's for those without one."""
    return max(int(user[name]) if user.get(name) not in (None, "") else usual for user in users)
