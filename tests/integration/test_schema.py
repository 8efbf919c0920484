"""Migrations on a real server."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from config import Settings, tortoise_config
from db import connect, migrate, open_database
from db.errors import MigrationFailed, NoSuchDatabase
from db.models import ConnectionSample
from db.schema import LOCK_KEY, pending
from tests.proxy import open_proxy
from tests.superuser import execute, value
from tests.waiting import until

Environ = dict[str, str]
ROOT = Path(__file__).resolve().parents[2]
OWN = ["fleet.0001_initial", "fleet.0002_outgoing", "fleet.0003_alert_subject"]
MIGRATE = """
import asyncio
from config import Settings
from db import migrate
print(*asyncio.run(migrate(Settings.load("poolctl"))))
"""


@pytest.fixture
async def empty(environ: Environ) -> Environ:
    """The test's database without a table."""
    await execute(environ, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return environ


async def test_an_empty_database_becomes_current(empty: Environ) -> None:
    """The first run applies all and names them, the second nothing; PostgreSQL's own types are used."""
    settings = Settings.load("poolctl", empty)
    assert await migrate(settings) == OWN
    assert await migrate(settings) == []
    column = "SELECT data_type FROM information_schema.columns WHERE table_name = 'fleet_connection_sample'"
    assert await value(empty, f"{column} AND column_name = 'by_application'") == "jsonb"
    assert await value(empty, f"{column} AND column_name = 'at'") == "timestamp with time zone"
    indexes = "SELECT count(*) FROM pg_indexes WHERE tablename = 'fleet_connection_sample'"
    assert await value(empty, indexes) == 2  # the key and `at`


@pytest.mark.slow
async def test_ten_processes_at_once(empty: Environ) -> None:
    """Of ten real processes that migrate at once all succeed, and exactly one does the work."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            MIGRATE,
            env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), **empty},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        for _ in range(10)
    ]
    outputs = [(await process.communicate())[0].decode().strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, outputs
    assert sorted(outputs) == [""] * 9 + [" ".join(OWN)]
    assert await value(empty, "SELECT count(*) FROM tortoise_migrations") == len(OWN)


async def test_ten_tasks_at_once(empty: Environ) -> None:
    """Ten tasks of one process do not disturb each other either."""
    settings = Settings.load("poolctl", empty)
    results = await asyncio.gather(*(migrate(settings) for _ in range(10)))
    assert sorted(results) == [[]] * 9 + [OWN]


async def test_the_wait_for_the_lock_is_bounded_and_names_the_holder(environ: Environ) -> None:
    """Who waits too long is told which process holds the lock; when it is free, migrating works."""
    holder = Settings.load("poolctl", environ | {"DB_APPLICATION_NAME": "slow-one"})
    settings = Settings.load("poolctl", environ)
    async with connect(holder) as connection:
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
        started = time.monotonic()
        with pytest.raises(MigrationFailed, match=f"slow-one, pid {connection.get_server_pid()}, since"):
            await migrate(settings, lock_timeout_s=0.3)
        assert 0.3 <= time.monotonic() - started < 2
    assert await migrate(settings) == []


async def test_a_waiting_process_goes_on_when_its_turn_comes(empty: Environ) -> None:
    """The lock is waited for, not only tried."""
    async with connect(Settings.load("poolctl", empty)) as connection:
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
        waiting = asyncio.create_task(migrate(Settings.load("poolctl", empty)))
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await until(lambda: value(empty, query), what="somebody waits for the lock")
    assert await waiting == OWN


async def test_a_lost_record_is_recognised_and_mended(empty: Environ) -> None:
    """Tables without their record make one line with the remedy; the remedy works and loses no data."""
    settings = Settings.load("poolctl", empty)
    await migrate(settings)
    await execute(
        empty,
        "INSERT INTO fleet_alert (kind, opened, value) VALUES ('kept', now(), 1)",
        "DELETE FROM tortoise_migrations",
    )
    with pytest.raises(MigrationFailed) as caught:
        await migrate(settings)
    assert "migration fleet.0001_initial failed" in str(caught.value)
    assert "already exists" in str(caught.value)
    assert "poolctl migrate --fake" in str(caught.value)
    assert "\n" not in str(caught.value)

    assert await migrate(settings, fake=True) == OWN
    assert await migrate(settings) == []
    assert await value(empty, "SELECT kind FROM fleet_alert") == "kept"
    async with open_database(settings):
        assert await ConnectionSample.all().count() == 0


async def test_fake_records_only_what_is_there(empty: Environ) -> None:
    """On an empty database `fake` makes the tables: it never records a migration that could be run."""
    settings = Settings.load("poolctl", empty)
    assert await migrate(settings, fake=True) == OWN
    async with open_database(settings):
        assert await ConnectionSample.all().count() == 0


async def test_a_failed_migration_leaves_nothing_behind(empty: Environ) -> None:
    """A migration runs in a transaction: of one that fails in the middle there is no table, and no record."""
    await execute(empty, "CREATE TABLE fleet_subscriber (mine int)")
    settings = Settings.load("poolctl", empty)
    with pytest.raises(MigrationFailed, match="fleet_subscriber"):
        await migrate(settings)
    assert await value(empty, "SELECT to_regclass('fleet_alert')") is None
    await execute(empty, "DROP TABLE fleet_subscriber")
    assert await migrate(settings) == OWN


async def test_a_role_without_the_privilege(empty: Environ) -> None:
    """A role that may not create tables is told what to grant."""
    await execute(empty, "CREATE ROLE reader LOGIN PASSWORD 'pw-of-reader'")
    try:
        environ = empty | {"DB_USER": "reader", "DB_PASSWORD": "pw-of-reader"}
        with pytest.raises(MigrationFailed, match=r"no schema has been selected .*GRANT USAGE, CREATE ON SCHEMA"):
            await migrate(Settings.load("poolctl", environ))
        await execute(empty, "GRANT USAGE ON SCHEMA public TO reader")
        with pytest.raises(MigrationFailed, match=r"permission denied .*GRANT USAGE, CREATE ON SCHEMA"):
            await migrate(Settings.load("poolctl", environ))
        with pytest.raises(MigrationFailed, match="DB_SCHEMA=other does not exist and cannot be created"):
            await migrate(Settings.load("poolctl", environ | {"DB_SCHEMA": "other"}))
    finally:
        await execute(empty, "DROP OWNED BY reader", "DROP ROLE reader")


async def test_migrations_go_to_the_direct_host(empty: Environ) -> None:
    """With a pooler as DB_HOST, migrating talks to DB_DIRECT_HOST only."""
    environ = empty | {
        "DB_PORT": "1",  # nobody listens there
        "DB_DIRECT_HOST": empty["DB_HOST"],
        "DB_DIRECT_PORT": empty["DB_PORT"],
    }
    assert await migrate(Settings.load("poolctl", environ)) == OWN


async def test_a_missing_database_is_no_pending_migration(environ: Environ) -> None:
    """What cannot be read is an error of its own class, not a list of everything to apply."""
    with pytest.raises(NoSuchDatabase):
        await migrate(Settings.load("poolctl", environ | {"DB_NAME": "missing"}))


async def test_pending_raises_where_tortoise_would_guess(environ: Environ) -> None:
    """A server that is gone raises; Tortoise's own plan says that nothing was applied."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        settings = Settings.load("poolctl", environ | {"DB_PORT": str(proxy.listens_on)})
        async with open_database(settings) as database:
            assert await pending(database.client, tortoise_config(settings)["apps"]) == []
            await proxy.stop()
            with pytest.raises((ConnectionError, asyncpg.PostgresConnectionError)):
                await pending(database.client, tortoise_config(settings)["apps"])


async def test_no_statement_timeout_while_migrating(empty: Environ) -> None:
    """DB_COMMAND_TIMEOUT bounds queries, not migrations or the wait for another process's."""
    environ = empty | {"DB_COMMAND_TIMEOUT": "0.1"}
    async with connect(Settings.load("poolctl", empty)) as connection:
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
        waiting = asyncio.create_task(migrate(Settings.load("poolctl", environ)))
        started = time.monotonic()
        await until(lambda: time.monotonic() - started > 0.4, what="the command timeout is over")
        assert not waiting.done()
    assert await waiting == OWN
