"""asyncpg: its pool, its pool without the reset at release, and connections without a pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from benchmarks.contender import POOL, Contender
from benchmarks.work import INSERT, INSERT_RETURNING, NAME, READ, READ_ID, UPDATE, Work
from config import Settings, asyncpg_pool_kwargs
from config.tortoise import asyncpg_connect_kwargs


@asynccontextmanager
async def open_pool(settings: Settings) -> AsyncIterator[Contender]:
    """asyncpg's pool as it comes."""
    async with asyncpg.create_pool(**asyncpg_pool_kwargs(settings)) as pool:
        yield _contender(pool)


@asynccontextmanager
async def open_pool_without_reset(settings: Settings) -> AsyncIterator[Contender]:
    """asyncpg's pool that leaves a session as its last user left it."""

    async def no_reset(_: Any) -> None:
        pass

    async with asyncpg.create_pool(**asyncpg_pool_kwargs(settings), reset=no_reset) as pool:
        yield _contender(pool)


@asynccontextmanager
async def open_dedicated(settings: Settings) -> AsyncIterator[Contender]:
    """The limit: each task has a connection of its own, and nothing is between them."""
    connections = await asyncio.gather(
        *(asyncpg.connect(**asyncpg_connect_kwargs(settings)) for _ in range(POOL)),
    )

    async def read(task: int) -> object:
        return await connections[task].fetch(READ, READ_ID)

    async def insert(task: int) -> object:
        return await connections[task].execute(INSERT, NAME, 0)

    async def transaction(task: int) -> object:
        return await _transaction(connections[task])

    try:
        yield Contender({Work.READ: read, Work.INSERT: insert, Work.TRANSACTION: transaction}, most_tasks=POOL)
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))


def _contender(pool: Any) -> Contender:
    async def read(_: int) -> object:
        return await pool.fetch(READ, READ_ID)

    async def insert(_: int) -> object:
        return await pool.execute(INSERT, NAME, 0)

    async def transaction(_: int) -> object:
        async with pool.acquire() as connection:
            return await _transaction(connection)

    async def acquire(_: int) -> None:
        async with pool.acquire():
            pass

    return Contender({Work.READ: read, Work.INSERT: insert, Work.TRANSACTION: transaction, Work.ACQUIRE: acquire})


async def _transaction(connection: Any) -> object:
    async with connection.transaction():
        await connection.fetch(READ, READ_ID)
        row_id = await connection.fetchval(INSERT_RETURNING, NAME, 0)
        return await connection.execute(UPDATE, row_id)
