"""Tortoise's transactions on our engine. With Tortoise's own engine the first two lose a connection for good."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest
from tortoise.exceptions import DBConnectionError
from tortoise.transactions import in_transaction

from config import Settings
from db import Database, connect, open_database
from db.models import Subscriber
from tests.engines import subscribe
from tests.proxy import Proxy, open_proxy
from tests.waiting import until

Environ = dict[str, str]


def in_use(database: Database) -> int:
    """Connections that are handed out."""
    return database.pool_snapshot().in_use


async def test_a_begin_that_is_cancelled_gives_its_connection_back(environ: Environ) -> None:
    """Every connection of the pool is lost in BEGIN, and cancelled; afterwards all places are usable again."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        settings = Settings.load(
            "worker",
            environ
            | {"DB_PORT": str(proxy.listens_on), "DB_POOL_MIN": "2", "DB_POOL_MAX": "2", "DB_POOL_TIMEOUT": "5"},
        )
        async with open_database(settings) as database:
            proxy.freeze()
            beginning = [asyncio.create_task(subscribe(f"lost-{n}")) for n in range(2)]
            await until(lambda: in_use(database) == 2)
            for task in beginning:
                task.cancel()
            results = await asyncio.gather(*beginning, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            assert in_use(database) == 0
            await asyncio.gather(*(subscribe(f"chat-{n}") for n in range(6)))
            assert await Subscriber.all().count() == 6


async def test_a_begin_that_fails_gives_its_connection_back(environ: Environ) -> None:
    """A server that ends the session in BEGIN raises in the caller's task, and only there."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        settings = Settings.load(
            "worker",
            environ
            | {"DB_PORT": str(proxy.listens_on), "DB_POOL_MIN": "1", "DB_POOL_MAX": "1", "DB_POOL_TIMEOUT": "5"},
        )
        async with open_database(settings) as database:
            for _ in range(3):
                proxy.freeze()
                cutting = asyncio.create_task(_cut_when_in_use(proxy, database))
                with pytest.raises((OSError, asyncpg.PostgresError)):
                    await subscribe("lost")
                await cutting
                assert in_use(database) == 0
                # This task sees the pool again, not the transaction that never began.
                assert await Subscriber.all().count() == 0


async def _cut_when_in_use(proxy: Proxy, database: Database) -> None:
    await until(lambda: in_use(database) == 1)
    proxy.cut()


async def test_transactions_commit_roll_back_and_nest(environ: Environ) -> None:
    """A committed transaction is kept, a failed one is not, nor is a failed one inside another."""
    async with open_database(Settings.load("worker", environ)) as database:
        await subscribe("kept")
        with contextlib.suppress(ZeroDivisionError):
            async with in_transaction():
                await Subscriber.create(chat="rolled back")
                raise ZeroDivisionError
        async with in_transaction():
            await Subscriber.create(chat="outer")
            with contextlib.suppress(ZeroDivisionError):
                async with in_transaction():
                    await Subscriber.create(chat="inner")
                    raise ZeroDivisionError
        assert await Subscriber.all().order_by("id").values_list("chat", flat=True) == ["kept", "outer"]
        assert in_use(database) == 0


async def test_a_transaction_whose_connection_dies_frees_its_place(environ: Environ) -> None:
    """After pg_terminate_backend inside a transaction the same task works on with another connection."""
    settings = Settings.load("worker", environ | {"DB_POOL_MIN": "1", "DB_POOL_MAX": "1"})
    async with open_database(settings) as database:
        with pytest.raises(DBConnectionError, match="the connection was lost"):
            await _die_in_a_transaction(settings)
        assert in_use(database) == 0
        assert await Subscriber.all().count() == 0


async def _die_in_a_transaction(settings: Settings) -> None:
    async with in_transaction() as transaction:
        _, rows = await transaction.execute_query("SELECT pg_backend_pid() AS pid")
        async with connect(settings) as connection:
            await connection.execute("SELECT pg_terminate_backend($1)", rows[0]["pid"])
        await Subscriber.create(chat="never")


async def test_cancelled_transactions_lose_no_connection(environ: Environ) -> None:
    """However transactions are cancelled, the pool has all its places afterwards, and nothing is half done."""
    settings = Settings.load("worker", environ | {"DB_POOL_MIN": "2", "DB_POOL_MAX": "2", "DB_POOL_TIMEOUT": "5"})
    async with open_database(settings) as database:
        for round_ in range(10):
            tasks = [asyncio.create_task(subscribe(f"{round_}-{n}")) for n in range(8)]
            for number, task in enumerate(tasks):
                asyncio.get_running_loop().call_later(0.001 * number, task.cancel)
            await asyncio.gather(*tasks, return_exceptions=True)
        assert in_use(database) == 0
        async with database.client.acquire_connection() as one, database.client.acquire_connection() as other:
            assert await one.fetchval("SELECT 1") == await other.fetchval("SELECT 1") == 1
            assert not one.is_in_transaction()
            assert not other.is_in_transaction()
