"""open_database where it must fail: the right class, in time, and nothing left open."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time

import asyncpg
import pytest
from tortoise.context import get_current_context

from config import Settings
from config.exit_codes import ExitCode
from config.tortoise import asyncpg_connect_kwargs
from db import open_database
from db.errors import (
    BadTLS,
    DatabaseError,
    DatabaseUnreachable,
    LoginRefused,
    NoSuchDatabase,
    NoSuitableServer,
    SchemaBehind,
    TooManyClients,
    WrongPassword,
)
from db.models import Subscriber
from tests.proxy import open_proxy
from tests.superuser import disconnected, execute
from tests.waiting import until

Environ = dict[str, str]
SPARE_PORT = "1"  # tcpmux; nobody listens there


async def failure(environ: Environ, **changes: str) -> DatabaseError:
    """The error with which opening fails; checks what holds for all of them."""
    environ = environ | changes
    settings = Settings.load("worker", environ)
    with pytest.raises(DatabaseError) as caught:
        async with open_database(settings):
            pass
    error = caught.value
    where = f"{settings.db.user}@{settings.db.addresses}/{settings.db.name}"
    assert str(error).startswith(where)
    assert "\n" not in str(error)
    assert environ["DB_PASSWORD"] not in str(error)
    assert get_current_context() is None
    return error


async def test_settings_that_are_wrong_fail_at_once(environ: Environ) -> None:
    """Wrong password, unknown role, unknown database: each has its class and is not tried again."""
    started = time.monotonic()
    for error, kind in (
        (await failure(environ, DB_PASSWORD="wrong-one"), WrongPassword),
        (await failure(environ, DB_USER="nobody_knows"), WrongPassword),
        (await failure(environ, DB_NAME="missing"), NoSuchDatabase),
        (await failure(environ, DB_SSLMODE="require"), BadTLS),
    ):
        assert type(error) is kind
        assert error.exit_code is ExitCode.USAGE
    assert time.monotonic() - started < 5


async def test_a_role_that_may_not_come_in(environ: Environ) -> None:
    """NOLOGIN and a missing CONNECT privilege are refusals of the login, not wrong passwords."""
    name = environ["DB_NAME"]
    try:
        await execute(environ, "CREATE ROLE locked PASSWORD 'pw-of-locked'")
        environ_of_locked = {"DB_USER": "locked", "DB_PASSWORD": "pw-of-locked"}
        assert type(await failure(environ, **environ_of_locked)) is LoginRefused
        await execute(environ, "ALTER ROLE locked LOGIN", f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
        assert type(await failure(environ, **environ_of_locked)) is LoginRefused
    finally:
        await execute(environ, "DROP ROLE locked")


async def test_nobody_listens(environ: Environ) -> None:
    """A refused connection is tried again for DB_CONNECT_TIMEOUT, and then is DatabaseUnreachable."""
    started = time.monotonic()
    error = await failure(environ, DB_PORT=SPARE_PORT, DB_CONNECT_TIMEOUT="0.5")
    assert type(error) is DatabaseUnreachable
    assert error.exit_code is ExitCode.NOT_READY
    assert "tried for 0.5 s" in str(error)
    assert 0.5 <= time.monotonic() - started < 1.5


async def test_a_name_that_does_not_resolve(environ: Environ) -> None:
    """An unknown host is unreachable: where containers start together it may become known."""
    error = await failure(environ, DB_HOST="database.invalid", DB_CONNECT_TIMEOUT="0.3")
    assert type(error) is DatabaseUnreachable


async def test_a_black_hole_costs_no_more_than_the_timeout(environ: Environ) -> None:
    """A server that accepts and never answers takes DB_CONNECT_TIMEOUT, at most a second more."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        proxy.deaf = True
        started = time.monotonic()
        error = await failure(environ, DB_PORT=str(proxy.listens_on), DB_CONNECT_TIMEOUT="1", DB_POOL_MIN="5")
        assert time.monotonic() - started < 2
        assert type(error) is DatabaseUnreachable
        assert "no answer in time" in str(error)


async def test_all_hosts_are_named(environ: Environ) -> None:
    """Where DB_HOST lists several, the error names each with its port."""
    error = await failure(environ, DB_HOST="127.0.0.1,127.0.0.2", DB_PORT="1,2", DB_CONNECT_TIMEOUT="0.3")
    assert "@127.0.0.1:1,127.0.0.2:2/" in str(error)


async def test_the_second_host_is_used_where_the_first_refuses(environ: Environ) -> None:
    """Several hosts reach asyncpg through Tortoise, each with its port."""
    settings = Settings.load(
        "worker", environ | {"DB_HOST": f"127.0.0.1,{environ['DB_HOST']}", "DB_PORT": f"1,{environ['DB_PORT']}"}
    )
    async with open_database(settings):
        assert await Subscriber.all().count() == 0


async def test_no_server_of_the_wanted_kind(environ: Environ) -> None:
    """A primary is no standby: the error names the setting."""
    error = await failure(environ, DB_TARGET_SESSION_ATTRS="standby", DB_CONNECT_TIMEOUT="0.3")
    assert type(error) is NoSuitableServer
    assert "DB_TARGET_SESSION_ATTRS" in str(error)


