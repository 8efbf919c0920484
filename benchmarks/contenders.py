"""How each contender is opened, on a server with the table. Needs the packages of the group `bench`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from benchmarks.asyncpg_pools import open_dedicated, open_pool, open_pool_without_reset
from benchmarks.contender import (
    ASYNCPG,
    DEDICATED,
    ENGINE,
    NO_RESET,
    PSYCOPG,
    SQLALCHEMY,
    SQLALCHEMY_AUTOCOMMIT,
    STOCK,
    Contender,
)
from benchmarks.psycopg_pools import open_psycopg
from benchmarks.sqlalchemy_engine import open_sqlalchemy, open_sqlalchemy_autocommit
from benchmarks.tortoise_engines import open_engine, open_stock
from config import Settings

OPENERS: dict[str, Callable[[Settings], AbstractAsyncContextManager[Contender]]] = {
    ENGINE: open_engine,
    STOCK: open_stock,
    ASYNCPG: open_pool,
    NO_RESET: open_pool_without_reset,
    DEDICATED: open_dedicated,
    SQLALCHEMY: open_sqlalchemy,
    SQLALCHEMY_AUTOCOMMIT: open_sqlalchemy_autocommit,
    PSYCOPG: open_psycopg,
}


@asynccontextmanager
async def open_contenders(settings: Settings) -> AsyncIterator[dict[str, Contender]]:
    """All of them, by name."""
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(opened(settings)) for name, opened in OPENERS.items()}
