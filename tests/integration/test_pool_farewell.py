"""A server that ends a session says so at once, and hangs up when it has cleaned up: statements in between.

asyncpg does not expect a word from the server while nothing was asked of it: the next statement fails on an internal
state of its protocol. Callers are told that the connection is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from tortoise.exceptions import DBConnectionError, OperationalError
from tortoise.transactions import in_transaction

from config import Settings
from db import connect
from db.models import Subscriber
from tests.engines import free_slots, open_tortoise
from tests.waiting import until
from worker.excuses import excuse

Environ = dict[str, str]

# The same connection for each statement, as it is: with its temporary table, and unasked whether it lives.
ONE_CONNECTION: dict[str, Any] = {"reset": "never", "pre_ping": False}
UNSENT = "connection was closed before this statement was sent"


@contextlib.asynccontextmanager
async def ending(environ: Environ, client: Any) -> AsyncIterator[None]:
    """The server process of the client's one connection has said that it ends, and cannot hang up yet.

    At its end it removes its temporary tables, and one of them is locked here. The connection must be idle, or in a
    transaction between two statements.
    """
    async with connect(Settings.load("poolctl", environ)) as other, other.transaction():
        process, schema = await other.fetchrow(
            "SELECT pid, (SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'temporary')"
            " FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()",
            client.application_name,
        )
        await other.execute(f"LOCK TABLE {schema}.temporary IN ACCESS SHARE MODE")
        await other.execute(f"SELECT pg_terminate_backend({process})")

        async def cleans_up() -> bool:
            return bool(await other.fetchval("SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted", process))

        await until(cleans_up, what="the server process cleans up")
        yield


@contextlib.asynccontextmanager
async def one_connection(environ: Environ, **guards: Any) -> AsyncIterator[Any]:
    """A client with one connection, whose session has a temporary table."""
    async with open_tortoise(environ, maxsize=1, guards=ONE_CONNECTION | guards) as client:
        await client.execute_script("CREATE TEMPORARY TABLE temporary ()")
        yield client


async def transact(_: Any) -> None:
    async with in_transaction():
        pass


INSERT = "INSERT INTO fleet_subscriber VALUES (1, $1, now())"
WRITES: dict[str, Callable[[Any], Awaitable[object]]] = {
    "create": lambda client: Subscriber.create(chat="never"),
    "script": lambda client: client.execute_script("INSERT INTO fleet_subscriber VALUES (1, 'never', now())"),
    "query": lambda client: client.execute_query(INSERT, ["never"]),
    "many": lambda client: client.execute_many(INSERT, [["never"]]),
    "begin": transact,
}


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_hears_of_a_lost_connection(environ: Environ, write: str) -> None:
    """On an idle connection; it is replaced."""
    async with one_connection(environ) as client:
        async with ending(environ, client):
            with pytest.raises(DBConnectionError) as caught:
                await WRITES[write](client)
        assert_lost(caught.value)
        assert str(caught.value) == f"the connection was lost: {UNSENT}"
        assert await Subscriber.all().count() == 0
        assert await free_slots(client, 1) == 1


async def test_a_read_hears_of_nothing(environ: Environ) -> None:
    """It is run again on another connection."""
    async with one_connection(environ) as client, ending(environ, client):
        assert await Subscriber.all().count() == 0


async def interrupted(environ: Environ, client: Any, at: str) -> None:
    """A transaction whose connection is ended within, just before what `at` names."""
    async with contextlib.AsyncExitStack() as meanwhile, in_transaction():
        await Subscriber.create(chat="never")
        await meanwhile.enter_async_context(ending(environ, client))
        if at == "statement":
            await Subscriber.create(chat="never either")
        elif at == "savepoint":
            await transact(client)


@pytest.mark.parametrize("at", ["statement", "savepoint", "commit"])
async def test_a_transaction_hears_of_a_lost_connection(environ: Environ, at: str) -> None:
    """Wherever it is just then."""
    async with one_connection(environ) as client:
        with pytest.raises(DBConnectionError, match=UNSENT) as caught:
            await interrupted(environ, client, at)
        assert_lost(caught.value)
        assert await Subscriber.all().count() == 0


RAW: dict[str, Callable[[Any], Awaitable[object]]] = {
    "execute": lambda connection: connection.execute("SELECT 1"),
    "fetchval": lambda connection: connection.fetchval("SELECT 1"),
    "prepare": lambda connection: connection.prepare("SELECT 2"),
    "executemany": lambda connection: connection.executemany("SELECT $1::int", [(1,)]),
    "transaction": lambda connection: connection.transaction().start(),
}


@pytest.mark.parametrize("statement", RAW)
async def test_whoever_has_the_connection_itself_hears_the_same(environ: Environ, statement: str) -> None:
    """The driver's own error, and of those that excuse a job."""
    async with one_connection(environ) as client, client.acquire_connection() as connection:
        assert await connection.fetchval("SELECT 1") == 1  # so that this one is prepared
        async with ending(environ, client):
            with pytest.raises(asyncpg.ConnectionDoesNotExistError, match=UNSENT) as caught:
                await RAW[statement](connection)
        assert_lost(caught.value)


async def raw_transaction(environ: Environ, client: Any, connection: Any) -> None:
    """The driver's own, whose connection is ended within."""
    async with contextlib.AsyncExitStack() as meanwhile, connection.transaction():
        await connection.fetchval("SELECT 1")
        await meanwhile.enter_async_context(ending(environ, client))
        await connection.fetchval("SELECT 1")


async def test_a_transaction_of_the_drivers_own_excuses_too(environ: Environ) -> None:
    """asyncpg says of it only that its connection is closed; by what, is behind that."""
    async with one_connection(environ) as client, client.acquire_connection() as connection:
        with pytest.raises(asyncpg.InterfaceError, match="connection is closed") as caught:
            await raw_transaction(environ, client, connection)
        assert excuse(caught.value) == "the database was away"


async def test_a_ping_hears_the_same(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that is found dead is replaced, and the log says why."""
    caplog.set_level("INFO", "pool")
    async with one_connection(environ, pre_ping=True, pre_ping_idle_s=0.0) as client, ending(environ, client):
        await Subscriber.create(chat="stored")
    assert f"replaced a dead connection: {UNSENT}" in caplog.text
    assert "cannot switch" not in caplog.text


async def test_a_fault_of_the_program_is_not_called_a_lost_connection(environ: Environ) -> None:
    """Neither what asyncpg cannot decode, nor two statements at once; the connection lives on."""
    async with one_connection(environ) as client:
        await client.execute_script("CREATE TYPE mood AS ENUM ('fine')")
        with pytest.raises(OperationalError, match="no decoder") as undecoded:
            await client.execute_query("SELECT ROW('fine'::mood)")
        assert type(undecoded.value) is OperationalError
        assert excuse(undecoded.value) is None
        async with client.acquire_connection() as connection:
            answer, error = await asyncio.gather(
                connection.fetchval("SELECT 1"), connection.execute("SELECT 2"), return_exceptions=True
            )
            assert answer == 1
            assert type(error) is asyncpg.InterfaceError
            assert "another operation is in progress" in str(error)
            assert excuse(error) is None
            assert await connection.fetchval("SELECT 3") == 3
        assert client.pool.snapshot().created == 1


def assert_lost(error: BaseException) -> None:
    """It excuses a job, and says nothing of asyncpg's states, not even in its traceback."""
    assert excuse(error) == "the database was away"
    assert "cannot switch" not in "".join(traceback.format_exception(error))
