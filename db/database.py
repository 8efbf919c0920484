"""One process's database: Tortoise on the pool of pool/, connected before anybody asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import cast

from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.context import TortoiseContext

from config import Settings, tortoise_config
from config.tortoise import Tables
from db.errors import DatabaseError, TooManyClients
from db.retry import open_patiently
from db.schema import check_current
from db.server import connect, read_server, target
from db.tls import ssl_argument
from pool import PoolSnapshot
from pool.stock import snapshot_of

LIMITS_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Database:
    """An open database. Models find it by themselves, in the task that opened it and in all that it starts."""

    client: AsyncpgDBClient
    context: TortoiseContext

    def pool_snapshot(self) -> PoolSnapshot:
        """The pool of this process now."""
        return snapshot_of(self.client)


@contextlib.asynccontextmanager
async def open_database(
    settings: Settings, *, apps: Sequence[Tables] = (), check_schema: bool = True
) -> AsyncIterator[Database]:
    """Opens DB_POOL_MIN connections (at least one) at once, and closes all at the end; the models of `apps` work, too.

    Tries again for DB_CONNECT_TIMEOUT while the error may pass by itself. Raises the DatabaseError that says
    why not, and SchemaBehind if the database lacks a migration (unless `check_schema` is false); nothing stays
    open then.
    """
    config = tortoise_config(settings, apps=apps)
    config["connections"]["default"]["credentials"]["ssl"] = ssl_argument(settings)
    async with TortoiseContext() as context:
        await context.init(config=config)
        client = cast(AsyncpgDBClient, context.db())
        await _open(client, settings)
        try:
            if check_schema:
                await check_current(client, settings, apps=apps)
            yield Database(client, context)
        finally:
            # The context closes only what it knows: it forgets a client when another event loop asks for one.
            await client.close()


async def _open(client: AsyncpgDBClient, settings: Settings) -> None:
    async def open_once() -> None:
        await client.create_connection(with_db=True)
        if settings.db.pool_min == 0:  # nothing is connected yet
            try:
                async with client.acquire_connection():
                    pass
            except BaseException:
                await client.close()
                raise

    try:
        await open_patiently(open_once, target=target(settings), within_s=settings.db.connect_timeout)
    except TooManyClients as error:
        raise TooManyClients(f"{error}{await _limits(settings)}") from error


async def _limits(settings: Settings) -> str:
    """What the server allows, if it lets one more connection in to ask."""
    try:
        async with asyncio.timeout(LIMITS_TIMEOUT_S), connect(settings) as connection:
            server = await read_server(connection)
    except (DatabaseError, TimeoutError):
        return ""
    return f"; max_connections={server.max_connections}, of which ordinary roles get {server.available}"
