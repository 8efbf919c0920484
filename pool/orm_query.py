"""The queries that Tortoise builds itself, told apart from those that its user wrote."""

from __future__ import annotations

from typing import Any

from pypika_tortoise.context import SqlContext
from pypika_tortoise.dialects.postgresql import PostgreSQLQuery, PostgreSQLQueryBuilder


class _RepeatableQuery(str):
    """A query whose type is the mark. Every operation on it gives a plain str, `str(query)` too."""

    __slots__ = ()


def is_repeatable(query: str) -> bool:
    """Whether this is a SELECT which the ORM built, that takes no lock: it may be run again if its connection died.

    asyncpg takes no subclass of str: give it `str(query)`.
    """
    return type(query) is _RepeatableQuery


class OrmQueryBuilder(PostgreSQLQueryBuilder):
    """Marks what it builds. By the text, which shows a lock in a subquery as well.

    A union is put together elsewhere and has no mark; nor has a query that the ORM goes on to wrap, as in EXPLAIN.
    """

    def get_sql(self, ctx: SqlContext | None = None) -> str:
        sql = super().get_sql(ctx)
        if sql.startswith("SELECT "):
            upper = sql.upper()
            if " FOR " not in upper and " INTO " not in upper:
                return _RepeatableQuery(sql)
        return sql


class OrmQuery(PostgreSQLQuery):
    """For the `query_class` of a Tortoise client."""

    @classmethod
    def _builder(cls, **kwargs: Any) -> PostgreSQLQueryBuilder:  # the hook for dialects, also Tortoise's own
        return OrmQueryBuilder(**kwargs)


OrmQueryBuilder.QUERY_CLS = OrmQuery
