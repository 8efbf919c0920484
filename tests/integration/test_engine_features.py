"""What Tortoise can do, it can do on our engine: each test runs on both, against the same expectations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.context import TortoiseContext
from tortoise.exceptions import DoesNotExist, IntegrityError, MultipleObjectsReturned, OperationalError
from tortoise.expressions import F, Q, Subquery
from tortoise.functions import Count, Max, Sum, Upper
from tortoise.migrations.executor import MigrationExecutor, MigrationTarget
from tortoise.query_api import execute_pypika
from tortoise.transactions import atomic, in_transaction

from config import Settings, tortoise_config
from config.tortoise import FLEET, asyncpg_connect_kwargs
from db import connect
from db.models import ConnectionSample
from pool.engine import PoolClient
from tests.orm_models import Author, Book, Genre
from tests.waiting import until

Environ = dict[str, str]
ENGINES = ("pool.engine", "tortoise.backends.asyncpg")

WAITING_FOR_A_LOCK = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Ours, then stock Tortoise's."""
    return str(request.param)


@pytest.fixture
async def context(environ: Environ, engine: str) -> AsyncIterator[TortoiseContext]:
    """Tortoise with the test models, their tables empty, on a pool of four."""
    credentials = asyncpg_connect_kwargs(Settings.load("worker", environ)) | {"minsize": 0, "maxsize": 4}
    config = {
        "connections": {"default": {"engine": engine, "credentials": credentials}},
        "apps": {"orm": {"models": ["tests.orm_models"], "default_connection": "default"}},
    }
    async with TortoiseContext() as opened:
        await opened.init(config=config)
        await opened.generate_schemas()
        yield opened


@pytest.fixture
def client(context: TortoiseContext) -> AsyncpgDBClient:
    """The engine's client."""
    opened: Any = context.db()
    return opened


@pytest.fixture
async def library(client: AsyncpgDBClient) -> dict[str, Book]:
    """Two authors, three books of one or two genres, by title."""
    lem, dick = await Author.create(name="Lem"), await Author.create(name="Dick")
    fiction, comedy = await Genre.create(name="fiction"), await Genre.create(name="comedy")
    solaris = await Book.create(title="Solaris", author=lem, pages=200)
    cyberiad = await Book.create(title="The Cyberiad", author=lem, pages=300)
    ubik = await Book.create(title="Ubik", author=dick, pages=250)
    await solaris.genres.add(fiction)
    await cyberiad.genres.add(fiction, comedy)
    await ubik.genres.add(fiction)
    return {book.title: book for book in (solaris, cyberiad, ubik)}


async def names() -> list[str]:
    """All authors' names, in order."""
    return sorted(await Author.all().values_list("name", flat=True))  # type: ignore[arg-type]


async def test_generate_schemas_may_run_again(context: TortoiseContext) -> None:
    """The tables are there, of PostgreSQL's own types, and a second safe run leaves them."""
    await Author.create(name="Lem")
    await context.generate_schemas(safe=True)
    assert await names() == ["Lem"]
    columns = await context.db().execute_query_dict(
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_name = 'orm_book' AND column_name IN ('extra', 'tags')"
    )
    assert {row["column_name"]: row["data_type"] for row in columns} == {"extra": "jsonb", "tags": "ARRAY"}
    with pytest.raises(OperationalError, match="already exists"):
        await context.generate_schemas(safe=False)


async def test_migrations_apply_and_unapply(environ: Environ, engine: str) -> None:
    """Tortoise's own executor takes the project's migrations back and applies them again."""
    config = tortoise_config(Settings.load("worker", environ))
    connection = config["connections"]["default"]
    connection["engine"] = engine
    connection["credentials"] = asyncpg_connect_kwargs(Settings.load("worker", environ)) | {"minsize": 0, "maxsize": 2}
    async with TortoiseContext() as context:
        await context.init(config=config)
        executor = MigrationExecutor(context.db(), config["apps"])
        assert await executor.plan() == []
        await executor.migrate([MigrationTarget(FLEET.label, "__first__")])
        names = [step.migration.name for step in await executor.plan()]
        assert names == ["0001_initial", "0002_outgoing", "0003_alert_subject"]
        with pytest.raises(OperationalError, match="does not exist"):
            await ConnectionSample.all().count()
        await executor.migrate()
        assert await executor.plan() == []
        assert await ConnectionSample.all().count() == 0


