"""The tables of an app beside the fleet's own, in one database."""

from __future__ import annotations

import pytest

from config import Settings
from db import connect, migrate, open_database
from db.errors import MigrationFailed, SchemaBehind
from db.models import Alert
from examples.reminder.models import Reminder
from fleet.app import load_app
from tests.conftest import Environ
from tests.processes import ROOT

OWN = sorted(f"fleet.{path.stem}" for path in (ROOT / "db" / "migrations").glob("0*.py"))
APPS = ["reminder.0001_initial"]
TABLES = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = $1"


@pytest.fixture
async def settings(environ: Environ) -> Settings:
    """Settings with the example's APP, and a database without a table."""
    settings = Settings.load("poolctl", environ | {"APP": "examples.reminder"})
    await sql(settings, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return settings


async def sql(settings: Settings, *statements: str) -> None:
    async with connect(settings) as connection:
        for statement in statements:
            await connection.execute(statement)


async def tables(settings: Settings, schema: str = "public") -> list[str]:
    async with connect(settings) as connection:
        return str(await connection.fetchval(TABLES, schema)).split()


async def test_side_by_side(settings: Settings) -> None:
    """One run applies both, the next one nothing; then the models of both work, in one transaction, too."""
    apps = load_app(settings).tables
    assert await migrate(settings, apps=apps) == OWN + APPS
    assert await migrate(settings, apps=apps) == []
    async with open_database(settings, apps=apps):
        await Reminder.create(chat="console", text="tea", due="2030-01-01T00:00:00Z")
        assert await Reminder.all().count() == 1
        assert await Alert.all().count() == 0


async def test_an_app_that_comes_later(settings: Settings) -> None:
    """A database that had the fleet's tables only is behind for the app, which is named; its migrations are added."""
    await migrate(settings)
    apps = load_app(settings).tables
    with pytest.raises(SchemaBehind, match=r"not applied: reminder\.0001_initial: run `poolctl migrate`"):
        async with open_database(settings, apps=apps):
            pass
    assert await migrate(settings, apps=apps) == APPS
    async with open_database(settings, apps=apps):
        pass


async def test_the_fleet_behind(settings: Settings) -> None:
    """A database that lacks one of the fleet's own migrations is behind, whatever the app has."""
    apps = load_app(settings).tables
    await migrate(settings, apps=apps)
    latest = OWN[-1]
    await sql(settings, f"DELETE FROM tortoise_migrations WHERE app || '.' || name = '{latest}'")
    with pytest.raises(SchemaBehind, match=f"not applied: {latest}: "):
        async with open_database(settings, apps=apps):
            pass


async def test_an_app_that_goes(settings: Settings) -> None:
    """Without the app again, its tables and records are left as they are, and nothing is behind."""
    await migrate(settings, apps=load_app(settings).tables)
    assert await migrate(settings) == []
    async with open_database(settings):
        assert await Alert.all().count() == 0
    assert "reminder" in await tables(settings)


async def test_a_schema_of_its_own(settings: Settings, environ: Environ) -> None:
    """DB_SCHEMA holds for the app's tables, too."""
    elsewhere = Settings.load("poolctl", environ | {"APP": "examples.reminder", "DB_SCHEMA": "ours"})
    await migrate(elsewhere, apps=load_app(elsewhere).tables)
    assert {"reminder", "fleet_alert"} < set(await tables(settings, "ours"))
    assert "reminder" not in await tables(settings)


async def test_a_table_that_is_there(settings: Settings) -> None:
    """A migration of the app's that fails is named with the app, and leaves the fleet's applied."""
    await sql(settings, "CREATE TABLE reminder (mine int)")
    apps = load_app(settings).tables
    with pytest.raises(MigrationFailed, match=r"migration reminder\.0001_initial failed: .*already exists"):
        await migrate(settings, apps=apps)
    assert await migrate(settings) == []
    await sql(settings, "DROP TABLE reminder")
    assert await migrate(settings, apps=apps) == APPS
