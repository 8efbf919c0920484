"""The app's one table. After a change here, makemigrations.py has its migration written."""

from __future__ import annotations

from tortoise import fields
from tortoise.models import Model


class Reminder(Model):
    """Something that a chat wants to be told; with `fired` it has been."""

    id = fields.BigIntField(primary_key=True)
    chat = fields.CharField(max_length=255, db_index=True)
    text = fields.TextField()
    due = fields.DatetimeField()
    fired = fields.DatetimeField(null=True)

    class Meta:
        table = "reminder"