async def test_a_database_is_created_and_dropped(environ: Environ, engine: str) -> None:
    """db_create and db_delete close and reopen; a client works on its new database after."""
    name = f"{environ['DB_NAME']}_made"
    credentials = asyncpg_connect_kwargs(Settings.load("worker", environ)) | {"minsize": 0, "maxsize": 2}
    credentials["database"] = name
    config = {
        "connections": {"default": {"engine": engine, "credentials": credentials}},
        "apps": {"orm": {"models": ["tests.orm_models"], "default_connection": "default"}},
    }
    async with TortoiseContext() as context:
        await context.init(config=config, _create_db=True)
        client: Any = context.db()
        await client.create_connection(with_db=True)
        await context.generate_schemas()
        assert await names() == []
        await client.close()
        await client.db_delete()
    async with connect(Settings.load("worker", environ)) as connection:
        assert await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", name) == 0


async def test_transactions_commit_or_roll_back(client: AsyncpgDBClient) -> None:
    """What is inside is kept or lost as a whole, with `in_transaction` and with `atomic`."""

    @atomic()
    async def two(first: str, second: str) -> None:
        await Author.create(name=first)
        await Author.create(name=second)

    await two("a", "b")
    with pytest.raises(IntegrityError):
        await two("c", "a")
    with contextlib.suppress(ZeroDivisionError):
        async with in_transaction():
            await Author.create(name="d")
            raise ZeroDivisionError
    async with in_transaction() as transaction:
        await Author.create(name="e", using_db=transaction)
        await transaction.rollback()
    assert await names() == ["a", "b"]


async def test_an_inner_transaction_rolls_back_alone(client: AsyncpgDBClient) -> None:
    """Savepoints: a failed inner block is lost, the outer goes on and is kept, at three levels."""
    async with in_transaction():
        await Author.create(name="outer")
        with contextlib.suppress(IntegrityError):
            async with in_transaction():
                await Author.create(name="lost")
                async with in_transaction():
                    await Author.create(name="lost too")
                await Author.create(name="outer")
        async with in_transaction():
            await Author.create(name="inner")
        assert await names() == ["inner", "outer"]
    assert await names() == ["inner", "outer"]


async def test_others_see_a_transaction_when_it_is_over(client: AsyncpgDBClient) -> None:
    """Another task reads another connection, and nothing uncommitted."""
    inside, seen = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        async with in_transaction():
            await Author.create(name="Lem")
            inside.set()
            await seen.wait()

    writing = asyncio.create_task(write())
    await inside.wait()
    assert await names() == []
    seen.set()
    await writing
    assert await names() == ["Lem"]


async def test_many_at_once(client: AsyncpgDBClient) -> None:
    """bulk_create in batches, with conflicts ignored or updated, and bulk_update."""
    await Author.bulk_create([Author(name=f"{n:03}") for n in range(250)], batch_size=100)
    assert await Author.all().count() == 250
    await Author.bulk_create([Author(name="000", visits=9), Author(name="new")], ignore_conflicts=True)
    assert (await Author.get(name="000")).visits == 0
    conflicting = [Author(name="000", visits=7)]
    await Author.bulk_create(conflicting, on_conflict=["name"], update_fields=["visits"])
    assert (await Author.get(name="000")).visits == 7
    some = await Author.filter(name__lt="003").order_by("name")
    for number, author in enumerate(some):
        author.visits = number
    assert await Author.bulk_update(some, ["visits"]) == 3
    assert await Author.filter(name__lt="003").order_by("name").values_list("visits", flat=True) == [0, 1, 2]


async def test_execute_many_is_all_or_nothing(client: AsyncpgDBClient) -> None:
    """One bad row undoes its batch, and the pool goes on."""
    insert = "INSERT INTO orm_author (name, visits) VALUES ($1, $2)"
    await client.execute_many(insert, [["a", 1], ["b", 2]])
    with pytest.raises(IntegrityError):
        await client.execute_many(insert, [["c", 3], ["a", 4]])
    with pytest.raises(OperationalError):
        await client.execute_many(insert, [["d", "no number"]])
    assert await names() == ["a", "b"]


