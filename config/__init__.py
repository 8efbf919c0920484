"""Environment variables in, checked and frozen settings of one process out. Pure: no I/O but secret files and `.env`.

settings = Settings.load("worker")          # every fault at once: SettingsError
tortoise_config(settings)                   # what Tortoise.init takes
asyncpg_pool_kwargs(settings)               # what asyncpg.create_pool takes
"""

from __future__ import annotations

from config.errors import SettingsError
from config.settings import Settings
from config.tortoise import asyncpg_pool_kwargs, tortoise_config

__all__ = ["Settings", "SettingsError", "asyncpg_pool_kwargs", "tortoise_config"]
