"""Tortoise on this project's engine, and on its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from tortoise.context import TortoiseContext
from tortoise.transactions import in_transaction

from benchmarks.contender import Contender
from benchmarks.models import EngineRow, Row, StockRow
from benchmarks.work import INSERT, INSERT_RETURNING, NAME, READ, READ_ID, UPDATE, Work
from config import Settings, tortoise_config


@asynccontextmanager
async def open_client(settings: Settings, engine: str, app: str) -> AsyncIterator[Any]:
    """A Tortoise client on DB_ENGINE's one value or the other with its pool open, in a context of its own.

    `app`: that of the only model of benchmarks/models.py which the context is to know.
    """
    chosen = replace(settings, db=settings.db.model_copy(update={"engine": engine}))
    config = {
        "connections": tortoise_config(chosen)["connections"],
        "apps": {app: {"models": ["benchmarks.models"], "default_connection": "default"}},
    }
    async with TortoiseContext() as context:
        await context.init(config=config)
        client: Any = context.db()
        await client.create_connection(with_db=True)
        yield client


@asynccontextmanager
async def open_engine(settings: Settings) -> AsyncIterator[Contender]:
    """This project's engine with its guards as by default: all on but the leak watch and the queue's bound."""
    async with open_client(settings, "pool", "engine") as client:
        yield _contender(client, EngineRow)


@asynccontextmanager
async def open_stock(settings: Settings) -> AsyncIterator[Contender]:
    """Tortoise as it comes."""
    async with open_client(settings, "tortoise", "stock") as client:
        yield _contender(client, StockRow)


def _contender(client: Any, model: type[Row]) -> Contender:
    async def read(_: int) -> object:
        return await client.execute_query(READ, [READ_ID])

    async def get(_: int) -> object:
        return await model.get(id=READ_ID)

    async def insert(_: int) -> object:
        return await client.execute_query(INSERT, [NAME, 0])

    async def transaction(_: int) -> object:
        async with in_transaction() as session:
            await session.execute_query(READ, [READ_ID])
            row = await session.execute_insert(INSERT_RETURNING, [NAME, 0])
            return await session.execute_query(UPDATE, [row["id"]])

    async def acquire(_: int) -> None:
        async with client.acquire_connection():
            pass

    return Contender(
        {Work.READ: read, Work.GET: get, Work.INSERT: insert, Work.TRANSACTION: transaction, Work.ACQUIRE: acquire}
    )
