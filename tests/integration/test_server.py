"""Reading the server, and one plain connection to it."""

from __future__ import annotations

import asyncio
import time

import pytest

from config import Settings
from db import DatabaseError, ServerReport, connect, open_database, read_server
from db.errors import DatabaseUnreachable, WrongPassword
from tests.proxy import open_proxy
from tests.waiting import until

Environ = dict[str, str]


def settings(environ: Environ, **changes: str) -> Settings:
    """Settings of a command, with changes."""
    return Settings.load("poolctl", environ | changes)


async def test_the_report_counts_clients_by_application_and_state(environ: Environ) -> None:
    """Idle, active and idle-in-transaction sessions are told apart, and counted by application_name."""
    async with (
        open_database(settings(environ, DB_APPLICATION_NAME="pooled", DB_POOL_MIN="3")),
        connect(settings(environ, DB_APPLICATION_NAME="in-transaction")) as busy,
        connect(settings(environ, DB_APPLICATION_NAME="asking")) as asking,
    ):
        await busy.execute("BEGIN")
        report = await read_server(asking)
    assert {name: report.by_application[name] for name in ("pooled", "in-transaction", "asking")} == {
        "pooled": 3,
        "in-transaction": 1,
        "asking": 1,
    }
    assert report.idle >= 3
    assert report.idle_in_transaction == 1
    assert report.active >= 1
    assert report.total == sum(report.by_application.values())
    assert list(report.by_application.values()) == sorted(report.by_application.values(), reverse=True)


async def test_the_limits_are_the_server_s_own(environ: Environ) -> None:
    """max_connections and what is reserved come from the server."""
    async with connect(settings(environ)) as connection:
        report = await read_server(connection)
        assert str(report.max_connections) == await connection.fetchval("SHOW max_connections")
        assert report.version == await connection.fetchval("SHOW server_version")
        assert report.available == report.max_connections - report.superuser_reserved - report.reserved
    assert report.superuser_reserved == 3


def test_available_leave_out_both_reserves() -> None:
    """Ordinary roles get what neither superusers nor pg_use_reserved_connections hold back."""
    report = ServerReport("16", 100, 3, 5, 0, 0, 0, 0, {})
    assert report.available == 92


async def test_an_ordinary_role_counts_everybody(environ: Environ) -> None:
    """A role that may not look into others' sessions still counts all of them, and nothing but clients."""
    async with connect(settings(environ)) as connection:
        await connection.execute("CREATE ROLE plain_reader LOGIN PASSWORD 'pw-of-plain-reader'")
        try:
            async with connect(settings(environ, DB_USER="plain_reader", DB_PASSWORD="pw-of-plain-reader")) as plain:
                seen, truth = await read_server(plain), await read_server(connection)
            assert (seen.total, seen.by_application) == (truth.total, truth.by_application)
        finally:
            await connection.execute("DROP ROLE plain_reader")


async def test_a_pool_s_connection_can_read_too(environ: Environ) -> None:
    """read_server takes a connection of Tortoise's client as well."""
    async with open_database(settings(environ)) as database, database.client.acquire_connection() as connection:
        assert (await read_server(connection)).total >= 1


async def test_connect_raises_the_same_errors_at_once(environ: Environ) -> None:
    """One attempt, one line: a check should not wait for a server that is down."""
    started = time.monotonic()
    with pytest.raises(WrongPassword):
        async with connect(settings(environ, DB_PASSWORD="wrong-one")):
            pass
    with pytest.raises(DatabaseUnreachable):
        async with connect(settings(environ, DB_PORT="1")):
            pass
    assert time.monotonic() - started < 2


async def test_a_patient_connect_waits_for_the_server(environ: Environ) -> None:
    """With patient=True a server that comes up in time is no error."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        await proxy.stop()
        asking = asyncio.create_task(_answer(settings(environ, DB_PORT=str(proxy.listens_on))))
        await asyncio.sleep(0)
        await proxy.start()
        assert await asking == 1


async def _answer(patient: Settings) -> object:
    async with connect(patient, patient=True) as connection:
        return await connection.fetchval("SELECT 1")


async def test_direct_goes_to_the_server_behind_the_pooler(environ: Environ) -> None:
    """direct=True uses DB_DIRECT_HOST and DB_DIRECT_PORT, and its errors name them."""
    both = settings(environ, DB_DIRECT_HOST="127.0.0.1", DB_DIRECT_PORT="1")
    async with connect(both) as connection:
        assert await connection.fetchval("SELECT 1") == 1
    with pytest.raises(DatabaseUnreachable, match=r"@127\.0\.0\.1:1/"):
        async with connect(both, direct=True):
            pass


async def test_a_connection_that_breaks_in_use_has_its_class(environ: Environ) -> None:
    """pg_terminate_backend under a query comes out as a DatabaseError that names the target."""
    with pytest.raises(DatabaseError, match=environ["DB_NAME"]):
        async with connect(settings(environ)) as connection:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def test_the_connection_is_closed_afterwards(environ: Environ) -> None:
    """Also after an error in the block, which comes out as it is."""
    with pytest.raises(ZeroDivisionError):
        async with connect(settings(environ, DB_APPLICATION_NAME="closed")):
            raise ZeroDivisionError

    async def gone() -> bool:
        async with connect(settings(environ)) as connection:
            return "closed" not in (await read_server(connection)).by_application

    await until(gone)
