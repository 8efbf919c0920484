"""The table as a Tortoise model, once for each engine: a model keeps the query class of the last client it met."""

from __future__ import annotations

from tortoise import fields
from tortoise.models import Model

from benchmarks.work import TABLE


class Row(Model):
    """One row; its subclasses differ in the app they belong to."""

    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=255)
    value = fields.IntField()

    class Meta:
        abstract = True


class EngineRow(Row):
    """A row as this project's engine reads it."""

    class Meta:
        app = "engine"
        table = TABLE


class StockRow(Row):
    """A row as Tortoise's own engine reads it."""

    class Meta:
        app = "stock"
        table = TABLE
