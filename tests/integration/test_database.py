"""open_database on a real server that works."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tortoise.context import get_current_context
from tortoise.exceptions import OperationalError

from config import Settings
from db import connect, migrate, open_database
from db.errors import WrongPassword
from db.models import Alert, ConnectionSample, Subscriber
from pool import PoolError
from tests.superuser import connections, disconnected

Environ = dict[str, str]


async def test_the_floor_is_connected_before_anybody_asks(environ: Environ) -> None:
    """DB_POOL_MIN connections are open as soon as the database is, and none after it is closed."""
    settings = Settings.load("worker", environ | {"DB_POOL_MIN": "3"})
    name = settings.db.application_name
    async with open_database(settings) as database:
        assert await connections(environ, name) == 3
        snapshot = database.pool_snapshot()
        assert (snapshot.name, snapshot.size, snapshot.floor, snapshot.limit) == (name, 3, 3, 10)
    await disconnected(environ, name)


async def test_no_floor_still_connects_at_once(environ: Environ) -> None:
    """With DB_POOL_MIN=0 a wrong password is found at start all the same."""
    settings = Settings.load("worker", environ | {"DB_POOL_MIN": "0", "DB_PASSWORD": "wrong"})
    with pytest.raises(WrongPassword):
        async with open_database(settings, check_schema=False):
            pass
    async with open_database(Settings.load("worker", environ | {"DB_POOL_MIN": "0"})) as database:
        assert database.pool_snapshot().size == 1


async def test_models_work_in_the_opening_task_and_in_its_children(environ: Environ) -> None:
    """All three models are stored and read back, also by tasks that were started inside."""
    async with open_database(Settings.load("worker", environ)):
        sample = await ConnectionSample.create(
            max_connections=100,
            total=4,
            active=1,
            idle=2,
            idle_in_transaction=1,
            by_application={"worker@a:1": 3, "": 1},
        )
        await Alert.create(kind="connections", value=0.9)
        await asyncio.create_task(_subscribe("chat-1"))
        await asyncio.gather(*(_subscribe(f"chat-{n}") for n in range(2, 30)))

        stored = await ConnectionSample.get(id=sample.id)
        assert stored.by_application == {"worker@a:1": 3, "": 1}
        assert stored.at.tzinfo is not None
        assert (await Alert.get(kind="connections")).closed is None
        assert await Subscriber.all().count() == 29


async def _subscribe(chat: str) -> None:
    await Subscriber.create(chat=chat)


async def test_two_databases_are_open_at_once(servers: object, environ: Environ) -> None:
    """One inside the other: models use the inner one, and the outer one again after it is closed."""
    inner = environ | {"DB_SCHEMA": "inner", "DB_APPLICATION_NAME": "inner"}
    await migrate(Settings.load("poolctl", inner))
    async with open_database(Settings.load("worker", environ)):
        await Subscriber.create(chat="outer")
        async with open_database(Settings.load("worker", inner)):
            assert await Subscriber.all().count() == 0
        assert await Subscriber.all().count() == 1


async def test_nothing_global_is_left(environ: Environ) -> None:
    """After closing there is no Tortoise context, so a late query fails instead of opening a pool."""
    async with open_database(Settings.load("worker", environ)):
        pass
    assert get_current_context() is None
    with pytest.raises(RuntimeError, match="No TortoiseContext"):
        await Subscriber.all().count()


async def test_an_error_inside_reaches_the_caller_and_closes(environ: Environ) -> None:
    """The block's own exception comes out as it is, and no connection stays."""
    settings = Settings.load("worker", environ)
    with pytest.raises(ZeroDivisionError):
        async with open_database(settings):
            raise ZeroDivisionError
    await disconnected(environ, settings.db.application_name)
    assert get_current_context() is None


async def test_a_query_after_closing_is_refused(environ: Environ) -> None:
    """A client that outlived its database raises; Tortoise's own would silently open a new pool."""
    settings = Settings.load("worker", environ)
    async with open_database(settings) as database:
        client = database.client
    with pytest.raises(PoolError, match=f"pool '{settings.db.application_name}' is closed"):
        await client.execute_query("SELECT 1")
    assert await connections(environ, settings.db.application_name) == 0


@pytest.mark.slow
async def test_closing_does_not_wait_for_ever(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that is never given back is cut off, and giving it back late is harmless."""
    settings = Settings.load("worker", environ)
    started = asyncio.get_running_loop().time()
    async with open_database(settings) as database:
        held = database.client.acquire_connection()
        connection = await held.__aenter__()
        assert await connection.fetchval("SELECT 1") == 1
    assert asyncio.get_running_loop().time() - started < 8
    assert "1 connections still in use" in caplog.text
    await held.__aexit__(None, None, None)
    await disconnected(environ, settings.db.application_name)


async def test_a_schema_of_its_own(environ: Environ) -> None:
    """With DB_SCHEMA, migrations and models use that schema alone."""
    settings = Settings.load("worker", environ | {"DB_SCHEMA": "fleet"})
    assert (await migrate(settings))[0] == "fleet.0001_initial"
    async with open_database(settings):
        await Subscriber.create(chat="a")
    async with connect(Settings.load("worker", environ)) as connection:
        assert await connection.fetchval("SELECT count(*) FROM fleet.fleet_subscriber") == 1
        assert await connection.fetchval("SELECT count(*) FROM public.fleet_subscriber") == 0


async def test_the_password_is_in_no_log_line(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """Not even at DEBUG, where Tortoise and asyncpg log what they are given."""
    caplog.set_level(logging.DEBUG)
    async with open_database(Settings.load("worker", environ)) as database:
        await Subscriber.all().count()
        assert environ["DB_PASSWORD"] not in repr(database)
    assert "Created connection pool" in caplog.text
    assert environ["DB_PASSWORD"] not in caplog.text


async def test_tortoise_errors_stay_tortoise_errors(environ: Environ) -> None:
    """A faulty statement raises Tortoise's OperationalError through our engine."""
    async with open_database(Settings.load("worker", environ)) as database:
        with pytest.raises(OperationalError, match="does not exist"):
            await database.client.execute_query("SELECT * FROM missing")
