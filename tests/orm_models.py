"""Models for tests of Tortoise's features on an engine: JSON, an array, relations of each kind, a unique column."""

from __future__ import annotations

from typing import Any

from tortoise import fields
from tortoise.contrib.postgres.fields import ArrayField
from tortoise.models import Model


class Author(Model):
    """Has books."""

    id = fields.IntField(primary_key=True)
    name = fields.CharField(max_length=100, unique=True)
    visits = fields.IntField(default=0)

    books: fields.ReverseRelation[Book]

    class Meta:
        table = "orm_author"


class Genre(Model):
    """Shared by books."""

    id = fields.IntField(primary_key=True)
    name = fields.CharField(max_length=100, unique=True)

    books: fields.ManyToManyRelation[Book]

    class Meta:
        table = "orm_genre"


class Book(Model):
    """By one author, of several genres."""

    id = fields.IntField(primary_key=True)
    title = fields.CharField(max_length=100)
    pages = fields.IntField(default=100)
    extra: fields.JSONField[Any] = fields.JSONField(null=True)
    tags = ArrayField(element_type="text", null=True)
    author: fields.ForeignKeyRelation[Author] = fields.ForeignKeyField("orm.Author", related_name="books")
    genres: fields.ManyToManyRelation[Genre] = fields.ManyToManyField(
        "orm.Genre", related_name="books", through="orm_book_genre"
    )

    class Meta:
        table = "orm_book"