async def test_a_lock_makes_another_wait(client: AsyncpgDBClient, environ: Environ) -> None:
    """select_for_update holds a row until the end of the transaction; NOWAIT and SKIP LOCKED do not wait."""
    await Author.create(name="Lem")
    locked, go = asyncio.Event(), asyncio.Event()

    async def add_one() -> None:
        async with in_transaction():
            author = await Author.select_for_update().get(name="Lem")
            locked.set()
            await go.wait()
            author.visits += 1
            await author.save()

    first = asyncio.create_task(add_one())
    await locked.wait()
    second = asyncio.create_task(add_one())
    async with connect(Settings.load("worker", environ)) as connection:
        await until(lambda: connection.fetchval(WAITING_FOR_A_LOCK))
    async with in_transaction():
        assert await Author.all().select_for_update(skip_locked=True) == []
    with pytest.raises(Exception, match="could not obtain lock"):
        async with in_transaction():
            await Author.all().select_for_update(nowait=True)
    go.set()
    await asyncio.gather(first, second)
    assert (await Author.get(name="Lem")).visits == 2


async def test_raw_sql(client: AsyncpgDBClient, library: dict[str, Book]) -> None:
    """Every way to run SQL by hand gives rows, counts and dictionaries of the same shape."""
    query = "SELECT name, visits FROM orm_author WHERE name = $1"
    count, rows = await client.execute_query(query, ["Lem"])
    assert (count, [dict(row) for row in rows]) == (1, [{"name": "Lem", "visits": 0}])
    assert await client.execute_query_dict(query, ["Lem"]) == [{"name": "Lem", "visits": 0}]
    assert await client.execute_query_dict_with_affected(query, ["Lem"]) == ([{"name": "Lem", "visits": 0}], 1)
    assert await client.execute_query("UPDATE orm_author SET visits = visits + 1") == (2, [])
    assert (await client.execute_insert("INSERT INTO orm_genre (name) VALUES ($1) RETURNING name", ["new"]))[0] == "new"
    assert [author.name for author in await Author.raw("SELECT * FROM orm_author ORDER BY name")] == ["Dick", "Lem"]
    await client.execute_script("UPDATE orm_author SET visits = 5; DELETE FROM orm_genre WHERE name = 'new';")
    assert set(await Author.all().values_list("visits", flat=True)) == {5}
    async with client.acquire_connection() as connection:
        assert await connection.fetchval("SELECT sum(visits) FROM orm_author") == 10
    built = client.query_class.from_("orm_author").select("name").orderby("name")
    assert (await execute_pypika(built)).rows == [{"name": "Dick"}, {"name": "Lem"}]


async def test_a_query_in_use_as_text(client: AsyncpgDBClient, library: dict[str, Book]) -> None:
    """`sql()` of a query set runs by the client, in a transaction, by asyncpg itself, and inside a larger statement.

    Each time it is another text: a connection that has prepared a statement takes it in any form.
    """
    assert len(await client.execute_query_dict(Author.all().limit(101).sql(params_inline=True))) == 2
    text = Author.all().limit(102).sql(params_inline=True)
    assert await client.execute_query_dict(f"SELECT count(*) AS n FROM ({text}) AS a") == [{"n": 2}]
    async with client.acquire_connection() as connection:
        assert len(await connection.fetch(Author.all().limit(103).sql(params_inline=True))) == 2
        assert len(await (await connection.prepare(Author.all().limit(104).sql(params_inline=True))).fetch()) == 2
        assert await connection.execute(Author.all().limit(105).sql(params_inline=True)) == "SELECT 2"
    async with in_transaction() as transaction:
        assert len(await transaction.execute_query_dict(Author.all().limit(106).sql(params_inline=True))) == 2
        async with transaction.acquire_connection() as connection:
            assert len(await connection.fetch(Author.all().limit(107).sql(params_inline=True))) == 2
    assert "Plan" in str(await Author.all().explain())


async def test_every_kind_of_read_inside_a_transaction(client: AsyncpgDBClient, library: dict[str, Book]) -> None:
    """Reads that no connection has prepared yet, in a transaction and in one inside it."""
    for depth in (1, 2):
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(depth):
                await stack.enter_async_context(in_transaction())
            assert len(await Book.filter(pages__gt=depth).prefetch_related("author", "genres")) == 3
            assert (await Book.get(title="Ubik", pages__gt=depth)).pages == 250
            assert await Book.filter(id__gt=0, pages__gt=depth).count() == 3
            assert await Book.filter(title__gt="", pages__gt=depth).exists()
            assert len(await Book.filter(pages__gt=depth).values("title")) == 3
            assert len(await Book.filter(pages__gt=depth).values_list("pages", "title")) == 3
            assert len(await Author.annotate(n=Count("books")).filter(visits__lt=depth)) == 2


