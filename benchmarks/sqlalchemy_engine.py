"""SQLAlchemy's asyncio engine on asyncpg, with its pool's guards on."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.contender import POOL, Contender
from benchmarks.work import INSERT, INSERT_RETURNING, NAME, READ, READ_ID, UPDATE, Work
from config import Settings
from config.tortoise import asyncpg_connect_kwargs


@asynccontextmanager
async def open_sqlalchemy(settings: Settings) -> AsyncIterator[Contender]:
    """As it is out of the box: the first statement begins a transaction."""
    engine = _engine(settings)
    async with _disposed(engine):
        yield _contender(single=engine, transactional=engine)


@asynccontextmanager
async def open_sqlalchemy_autocommit(settings: Settings) -> AsyncIterator[Contender]:
    """With an engine of isolation level AUTOCOMMIT for single statements beside it, as its documentation proposes."""
    single, transactional = _engine(settings, isolation_level="AUTOCOMMIT"), _engine(settings)
    async with _disposed(single, transactional):
        yield _contender(single, transactional)


def _contender(single: AsyncEngine, transactional: AsyncEngine) -> Contender:
    statements = {sql: text(_named(sql)) for sql in (READ, INSERT, INSERT_RETURNING, UPDATE)}

    async def read(_: int) -> object:
        async with single.connect() as connection:
            return (await connection.execute(statements[READ], {"p1": READ_ID})).all()

    async def insert(_: int) -> object:
        async with single.begin() as connection:
            return await connection.execute(statements[INSERT], {"p1": NAME, "p2": 0})

    async def transaction(_: int) -> object:
        async with transactional.begin() as connection:
            (await connection.execute(statements[READ], {"p1": READ_ID})).all()
            row_id = (await connection.execute(statements[INSERT_RETURNING], {"p1": NAME, "p2": 0})).scalar_one()
            return await connection.execute(statements[UPDATE], {"p1": row_id})

    async def acquire(_: int) -> None:
        async with single.connect():
            pass

    return Contender({Work.READ: read, Work.INSERT: insert, Work.TRANSACTION: transaction, Work.ACQUIRE: acquire})


@asynccontextmanager
async def _disposed(*engines: AsyncEngine) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for engine in engines:
            await engine.dispose()


def _engine(settings: Settings, **options: Any) -> AsyncEngine:
    known = asyncpg_connect_kwargs(settings)
    return create_async_engine(
        URL.create("postgresql+asyncpg", known["user"], None, known["host"], known["port"], known["database"]),
        connect_args={name: known[name] for name in ("password", "ssl", "timeout", "command_timeout")},
        pool_size=POOL,
        max_overflow=0,
        pool_pre_ping=True,
        pool_use_lifo=True,
        **options,
    )


def _named(sql: str) -> str:
    return re.sub(r"\$(\d)", r":p\1", sql)
