from __future__ import annotations

import json
from pathlib import Path

from tortoise.context import TortoiseContext
from tortoise.migrations.autodetector import MigrationAutodetector

from config import Settings, tortoise_config

ROOT = Path(__file__).resolve().parents[2]


async def test_the_migrations_make_exactly_the_models() -> None:
    """Tortoise's own migration tool finds nothing to add: a changed model has its migration."""
    config = json.loads((ROOT / "db/makemigrations.json").read_text())
    async with TortoiseContext() as context:
        await context.init(config=config)
        assert context.apps is not None
        assert await MigrationAutodetector(context.apps, config["apps"]).changes() == []


def test_the_migration_tool_is_configured_as_the_program() -> None:
    """db/makemigrations.json names the same app, models and migrations as `tortoise_config`."""
    config = json.loads((ROOT / "db/makemigrations.json").read_text())
    assert config["apps"] == tortoise_config(Settings.load("worker", {}))["apps"]
