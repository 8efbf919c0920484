"""The fleet's own tables. A class's docstring becomes the comment of its table.

After a change here: `.venv/bin/tortoise --config-file db/makemigrations.json makemigrations`.
"""

from __future__ import annotations

from tortoise import fields
from tortoise.models import Model


class ConnectionSample(Model):
    """How many connections the server had at one moment, and whose they were."""

    id = fields.BigIntField(primary_key=True)
    at = fields.DatetimeField(auto_now_add=True, db_index=True)
    max_connections = fields.IntField()
    total = fields.IntField()
    active = fields.IntField()
    idle = fields.IntField()
    idle_in_transaction = fields.IntField()
    by_application: fields.JSONField[dict[str, int]] = fields.JSONField()

    class Meta:
        table = "fleet_connection_sample"


class Subscriber(Model):
    """A chat that gets alerts."""

    id = fields.IntField(primary_key=True)
    chat = fields.CharField(max_length=255, unique=True)
    created = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "fleet_subscriber"


class Alert(Model):
    """A condition of the fleet that someone was told about; without `closed` it still holds."""

    id = fields.BigIntField(primary_key=True)
    kind = fields.CharField(max_length=64)
    opened = fields.DatetimeField(auto_now_add=True)
    closed = fields.DatetimeField(null=True)
    value = fields.FloatField()

    class Meta:
        table = "fleet_alert"
