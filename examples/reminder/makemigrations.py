"""The app's tables for Tortoise's own tool: `tortoise -c examples.reminder.makemigrations.TORTOISE_ORM makemigrations`.

It reads the models and the migrations, and connects nothing.
"""

from __future__ import annotations

from typing import Any

from . import app

TORTOISE_ORM: dict[str, Any] = {
    "connections": {"default": {"engine": "tortoise.backends.asyncpg", "credentials": {}}},
    "apps": {app.name: {"models": app.models, "default_connection": "default", "migrations": app.migrations}},
}
