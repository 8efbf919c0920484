"""The mark of a query that the ORM built, on the builder alone."""

from __future__ import annotations

import pytest
from pypika_tortoise import Table
from pypika_tortoise.queries import QueryBuilder

from pool.orm_query import OrmQuery, is_repeatable

THING = Table("thing")
SELECT = OrmQuery.from_(THING).select("id").where(THING.id == 1)
LOCKING = SELECT.for_update()


@pytest.mark.parametrize(
    "query",
    [
        SELECT,
        SELECT.distinct().limit(1),
        OrmQuery.from_(SELECT.as_("inner_")).select("id"),
        OrmQuery.from_(THING).select("id").where(THING.id.isin(SELECT)),
        OrmQuery.from_(THING).select(THING.format, THING.for_sale, THING["into"]),
    ],
    ids=str,
)
def test_a_select_is_marked_on_every_way_out_of_the_builder(query: QueryBuilder) -> None:
    """get_sql, get_parameterized_sql and str all tell that this SELECT may be run again."""
    assert is_repeatable(query.get_sql())
    assert is_repeatable(query.get_parameterized_sql()[0])
    assert is_repeatable(str(query))


@pytest.mark.parametrize(
    "query",
    [
        LOCKING,
        SELECT.for_update(nowait=True),
        SELECT.for_update(no_key=True),
        OrmQuery.from_(THING).select("id").where(THING.id.isin(LOCKING)),
        OrmQuery.into(THING).insert(1),
        OrmQuery.into(THING).insert(1).returning("id"),  # type: ignore[attr-defined]
        OrmQuery.into(THING).from_(THING).select("id"),
        OrmQuery.from_(THING).select("id").into(Table("made")),
        OrmQuery.update(THING).set("id", 1),
        OrmQuery.from_(THING).delete(),
        OrmQuery.from_(THING),
    ],
    ids=repr,
)
def test_locks_and_writes_are_not_marked(query: QueryBuilder) -> None:
    """What locks rows, also in a subquery, or writes, or is no query yet, may not be run again."""
    assert not is_repeatable(query.get_sql())
    assert not is_repeatable(query.get_parameterized_sql()[0])
    assert not is_repeatable(str(query))


def test_a_query_by_hand_is_not_marked() -> None:
    """The same text without the builder has no mark."""
    assert not is_repeatable(SELECT.get_sql() + "")
    assert not is_repeatable("SELECT 1")


def test_a_changed_query_loses_the_mark() -> None:
    """A mark never stays on text that the ORM did not build."""
    query = SELECT.get_sql()
    changed = [query + ";", ";" + query, f"{query}", query[:], query.strip(), "".join([query]), query.upper()]
    assert not any(map(is_repeatable, changed))


def test_str_makes_it_plain() -> None:
    """asyncpg takes exactly str, nothing derived from it."""
    query = SELECT.get_sql()
    assert is_repeatable(query)
    assert type(query) is not str
    assert type(str(query)) is str
    assert str(query) == query
