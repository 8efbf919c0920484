"""Which of Tortoise's statements reach the client with the mark of a SELECT that may be run again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

import pytest
from tortoise.backends.asyncpg.client import AsyncpgDBClient, TransactionWrapper
from tortoise.backends.base.client import TransactionContext, TransactionContextPooled
from tortoise.context import TortoiseContext
from tortoise.expressions import RawSQL, Subquery
from tortoise.functions import Count, Max, Upper
from tortoise.query_api import execute_pypika
from tortoise.transactions import in_transaction

from config import Settings
from config.tortoise import asyncpg_connect_kwargs
from pool.orm_query import OrmQuery, is_repeatable
from tests.orm_models import Author, Book, Genre

Environ = dict[str, str]


class _Noting(AsyncpgDBClient):
    """Notes every statement with its mark, and makes it plain for asyncpg."""

    query_class = OrmQuery
    seen: ClassVar[list[tuple[str, bool]]] = []

    def _note(self, query: str) -> str:
        self.seen.append((str(query), is_repeatable(query)))
        return str(query)

    async def execute_insert(self, query: str, values: list[Any]) -> Any:
        return await super().execute_insert(self._note(query), values)

    async def execute_many(self, query: str, values: list[Any]) -> None:
        await super().execute_many(self._note(query), values)

    async def execute_query(self, query: str, values: list[Any] | None = None) -> Any:
        return await super().execute_query(self._note(query), values)

    async def execute_query_dict(self, query: str, values: list[Any] | None = None) -> Any:
        return await super().execute_query_dict(self._note(query), values)

    async def execute_script(self, query: str) -> None:
        await super().execute_script(self._note(query))


class _NotingTransaction(_Noting, TransactionWrapper):
    pass


class _NotingClient(_Noting):
    def _in_transaction(self) -> TransactionContext:
        return TransactionContextPooled(_NotingTransaction(self), self._pool_init_lock)


client_class = _NotingClient  # this file is the engine of its own tests


@pytest.fixture
async def client(environ: Environ) -> AsyncIterator[AsyncpgDBClient]:
    """Tortoise on the noting client, with an author, a genre and a book; what that took is not in `seen`."""
    credentials = asyncpg_connect_kwargs(Settings.load("worker", environ)) | {"minsize": 1, "maxsize": 2}
    config = {
        "connections": {"default": {"engine": __name__, "credentials": credentials}},
        "apps": {"orm": {"models": ["tests.orm_models"], "default_connection": "default"}},
    }
    async with TortoiseContext() as context:
        await context.init(config=config)
        await context.generate_schemas()
        author = await Author.create(id=1001, name="Lem")
        book = await Book.create(title="Solaris", author=author)
        await book.genres.add(await Genre.create(name="science fiction"))
        _Noting.seen.clear()
        opened: Any = context.db()
        yield opened


async def _refresh() -> None:
    author = await Author.get(id=1001)
    await author.refresh_from_db()
    await author.fetch_related("books__genres")


async def _iterate() -> None:
    async for _ in Author.all():
        pass
    book = await Book.get(title="Solaris")
    async for _ in book.genres:
        pass


async def _in_a_transaction() -> None:
    async with in_transaction():
        await Author.all()
        async with in_transaction():
            await Author.exists()


READS: dict[str, Callable[[], Awaitable[object]]] = {
    "all": Author.all,
    "get": lambda: Author.get(name="Lem"),
    "get_or_none": lambda: Author.get_or_none(name="nobody"),
    "first": lambda: Author.filter(name__icontains="e").order_by("-name").first(),
    "in_bulk": lambda: Author.in_bulk([1001], "id"),
    "only": lambda: Author.all().only("name"),
    "distinct, limit, offset": lambda: Author.all().distinct().limit(3).offset(1),
    "count": lambda: Author.filter(name="Lem").count(),
    "exists": lambda: Author.filter(name="Lem").exists(),
    "exists, join": lambda: Book.filter(author__name="Lem").exists(),
    "values": lambda: Author.all().values("name"),
    "values_list": lambda: Author.all().values_list("name", flat=True),
    "annotate": lambda: Author.annotate(many=Count("books"), longest=Max("books__pages")),
    "annotate, values": lambda: Author.annotate(many=Count("books")).group_by("name").values("name", "many"),
    "function": lambda: Author.annotate(loud=Upper("name")).filter(loud="LEM"),
    "raw expression": lambda: Author.annotate(one=RawSQL("1")),
    "subquery": lambda: Author.filter(id__in=Subquery(Book.all().values("author_id"))),
    "select_related": lambda: Book.all().select_related("author"),
    "prefetch foreign key": lambda: Book.all().prefetch_related("author"),
    "prefetch reverse": lambda: Author.all().prefetch_related("books"),
    "prefetch many to many": lambda: Book.all().prefetch_related("genres"),
    "refresh, fetch_related": _refresh,
    "iterate": _iterate,
    "in a transaction": _in_a_transaction,
    "the builder by hand": lambda: execute_pypika(OrmQuery.from_("orm_author").select("id")),
}


async def _lock() -> None:
    async with in_transaction():
        await Author.all().select_for_update()
        await Author.all().select_for_update(skip_locked=True, of=("orm_author",))
        await Author.all().select_for_update(no_key=True)


async def _delete_one() -> None:
    await (await Author.create(name="delete")).delete()


async def _bulk_update() -> None:
    authors = [Author(id=1001, name="Lem", visits=5)]
    await Author.bulk_update(authors, ["visits"])


OTHERS: dict[str, Callable[[], Awaitable[object]]] = {
    "select_for_update": _lock,
    "a lock in a subquery": lambda: Author.filter(id__in=Subquery(Author.all().select_for_update().only("id"))),
    "raw": lambda: Author.raw("SELECT * FROM orm_author"),
    "create": lambda: Author.create(name="create"),
    "bulk_create": lambda: Author.bulk_create([Author(name="bulk"), Author(name="create")]),
    "bulk_create, conflicts": lambda: Author.bulk_create([Author(name="Lem")], ignore_conflicts=True),
    "bulk_update": _bulk_update,
    "update": lambda: Author.filter(name="Lem").update(visits=1),
    "update by subquery": lambda: Book.filter(author__name="Lem").update(pages=1),
    "delete": lambda: Author.filter(name="nobody").delete(),
    "delete by subquery": lambda: Book.filter(author__name="nobody").delete(),
    "delete one": _delete_one,
    "explain": lambda: Author.all().explain(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
async def test_every_select_of_the_orm_is_marked(
    client: AsyncpgDBClient, read: Callable[[], Awaitable[object]]
) -> None:
    """However Tortoise reads, the client sees that the query is its own."""
    await read()
    assert client.seen
    assert [query for query, marked in client.seen if not marked] == []


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
async def test_locks_writes_and_raw_sql_are_not_marked(
    client: AsyncpgDBClient, other: Callable[[], Awaitable[object]]
) -> None:
    """What must not be run twice, or was not built by the ORM, has no mark."""
    await other()
    assert client.seen
    assert [query for query, marked in client.seen if marked] == []


async def test_sql_by_hand_is_not_marked(client: AsyncpgDBClient) -> None:
    """A user's own text through any method of the client has no mark."""
    text = "SELECT * FROM orm_author"
    await client.execute_query(text)
    await client.execute_query_dict(text)
    await client.execute_script(text)
    assert client.seen == [(text, False)] * 3


