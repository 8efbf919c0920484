"""psycopg's asyncio pool, with the check at checkout on."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from benchmarks.contender import POOL, Contender
from benchmarks.work import INSERT, INSERT_RETURNING, NAME, READ, READ_ID, UPDATE, Work
from config import Settings
from config.tortoise import asyncpg_connect_kwargs


@asynccontextmanager
async def open_psycopg(settings: Settings) -> AsyncIterator[Contender]:
    """A pool of connections in autocommit mode; statements are prepared after five uses, psycopg's default."""
    known = asyncpg_connect_kwargs(settings)
    arguments = {
        "host": known["host"],
        "port": known["port"],
        "user": known["user"],
        "password": known["password"](),
        "dbname": known["database"],
        "sslmode": known["ssl"],
        "autocommit": True,
    }
    statements: Any = {sql: re.sub(r"\$\d", "%s", sql) for sql in (READ, INSERT, INSERT_RETURNING, UPDATE)}
    pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
        kwargs=arguments, min_size=POOL, max_size=POOL, check=AsyncConnectionPool.check_connection, open=False
    )

    async def read(_: int) -> object:
        async with pool.connection() as connection:
            return await (await connection.execute(statements[READ], (READ_ID,))).fetchall()

    async def insert(_: int) -> object:
        async with pool.connection() as connection:
            return await connection.execute(statements[INSERT], (NAME, 0))

    async def transaction(_: int) -> object:
        async with pool.connection() as connection, connection.transaction():
            await (await connection.execute(statements[READ], (READ_ID,))).fetchall()
            row = await (await connection.execute(statements[INSERT_RETURNING], (NAME, 0))).fetchone()
            return await connection.execute(statements[UPDATE], row)

    async def acquire(_: int) -> None:
        async with pool.connection():
            pass

    async with pool:
        await pool.wait()
        yield Contender({Work.READ: read, Work.INSERT: insert, Work.TRANSACTION: transaction, Work.ACQUIRE: acquire})