async def test_a_server_that_comes_up_is_waited_for(environ: Environ) -> None:
    """Opening succeeds when the server begins to listen within DB_CONNECT_TIMEOUT."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        await proxy.stop()
        settings = Settings.load("worker", environ | {"DB_PORT": str(proxy.listens_on)})
        opening = asyncio.create_task(_count(settings))
        await asyncio.sleep(0)
        await proxy.start()
        assert await opening == 0


async def test_a_server_that_is_starting_up_is_waited_for(environ: Environ) -> None:
    """SQLSTATE 57P03 is no failure yet."""
    fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        proxy.greeting = b"E" + struct.pack("!i", len(fields) + 4) + fields
        settings = Settings.load("worker", environ | {"DB_PORT": str(proxy.listens_on)})
        opening = asyncio.create_task(_count(settings))
        await until(lambda: proxy.accepted >= 2, what="it was tried again")
        proxy.greeting = None
        assert await opening == 0


async def _count(settings: Settings) -> int:
    async with open_database(settings):
        count: int = await Subscriber.all().count()
    return count


async def test_a_role_s_connection_limit(environ: Environ) -> None:
    """Too few slots for the floor is TooManyClients: it says what the server allows and what to do."""
    await execute(environ, "CREATE ROLE few LOGIN PASSWORD 'pw-of-few' CONNECTION LIMIT 2")
    try:
        error = await failure(
            environ,
            DB_USER="few",
            DB_PASSWORD="pw-of-few",
            DB_POOL_MIN="5",
            DB_CONNECT_TIMEOUT="0.5",
            DB_APPLICATION_NAME="few",
        )
        assert type(error) is TooManyClients
        assert error.exit_code is ExitCode.NOT_READY
        assert "lower DB_POOL_MAX" in str(error)
        await disconnected(environ, "few")
    finally:
        await execute(environ, "DROP ROLE few")


async def test_a_server_without_free_slots(environ: Environ) -> None:
    """With all of max_connections taken, an ordinary role is told so, and gets in when slots come free."""
    await execute(
        environ,
        "CREATE ROLE plain LOGIN PASSWORD 'pw-of-plain'",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain",
    )
    plain = environ | {"DB_USER": "plain", "DB_PASSWORD": "pw-of-plain", "DB_CONNECT_TIMEOUT": "0.5"}
    taken: list[asyncpg.Connection] = []
    try:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(**asyncpg_connect_kwargs(Settings.load("worker", plain))))
        assert type(await failure(plain)) is TooManyClients
        opening = asyncio.create_task(_count(Settings.load("worker", plain | {"DB_CONNECT_TIMEOUT": "10"})))
        for connection in taken[:5]:
            await connection.close()
        assert await opening == 0
    finally:
        for connection in taken:
            connection.terminate()
        await until(lambda: _dropped(environ, "plain"), what="the role is gone")


async def _dropped(environ: Environ, role: str) -> bool:
    try:
        await execute(environ, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    except (DatabaseError, asyncpg.PostgresError):
        return False
    return True


async def test_a_schema_that_is_behind(environ: Environ) -> None:
    """A database without a migration is refused with its name and the remedy, and the pool is closed."""
    await execute(environ, "DELETE FROM tortoise_migrations")
    error = await failure(environ, DB_APPLICATION_NAME="behind")
    assert type(error) is SchemaBehind
    assert error.exit_code is ExitCode.NOT_READY
    assert "fleet.0001_initial, fleet.0002_outgoing, fleet.0003_alert_subject: run `poolctl migrate`" in str(error)
    await disconnected(environ, "behind")
    async with open_database(Settings.load("worker", environ), check_schema=False):
        pass


async def test_a_schema_that_is_ahead(environ: Environ) -> None:
    """A migration that only a newer version knows does not stop this one."""
    await execute(
        environ, "INSERT INTO tortoise_migrations (app, name, applied_at) VALUES ('fleet', '9999_new', now())"
    )
    assert await _count(Settings.load("worker", environ)) == 0


async def test_records_that_cannot_be_read_are_not_a_schema_behind(environ: Environ) -> None:
    """Without SELECT on the migration records the error says so; Tortoise would take it for an empty database."""
    await execute(environ, "CREATE ROLE blind LOGIN PASSWORD 'pw-of-blind'")
    try:
        error = await failure(environ, DB_USER="blind", DB_PASSWORD="pw-of-blind")
        assert type(error) is DatabaseError
        assert "permission denied for table tortoise_migrations" in str(error)
    finally:
        await execute(environ, "DROP ROLE blind")


async def test_a_cancelled_start_leaves_nothing_open(environ: Environ) -> None:
    """Cancelled when one connection of the floor is there and others are on their way, all are closed."""
    name = "cancelled"
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        settings = Settings.load(
            "worker", environ | {"DB_PORT": str(proxy.listens_on), "DB_POOL_MIN": "5", "DB_APPLICATION_NAME": name}
        )
        opening = asyncio.create_task(_count(settings))
        await until(lambda: proxy.accepted >= 1)
        proxy.deaf = True
        await until(lambda: proxy.accepted >= 5, what="the rest of the floor is being opened")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await disconnected(environ, name)
    assert get_current_context() is None
