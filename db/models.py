"""The fleet's own tables. A class's docstring becomes the comment of its table.

After a change here: `.venv/bin/tortoise --config-file db/makemigrations.json makemigrations`.
"""

from __future__ import annotations

from tortoise import fields
from tortoise.migrations.constraints import UniqueConstraint
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
    """A condition of the fleet that someone was told about; without `closed` it still holds.

    Of each kind and subject one is open at a time; those without a subject do not stand in each other's way.
    """

    id = fields.BigIntField(primary_key=True)
    kind = fields.CharField(max_length=64)
    subject = fields.CharField(max_length=300, null=True)
    opened = fields.DatetimeField(auto_now_add=True)
    closed = fields.DatetimeField(null=True)
    value = fields.FloatField()

    class Meta:
        table = "fleet_alert"
        constraints = (UniqueConstraint(("kind", "subject"), name="fleet_alert_open", condition="closed IS NULL"),)


class Outgoing(Model):
    """What the bot is to say in a chat; gone when it has been said."""

    id = fields.BigIntField(primary_key=True)
    chat = fields.CharField(max_length=255)
    text = fields.TextField()
    created = fields.DatetimeField(auto_now_add=True)
    taken = fields.DatetimeField(null=True)  # by a bot that says it, or died while it did

    class Meta:
        table = "fleet_outgoing"
