"""What stands before the server, found out at the first connection: nothing, or a pooler, and what that one can do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import asyncpg

from pool.connection import PoolConnection
from pool.errors import SchemaNotSet, describe
from pool.recording import recording
from pool.session_state import session_feature
from pool.stacks import call_site

Kind = Literal["none", "transaction", "session"]

TRIES = 5
NEIGHBOUR_TIMEOUT_S = 1.0  # a pooler in session mode may have no second server connection to give
CLOSE_TIMEOUT_S = 1.0
SHOWN_STATEMENT = 200  # characters
ORDINARY_SLOTS = (
    "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    " - coalesce(current_setting('reserved_connections', true), '0')::int"  # since 16
)
PROBE = "SELECT 1 AS pool_probe"
UNTRACKED = (
    ", which does not track prepared statements: each query is parsed anew (PgBouncer has max_prepared_statements"
    " since 1.21)"
)

_REFUSED = re.compile(r"startup parameter:? \"?(\w+)")
_NAME = re.compile(r'"(?:[^"]|"")*"|[^\s,"]+')
_QUOTE = re.compile(r"'|\$\w*\$")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pooler:
    """`tracks_statements`: a statement that a connection prepared is there whichever server connection it gets."""

    kind: Kind
    tracks_statements: bool = True


NONE = Pooler("none")


class Connector:
    """Opens a pool's connections in the way that what stands before the server wants them.

    `name` is the pool's; `declared` is what DB_POOLER says. The first connection finds out, those asked for meanwhile
    wait for that, and share its failure. With no pooler it is the pool's own, so a process needs no slot beyond its
    pool's at any time.
    """

    def __init__(self, name: str, declared: Literal["auto", "none", "transaction", "session"]) -> None:
        self.pooler = NONE
        self.slots = 0  # connections that the server has for ordinary roles; 0 = not known
        self._name = name
        self._declared: Kind | None = None if declared == "auto" else declared
        self._known = declared == "none"
        self._looking: asyncio.Future[None] | None = None
        self._refused: set[str] = set()  # names of server settings
        self._warned: set[str] = set()  # features

    async def connect(self, *args: Any, **kwargs: Any) -> PoolConnection:
        """`asyncpg.connect` with these arguments, as far as a pooler stands them. Raises SchemaNotSet, too."""
        connection: PoolConnection | None = None
        while connection is None and not self._known:
            if self._looking is None:
                connection = await self._look(*args, **kwargs)
            else:
                await asyncio.shield(self._looking)
        if connection is None:
            own = {} if self.pooler.tracks_statements else {"statement_cache_size": 0}
            connection = await self._open(*args, **kwargs | own)
        if self.pooler.kind == "transaction":
            connection.on_statement = self._warn_of_session_feature
        return connection

    async def _look(self, *args: Any, **kwargs: Any) -> PoolConnection | None:
        """Finds out; the connection that it took, if that is one as the pool wants it."""
        looking = self._looking = asyncio.get_running_loop().create_future()
        try:
            with recording():  # what is asked here is nobody's query
                connection = await self._find_out(*args, **kwargs)
        except BaseException as error:
            if isinstance(error, Exception):
                looking.set_exception(error)
                looking.exception()  # seen, also where nobody waits
            else:
                looking.set_result(None)  # cancelled: another one looks
            raise
        else:
            self._known = True
            looking.set_result(None)
            return connection
        finally:
            self._looking = None

    async def _find_out(self, *args: Any, **kwargs: Any) -> PoolConnection | None:
        """Asks on a throwaway connection where there is a pooler: how many statements one keeps is fixed at connect."""
        timeout_s: float = kwargs.get("timeout", 60.0)
        wanted_path: str | None = (kwargs.get("server_settings") or {}).get("search_path")
        if self._declared != "transaction":
            first: PoolConnection = await self._open(*args, **kwargs)
            try:
                if self._declared == "session":
                    self.pooler = Pooler("session")
                    await _check_search_path(first, wanted_path)
                    return first
                self.slots = await _slots_if_direct(first, timeout_s)
                if self.slots:
                    return first
                await _close(first)
            except BaseException:
                first.terminate()
                raise

        kwargs |= {"statement_cache_size": 0, "command_timeout": timeout_s, "connection_class": asyncpg.Connection}
        async with self._throwaway(*args, **kwargs) as connection:
            await _check_search_path(connection, wanted_path)
            tracks = await _tracks_statements(connection)
            # Statements are tracked in transaction mode alone: elsewhere there is no need.
            kind = self._declared or ("transaction" if tracks else await self._mode(connection, *args, **kwargs))
        self.pooler = Pooler(kind, tracks_statements=tracks or kind == "session")
        remark = "" if self.pooler.tracks_statements else UNTRACKED
        logger.info("pool %r: behind a pooler in %s mode%s", self._name, kind, remark)
        return None

    async def _mode(self, connection: asyncpg.Connection, *args: Any, **kwargs: Any) -> Kind:
        """Seen by what a second client gets; in doubt transaction mode, in which nobody else is harmed."""
        try:
            async with asyncio.timeout(NEIGHBOUR_TIMEOUT_S), self._throwaway(*args, **kwargs) as neighbour:
                return "transaction" if await _share_servers(connection, neighbour) else "session"
        except Exception as error:
            logger.warning(
                "pool %r: a pooler, in which mode is not known (%s): taken for transaction mode; DB_POOLER names it",
                self._name,
                describe(error),
            )
            return "transaction"

    @contextlib.asynccontextmanager
    async def _throwaway(self, *args: Any, **kwargs: Any) -> AsyncIterator[asyncpg.Connection]:
        connection = await self._open(*args, **kwargs)
        try:
            yield connection
            await _close(connection)
        finally:
            connection.terminate()

    async def _open(self, *args: Any, **kwargs: Any) -> Any:
        """Connects without the server settings that are refused: PgBouncer knows few, and names one at a time."""
        while True:
            wanted = kwargs.get("server_settings") or {}
            accepted = {name: value for name, value in wanted.items() if name not in self._refused}
            try:
                return await asyncpg.connect(*args, **kwargs | {"server_settings": accepted})
            except asyncpg.ProtocolViolationError as error:
                found = _REFUSED.search(str(error))
                if self._declared == "none" or found is None or found[1] not in accepted:
                    raise
                self._refused.add(found[1])
                if found[1] != "search_path":  # which is checked
                    logger.warning(
                        "pool %r: the pooler refuses the server setting %s: set it by ALTER ROLE", self._name, found[1]
                    )

    def _warn_of_session_feature(self, statement: str) -> None:
        feature = session_feature(statement)
        if feature is None or feature in self._warned:
            return
        self._warned.add(feature)
        shown = _QUOTE.split(statement, maxsplit=1)[0][:SHOWN_STATEMENT]  # what stands in quotes may be a secret
        logger.warning(
            "pool %r: behind a pooler in transaction mode %s is lost, or hits another client: %s%s, at %s; said once",
            self._name,
            feature,
            " ".join(shown.split()),
            " …" if len(shown) < len(statement) else "",
            call_site(),
        )


async def _slots_if_direct(connection: asyncpg.Connection, timeout_s: float) -> int:
    """How many connections the server has for ordinary roles; 0 where not it but a pooler has greeted.

    It is direct if the process that greeted is the one that answers. Asked without parameters, and answered by a
    number of rows: so no statement is prepared, which a pooler could lose.
    """
    status = await connection.execute(
        f"SELECT FROM generate_series(1, {ORDINARY_SLOTS}) WHERE pg_backend_pid() = {connection.get_server_pid()}",
        timeout=timeout_s,
    )
    return int(status.removeprefix("SELECT "))


async def _tracks_statements(connection: asyncpg.Connection) -> bool:
    """Whether a pooler gives prepared statements names of its own, by which it finds them on each server connection."""
    name = f"pool_probe_{secrets.token_hex(8)}"
    async with connection.transaction():
        statement = await connection.prepare(PROBE, name=name)
        if await _prepared(connection, "name", name):
            await connection.execute(f"DEALLOCATE {name}")  # it is on a server connection that others get
            return False
        return await _prepared(connection, "statement", statement.get_query())


async def _prepared(connection: asyncpg.Connection, column: str, value: str) -> bool:
    status = await connection.execute(f"SELECT FROM pg_prepared_statements WHERE {column} = '{value}' LIMIT 1")
    return bool(status == "SELECT 1")


async def _share_servers(one: asyncpg.Connection, other: asyncpg.Connection) -> bool:
    """Whether two clients get the same server process, or one gets several: not so in session mode."""
    process = await _process(one)
    for _ in range(TRIES):
        if await _process(other) == process or await _process(one) != process:
            return True
    return False


async def _process(connection: asyncpg.Connection) -> int:
    process: int = await connection.fetchval("SELECT pg_backend_pid()")
    return process


async def _check_search_path(connection: asyncpg.Connection, wanted: str | None) -> None:
    """A pooler may refuse the setting, or accept and drop it. Raises SchemaNotSet; more at its end does no harm."""
    if wanted is None:
        return
    path, statement = await connection.fetchrow(
        "SELECT current_setting('search_path'),"
        " format('ALTER ROLE %I IN DATABASE %I SET search_path = ', session_user, current_database())"
    )
    names = _names(wanted)
    if _names(path)[: len(names)] != names:
        quoted = ", ".join('"{}"'.format(name.replace('"', '""')) for name in names)
        raise SchemaNotSet(
            f"the pooler does not pass DB_SCHEMA on: search_path is {path}, not {wanted}; run on the server"
            f" `{statement}{quoted}`, then RECONNECT in PgBouncer's admin console"
        )


def _names(search_path: str) -> list[str]:
    return [
        name[1:-1].replace('""', '"') if name.startswith('"') else name.lower() for name in _NAME.findall(search_path)
    ]


async def _close(connection: asyncpg.Connection) -> None:
    with contextlib.suppress(Exception):  # it is aborted then
        await connection.close(timeout=CLOSE_TIMEOUT_S)