async def test_reads_within_a_write_are_marked_alone(client: AsyncpgDBClient) -> None:
    """get_or_create and relations read first: the reads have the mark, the writes do not."""
    await Author.get_or_create(name="new")
    await Author.update_or_create(name="new", defaults={"visits": 3})
    book = await Book.get(title="Solaris")
    genre = await Genre.create(name="classic")
    await book.genres.add(genre)
    await book.genres.remove(genre)
    for query, marked in client.seen:
        assert marked == (query.startswith("SELECT") and "FOR UPDATE" not in query), query
    assert {marked for _, marked in client.seen} == {True, False}


async def test_a_union_has_no_mark(client: AsyncpgDBClient) -> None:
    """The limit: a union is put together outside the builder. Should this fail, correct pool/orm_query.py's text."""
    await Author.filter(id=1).only("id", "name").union(Genre.all().only("id", "name"))
    assert [marked for _, marked in client.seen] == [False]


async def test_asyncpg_cannot_take_what_is_marked(client: AsyncpgDBClient) -> None:
    """Why the engine makes queries plain: a marked one costs the connection. When asyncpg takes it, it need not."""
    query = Author.all().sql()
    async with client.acquire_connection() as connection:
        with pytest.raises(TypeError, match="xpected str"):
            await connection.fetch(query)
        assert connection.is_closed()
    async with client.acquire_connection() as connection:
        assert await connection.fetch(str(query))