async def test_errors_are_tortoises_own(client: AsyncpgDBClient) -> None:
    """The error families that code written for Tortoise catches."""
    await Author.create(name="Lem")
    with pytest.raises(IntegrityError):
        await Author.create(name="Lem")
    with pytest.raises(IntegrityError):
        await Book.create(title="?", author_id=99)
    with pytest.raises(OperationalError):
        await client.execute_query("SELECT nothing")
    with pytest.raises(OperationalError):
        await client.execute_script("SELEC 1")
    with pytest.raises(DoesNotExist):
        await Author.get(name="nobody")
    await Author.create(name="Dick")
    with pytest.raises(MultipleObjectsReturned):
        await Author.get(visits=0)
    assert await names() == ["Dick", "Lem"]


async def test_json_and_arrays(client: AsyncpgDBClient) -> None:
    """Values come back as they went in, and can be asked for."""
    lem = await Author.create(name="Lem")
    extra = {"a": [1, 2.5, None, {"b": "ü\"'\\"}], "ok": True}
    await Book.create(title="both", author=lem, extra=extra, tags=["x", 'y"z', "", "NULL"])
    await Book.create(title="none", author=lem)
    await Book.create(title="empty", author=lem, extra=[], tags=[])
    values = {book.title: (book.extra, book.tags) for book in await Book.all()}
    assert values == {"both": (extra, ["x", 'y"z', "", "NULL"]), "none": (None, None), "empty": ([], [])}
    assert await Book.filter(extra__contains={"ok": True}).values_list("title", flat=True) == ["both"]
    assert await Book.filter(extra__filter={"a__3__b": "ü\"'\\"}).count() == 1
    assert await Book.filter(tags__contains=["x"]).values_list("title", flat=True) == ["both"]
    assert await Book.filter(tags__len=4).values_list("title", flat=True) == ["both"]
    await Book.filter(title="none").update(extra={"n": 1}, tags=["t"])
    none = await Book.get(title="none")
    assert (none.extra, none.tags) == ({"n": 1}, ["t"])
    assert await Book.filter(title="none").values("extra", "tags") == [{"extra": {"n": 1}, "tags": ["t"]}]


async def test_relations(client: AsyncpgDBClient, library: dict[str, Book]) -> None:
    """Foreign keys, their reverse and many-to-many are prefetched, joined, filtered and changed."""
    books = await Book.all().prefetch_related("author", "genres").order_by("title")
    assert [(book.title, book.author.name, sorted(genre.name for genre in book.genres)) for book in books] == [
        ("Solaris", "Lem", ["fiction"]),
        ("The Cyberiad", "Lem", ["comedy", "fiction"]),
        ("Ubik", "Dick", ["fiction"]),
    ]
    authors = await Author.all().prefetch_related("books__genres").order_by("name")
    assert [sorted(book.title for book in author.books) for author in authors] == [
        ["Ubik"],
        ["Solaris", "The Cyberiad"],
    ]
    joined = await Book.all().select_related("author").order_by("title")
    assert [book.author.name for book in joined] == ["Lem", "Lem", "Dick"]
    assert await Author.filter(books__genres__name="comedy").values_list("name", flat=True) == ["Lem"]
    assert await Author.filter(id__in=Subquery(Book.filter(pages__gt=280).values("author_id"))).count() == 1
    cyberiad = library["The Cyberiad"]
    await cyberiad.fetch_related("author")
    assert sorted([genre.name async for genre in cyberiad.genres]) == ["comedy", "fiction"]
    await cyberiad.genres.remove(await Genre.get(name="comedy"))
    assert [genre.name for genre in await cyberiad.genres] == ["fiction"]
    await cyberiad.genres.clear()
    assert await cyberiad.genres.all().count() == 0
    await (await Author.get(name="Lem")).delete()
    assert await Book.all().values_list("title", flat=True) == ["Ubik"]


