"""PgBouncer, where it stands between the processes and the server: is it there, what are its settings, RECONNECT."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from config import Settings
from config.groups import join_addresses
from db.errors import PoolerNotRead, PoolerNotReconnected, first_line
from db.pooler_console import (
    ADMIN_DATABASE,
    Address,
    ConsoleLost,
    ConsoleRefused,
    Login,
    NotPgBouncer,
    Rows,
    addresses_of,
    ask,
    connect_socket,
    in_thread,
    speaks_postgres,
)
from db.server import connect
from db.tls import socket_tls

# What PgBouncer says to a user who is in neither admin_users nor stats_users, and to one of stats_users alone; these
# have no code of their own.
NOT_ALLOWED, NOT_ADMIN = "not allowed", "admin access needed"


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
    """Whether DB_HOST is a pooler. Raises DatabaseError if it cannot be asked."""
    async with connect(settings) as connection:
        return await is_pooled(connection)


async def is_pooled(connection: Any) -> bool:
    """Whether a pooler stands behind an asyncpg connection: its greeting named another process than now answers."""
    return bool(await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid())


async def read_pooler(settings: Settings) -> PoolerReport:
    """What the admin console at DB_HOST says; of several hosts the first that lets us in.

    Takes DB_CONNECT_TIMEOUT for each answer. Raises PoolerNotRead.
    """
    login = _login(settings, settings.db.user, settings.db.password)
    failures: list[PoolerNotRead] = []
    for host, port in _hosts(settings):
        try:
            return await asyncio.to_thread(_read, settings, host, port, login)
        except PoolerNotRead as error:
            failures.append(error)
    raise failures[0]


async def reconnect(settings: Settings) -> str | None:
    """Has PgBouncer at PGBOUNCER_HOST replace each connection to the server as soon as its transaction is over.

    Connections to the server keep the plans of their prepared statements, for all clients: after a migration a
    `SELECT *` may fail on each try. Gives PgBouncer's `host:port`, or None where there is none: it is not named, its
    name is unknown, or nobody listens. Where the name stands for several, each is told. Takes at most
    DB_CONNECT_TIMEOUT to find it, and as long to tell it. Raises PoolerNotReconnected.
    """
    pgbouncer, within_s = settings.pgbouncer, settings.db.connect_timeout
    if pgbouncer.host is None:
        return None
    host, where = pgbouncer.host, pgbouncer.address
    login = _login(settings, pgbouncer.user, pgbouncer.password)

    def tell(addresses: set[Address]) -> int:
        told = 0
        for address in sorted(addresses):
            try:
                connected = connect_socket(*address, within_s)
            except TimeoutError as error:
                raise ConsoleLost(first_line(error)) from error
            except OSError:
                continue
            ask(connected, host, login, "RECONNECT")
            told += 1
        return told

    try:
        addresses = await in_thread(lambda: addresses_of(host, pgbouncer.port), within_s=within_s)
    except TimeoutError:
        return None
    try:
        return where if await in_thread(lambda: tell(addresses), within_s=within_s) else None
    except ConsoleRefused as error:
        remedy = f"correct PGBOUNCER_USER={pgbouncer.user} and PGBOUNCER_PASSWORD (or PGBOUNCER_PASSWORD_FILE)"
        if NOT_ALLOWED in str(error) or NOT_ADMIN in str(error):
            remedy = f"add to pgbouncer.ini, and RELOAD: admin_users = {pgbouncer.user}"
        problem = f"{error}: {remedy}"
    except (ConsoleLost, TimeoutError) as error:
        problem = f"{first_line(error)}: see PgBouncer's log, and DB_SSLMODE"
    except NotPgBouncer as error:
        problem = f"{error}: what answers is not PgBouncer: correct PGBOUNCER_HOST and PGBOUNCER_PORT"
    raise PoolerNotReconnected(
        f"PgBouncer at {where}: {problem}; until its admin console is given RECONNECT, statements prepared before this"
        " migration may fail"
    )


async def is_unused(settings: Settings) -> bool:
    """Whether a pooler answers at PGBOUNCER_HOST, and DB_HOST leads elsewhere. Takes at most DB_CONNECT_TIMEOUT."""
    pgbouncer, within_s = settings.pgbouncer, settings.db.connect_timeout
    if pgbouncer.host is None or pgbouncer.address in settings.db.addresses.split(","):
        return False
    pooler = pgbouncer.host, pgbouncer.port

    def look() -> bool:
        addresses = addresses_of(*pooler)
        used = {address for host in _hosts(settings) for address in addresses_of(*host)}
        return addresses.isdisjoint(used) and any(speaks_postgres(each, within_s) for each in sorted(addresses))

    try:
        return await in_thread(look, within_s=within_s)
    except TimeoutError:
        return False


def _hosts(settings: Settings) -> list[Address]:
    """DB_HOST's items, each with its port."""
    db = settings.db
    return list(zip(db.host, db.port * len(db.host) if len(db.port) == 1 else db.port, strict=True))


def _login(settings: Settings, user: str, password: SecretStr | None) -> Login:
    return Login(
        user=user,
        password=(password or SecretStr("")).get_secret_value,
        tls=socket_tls(settings),
        application_name=settings.db.application_name,
    )


def _read(settings: Settings, host: str, port: int, login: Login) -> PoolerReport:
    where = f"{login.user}@{join_addresses((host,), (port,))}/{ADMIN_DATABASE}"
    try:
        try:
            connected = connect_socket(host, port, settings.db.connect_timeout)
        except OSError as error:
            raise ConsoleLost(first_line(error)) from error
        shown = ask(connected, host, login, *(f"SHOW {what}" for what in ("CONFIG", "DATABASES", "USERS", "POOLS")))
        return _report(settings.db.name, login.user, *shown)
    except ConsoleRefused as error:
        remedy = "see PgBouncer's log, and correct DB_USER and DB_PASSWORD, or DB_HOST and DB_PORT"
        if NOT_ALLOWED in str(error):
            remedy = f"add to pgbouncer.ini, and RELOAD: stats_users = {login.user}"
        raise PoolerNotRead(f"{where}: {error}: {remedy}") from error
    except ConsoleLost as error:
        remedy = "is PgBouncer running, and are DB_HOST, DB_PORT and DB_SSLMODE right?"
        raise PoolerNotRead(f"{where}: {error}: {remedy}") from error
    except (NotPgBouncer, LookupError, TypeError, ValueError) as error:
        kind = str(error) if isinstance(error, NotPgBouncer) else type(error).__name__
        raise PoolerNotRead(
            f"{where}: {kind}: what answers is not PgBouncer: name it in DB_HOST and DB_PORT"
        ) from error


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
