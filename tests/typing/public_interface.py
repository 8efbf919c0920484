"""Checked by mypy, not run: the public names have these types."""

from __future__ import annotations

from typing import Any, assert_type

from pydantic import SecretStr

from config import Settings, SettingsError, asyncpg_pool_kwargs, tortoise_config

settings = Settings.load("worker", {"DB_HOST": "db"})
assert_type(settings, Settings)
assert_type(settings.db.host, tuple[str, ...])
assert_type(settings.db.pool_max, int)
assert_type(settings.db.pool_timeout, float)
assert_type(settings.db.password, SecretStr)
assert_type(settings.bot.token, SecretStr | None)
assert_type(settings.warnings, tuple[str, ...])
assert_type(asyncpg_pool_kwargs(settings), dict[str, Any])
assert_type(tortoise_config(settings, models=["shop.models"]), dict[str, Any])
assert_type(SettingsError(()).faults[0].variable, str)

Settings.load("postgres")  # type: ignore[arg-type]
settings.db.pool_max = 3  # type: ignore[misc]