async def test_values_and_aggregates(client: AsyncpgDBClient, library: dict[str, Book]) -> None:
    """values, annotate, group_by, expressions, first, last, exists, in_bulk, unions."""
    by_author = (
        await Book.annotate(books=Count("id"), longest=Max("pages"), all_pages=Sum("pages"))
        .group_by("author__name")
        .order_by("author__name")
        .values("author__name", "books", "longest", "all_pages")
    )
    assert by_author == [
        {"author__name": "Dick", "books": 1, "longest": 250, "all_pages": 250},
        {"author__name": "Lem", "books": 2, "longest": 300, "all_pages": 500},
    ]
    assert await Book.all().order_by("-pages").first().values_list("title", "pages") == ("The Cyberiad", 300)
    assert await Author.annotate(loud=Upper("name")).filter(loud="LEM").values("name", "loud") == [
        {"name": "Lem", "loud": "LEM"}
    ]
    assert await Author.annotate(n=Count("books")).filter(n__gt=1).values_list("name", "n") == [("Lem", 2)]
    assert await Book.filter(Q(pages__lt=210) | ~Q(author__name="Lem")).count() == 2
    assert await Book.filter(author__name="Lem").update(pages=F("pages") + 1) == 2
    assert await Book.all().order_by("pages").values_list("pages", flat=True) == [201, 250, 301]
    assert await Book.filter(title="Ubik").exists()
    assert not await Book.filter(title="nothing").exists()
    assert set(await Author.in_bulk(["Lem", "nobody"], "name")) == {"Lem"}
    union = Author.all().only("name").union(Genre.all().only("name"))
    assert sorted(row.name for row in await union) == ["Dick", "Lem", "comedy", "fiction"]
    assert await Book.filter(pages=201).delete() == 1


async def test_iterators(client: AsyncpgDBClient) -> None:
    """`async for` over a query set, and a server-side cursor of asyncpg inside a transaction."""
    await Author.bulk_create([Author(name=f"{n:04}") for n in range(2500)])
    assert [author.name async for author in Author.all().order_by("name")] == [f"{n:04}" for n in range(2500)]
    async with client.acquire_connection() as connection, connection.transaction():
        read = [
            row["name"] async for row in connection.cursor("SELECT name FROM orm_author ORDER BY name", prefetch=100)
        ]
    assert read == [f"{n:04}" for n in range(2500)]


async def test_one_of_many_creates(client: AsyncpgDBClient) -> None:
    """Twenty tasks ask for the same row at once: one creates it, the others get it."""
    results = await asyncio.gather(*(Author.get_or_create(name="Lem", defaults={"visits": 1}) for _ in range(20)))
    assert len({author.id for author, _ in results}) == 1
    assert [created for _, created in results].count(True) == 1
    assert await names() == ["Lem"]
    if isinstance(client, PoolClient):  # failed transactions and finished ones come back side by side
        counted = client.pool.snapshot()
        assert (counted.in_use, counted.acquires) == (0, counted.releases)


async def test_update_or_create(client: AsyncpgDBClient) -> None:
    """The first creates, the second updates, also in a transaction of the caller's."""
    assert (await Author.update_or_create(name="Lem", defaults={"visits": 1}))[1]
    async with in_transaction():
        author, created = await Author.update_or_create(name="Lem", defaults={"visits": 2})
    assert (author.visits, created) == (2, False)
    assert await Author.all().values_list("name", "visits") == [("Lem", 2)]


async def test_more_tasks_than_connections(client: AsyncpgDBClient) -> None:
    """A hundred transactions on four connections lose no update."""
    await Author.create(name="Lem")

    async def visit() -> None:
        async with in_transaction():
            await Author.select_for_update().get(name="Lem")
            await Author.filter(name="Lem").update(visits=F("visits") + 1)

    await asyncio.gather(*(visit() for _ in range(100)))
    assert (await Author.get(name="Lem")).visits == 100


async def test_a_stale_plan_is_made_again(client: AsyncpgDBClient, environ: Environ) -> None:
    """A column added by somebody else does not break statements that were prepared before."""
    await Author.create(name="Lem")
    for _ in range(3):
        assert len(await client.execute_query_dict("SELECT * FROM orm_author")) == 1
    async with connect(Settings.load("worker", environ)) as connection:
        await connection.execute("ALTER TABLE orm_author ADD COLUMN extra text DEFAULT 'x'")
    for _ in range(3):
        assert (await client.execute_query_dict("SELECT * FROM orm_author"))[0]["extra"] == "x"
