"""Tortoise on our engine or on its own, with only what a test is about spelled out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tortoise.backends.base.client import BaseDBAsyncClient
from tortoise.context import TortoiseContext
from tortoise.transactions import in_transaction

from config import Settings
from config.tortoise import asyncpg_connect_kwargs
from db import connect
from db.models import Subscriber
from pool import PoolTimeout

OURS = "pool.engine"
STOCK = "tortoise.backends.asyncpg"
NAME = "tested"  # of the pool, and of its connections in pg_stat_activity
CLOSE_TIMEOUT_S = 0.5  # stock Tortoise waits 10 s for a connection that it has lost


def connection_config(
    environ: Mapping[str, str], engine: str = OURS, *, guards: Mapping[str, Any] | None = None, **credentials: Any
) -> dict[str, Any]:
    """One of Tortoise's `connections`. `guards` are credentials that only our engine has; stock goes without."""
    settings = Settings.load("worker", environ)
    basic = asyncpg_connect_kwargs(settings) | {"minsize": 0, "maxsize": 2, "application_name": NAME}
    own = {} if guards is None or engine == STOCK else guards
    return {"engine": engine, "credentials": basic | {"server_settings": {}} | credentials | own}


@contextlib.asynccontextmanager
async def open_tortoise(
    environ: Mapping[str, str], engine: str = OURS, *, guards: Mapping[str, Any] | None = None, **credentials: Any
) -> AsyncIterator[Any]:
    """The client of the connection "default", connected; the models of db/ are on it. 0 to 2 connections."""
    connection = connection_config(environ, engine, guards=guards, **credentials)
    apps = {"fleet": {"models": ["db.models"], "default_connection": "default"}}
    async with TortoiseContext() as context:
        await context.init(config={"connections": {"default": connection}, "apps": apps})
        client = context.db()
        try:
            await client.create_connection(with_db=True)
            yield client
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S if engine == STOCK else None):
                    await client.close()


async def free_slots(client: BaseDBAsyncClient, limit: int, *, within_s: float = 3.0) -> int:
    """How many of `limit` connections can be had at the same time, each good for a query."""
    got = 0
    async with contextlib.AsyncExitStack() as held:
        with contextlib.suppress(TimeoutError, PoolTimeout):
            async with asyncio.timeout(within_s):
                for _ in range(limit):
                    connection = await held.enter_async_context(client.acquire_connection())
                    assert await connection.fetchval("SELECT 1") == 1
                    got += 1
    return got


async def subscribe(chat: str) -> None:
    """One statement in a transaction, or in a savepoint where there is a transaction already."""
    async with in_transaction():
        await Subscriber.create(chat=chat)


async def backends(environ: Mapping[str, str], name: str = NAME) -> int:
    """How many connections the server has of that application name in this test's database."""
    async with connect(Settings.load("poolctl", environ)) as connection:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()", name
        )
    return count


def kill_backends(environ: Mapping[str, str], name: str = NAME) -> None:
    """Ends them, and blocks the event loop meanwhile: nobody on it has noticed yet."""

    async def kill() -> None:
        async with connect(Settings.load("poolctl", environ)) as connection:
            await connection.fetch(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = $1 AND datname = current_database()",
                name,
            )

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, kill()).result()
