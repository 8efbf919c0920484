"""EXPLAIN on a real server: what is explained, what is refused, and that nothing of it happens or stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config import Settings
from db.database import Database, open_database
from db.explain import LONGEST, ExplainRefused, Explanation, explain_query
from db.server import connect
from db.suggestions import Rule
from local import Tether
from tests.conftest import Environ
from tests.pgbouncer import open_pgbouncer
from tests.secrecy import Secrecy
from tests.superuser import execute, value
from tests.waiting import until

TABLES = """
    CREATE TABLE orders (id int PRIMARY KEY, customer int, note text, "When" timestamptz DEFAULT now());
    INSERT INTO orders VALUES (1, 1), (2, 2), (3, 3);
    CREATE TABLE customers (id int PRIMARY KEY, email text);
    CREATE INDEX ON customers (email);
    CREATE SEQUENCE counter;
"""
ROWS = """
    INSERT INTO orders SELECT n, n % 5000, repeat('x', 100) FROM generate_series(4, 50000) AS n;
    INSERT INTO customers SELECT n, 'c' || n FROM generate_series(1, 40000) AS n;
    ANALYZE;
"""
ONE = {"DB_POOL_MIN": "1", "DB_POOL_MAX": "1"}


@pytest.fixture
async def tables(environ: Environ) -> Environ:
    """A database with some rows."""
    await execute(environ, TABLES)
    return environ | ONE


@pytest.fixture
async def opened(tables: Environ) -> AsyncIterator[Database]:
    """It, open, with a pool of one connection."""
    async with open_database(Settings.load("bot", tables)) as database:
        yield database


@pytest.fixture
async def rows(tables: Environ) -> None:
    """Its tables have many rows."""
    await execute(tables, ROWS)


def rules(explanation: Explanation) -> set[tuple[Rule, str]]:
    return {(each.rule, each.node) for each in explanation.suggestions}


# What is explained


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        "  select id from orders where id = 1 ;\n",
        "SELECT FROM orders",
        "WITH few AS (SELECT * FROM orders LIMIT 3) SELECT count(*) FROM few",
        "(SELECT 1) UNION ALL (SELECT 2) ORDER BY 1",
        "/* a /* nested */ comment */ -- and another\n SELECT 1 -- at its end",
        "SELECT 'into', $$ ; DROP TABLE orders $$, \"When\" FROM orders -- ;",
        "SELECT id, id FROM orders",
        "WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 10) SELECT * FROM r",
    ],
)
async def test_what_is_explained(opened: Database, query: str) -> None:
    """A SELECT is explained, with or without WITH, brackets, comments, a semicolon at its end."""
    explanation = await explain_query(opened, query)
    assert explanation.plan.kind
    assert list(explanation.plan.lines())


async def test_plan_of_the_query_itself(rows: None, opened: Database) -> None:
    """The plan is that of the text, not of one in which it is a subquery."""
    explanation = await explain_query(opened, "SELECT * FROM orders WHERE id = 7")
    assert explanation.plan.label == "Index Scan using orders_pkey on orders"
    assert explanation.suggestions == ()


# What is refused


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "begins with none"),
        ("-- SELECT 1", "begins with none"),
        ("/* SELECT 1 */", "begins with none"),
        ("/* SELECT */ DROP TABLE orders", "begins with DROP"),
        ("EXPLAIN SELECT 1", "begins with EXPLAIN"),
        ("EXPLAIN (ANALYZE) DELETE FROM orders", "begins with EXPLAIN"),
        ("ANALYZE SELECT 1", "begins with ANALYZE"),
        ("(ANALYZE) SELECT 1", "begins with ANALYZE"),
        ("EXECUTE prepared(pg_sleep(1))", "begins with EXECUTE"),
        ("INSERT INTO orders VALUES (0)", "begins with INSERT"),
        ("VALUES (1)", "begins with VALUES"),
        ("DECLARE c CURSOR FOR SELECT 1", "begins with DECLARE"),
        ("SELECT 1; SELECT 2", "multiple commands"),
        ("SELECT 1; DROP TABLE orders", "multiple commands"),
        ("SELECT 1; COMMIT; DROP TABLE orders; --", "multiple commands"),
        ("SELECT 1) AS query; DROP TABLE orders; SELECT * FROM (SELECT 1", "syntax error"),
        ("SELECT 1) AS query, (SELECT 2", "syntax error"),
        ("WITH gone AS (DELETE FROM orders RETURNING *) SELECT * FROM gone", "INSERT, UPDATE, DELETE or MERGE"),
        ("WITH few AS (SELECT 1) INSERT INTO orders SELECT * FROM few", "INSERT, UPDATE, DELETE or MERGE"),
        ("WITH few AS (SELECT 1) DELETE FROM orders", "INSERT, UPDATE, DELETE or MERGE"),
        ("SELECT * INTO copy FROM orders", "no INTO"),
        ("SELECT 1 INTO TEMP copy", "no INTO"),
        ("WITH few AS (SELECT 1) SELECT * INTO copy FROM few", "no INTO"),
        ("SELECT * FROM orders FOR UPDATE", "FOR UPDATE"),
        ("SELECT * FROM (SELECT * FROM orders FOR SHARE) AS locked", "FOR UPDATE or FOR SHARE"),
        ("WITH locked AS (SELECT * FROM orders FOR KEY SHARE) SELECT * FROM locked", "FOR UPDATE or FOR SHARE"),
        ("SELECT * FROM orders WHERE false FOR UPDATE", "FOR UPDATE"),
        ("SELECT 'unfinished", "unterminated quoted string"),
        ("SELECT $$unfinished", "unterminated dollar-quoted string"),
        ('SELECT "unfinished', "unterminated quoted identifier"),
        ("SELECT 1 /* unfinished", "unterminated /* comment"),
        ("SELECT 1\0; DROP TABLE orders", "NUL"),
        ("SELECT '\ud800'", "half of a UTF-16 pair"),
        ("SELECT * FROM orders WHERE id = $1", "1 parameters"),
        ("SELECT * FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELECT 1 / 0", "division by zero"),
        ("SELECT " + "(" * 5_000 + "1" + ")" * 5_000, f"{LONGEST:,} is the most"),
        ("SELECT '" + "é" * 5_000 + "'", f"{LONGEST:,} is the most"),
    ],
)
async def test_what_is_refused(tables: Environ, opened: Database, query: str, reason: str) -> None:
    """Anything else is refused in one line that says why; nothing happened, and the pool works on."""
    with pytest.raises(ExplainRefused) as caught:
        await explain_query(opened, query)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert await value(tables, "SELECT count(*) FROM orders") == 3
    assert await value(tables, "SELECT to_regclass('copy')") is None
    assert (await explain_query(opened, "SELECT 1")).plan.kind == "Result"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT " + "(" * 4_000 + "1" + ")" * 4_000,
        "SELECT " + "(SELECT " * 900 + "1" + ")" * 900,
        "SELECT * FROM " + "(SELECT * FROM " * 300 + "orders" + ") AS o" * 300,
        "SELECT " + "abs(" * 1_600 + "id" + ")" * 1_600 + " FROM orders",
        "SELECT " + "-".join(["id"] * 2_000) + " FROM orders",
        "SELECT 1 " + "EXCEPT SELECT 1 " * 500,
        "SELECT count(*) FROM " + ", ".join(f"orders AS o{n}" for n in range(500)),
        "SELECT " + "CASE WHEN random() > 0 THEN " * 200 + "1" + " END" * 200,
        "SELECT " + "[" * 4_000,
    ],
    ids=["brackets", "subqueries", "from", "functions", "operators", "except", "joins", "case", "unbalanced"],
)
async def test_nesting(opened: Database, query: str) -> None:
    """A query of up to the longest size, however nested, is explained or refused; nobody crashes."""
    assert len(query) <= LONGEST
    with contextlib.suppress(ExplainRefused):
        await explain_query(opened, query)
    assert (await explain_query(opened, "SELECT 1")).plan.kind == "Result"


# Functions

FUNCTIONS = {
    "sleeps": "BEGIN PERFORM pg_sleep(60); RETURN 1; END",
    "writes": "BEGIN DELETE FROM orders; RETURN 1; END",
    "counts": "BEGIN RETURN nextval('counter'); END",
    "sets": "BEGIN PERFORM set_config('work_mem', '77MB', false); RETURN 1; END",
    "lingers": (
        "BEGIN IF current_setting('statement_timeout') = '0' THEN PERFORM pg_sleep(60); END IF;"
        " PERFORM set_config('statement_timeout', '0', true); RETURN 1; END"
    ),
    "unlocks": "BEGIN PERFORM set_config('transaction_read_only', 'off', true); RETURN 1; END",
}


async def declare(environ: Environ, name: str, volatility: str) -> None:
    """A function of FUNCTIONS, declared as somebody wants it, whatever it does."""
    await execute(
        environ, f"CREATE FUNCTION {name}() RETURNS int LANGUAGE plpgsql {volatility} AS $${FUNCTIONS[name]}$$"
    )


async def test_volatile_functions_are_not_run(tables: Environ, opened: Database) -> None:
    """What may have an effect is not run: not pg_sleep, nextval, set_config, nor one's own function."""
    await declare(tables, "writes", "VOLATILE")
    for query in (
        "SELECT pg_sleep(60)",
        "SELECT nextval('counter')",
        "SELECT set_config('work_mem', '77MB', false)",
        "SELECT pg_advisory_lock(1)",
        "SELECT writes()",
        "SELECT * FROM orders WHERE id = writes()",
    ):
        await explain_query(opened, query)
    assert await value(tables, "SELECT count(*) FROM orders") == 3
    assert await value(tables, "SELECT is_called FROM counter") is False
    assert await value(tables, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


@pytest.mark.parametrize("query", ["SELECT sleeps()", "SELECT * FROM orders WHERE id = sleeps()"])
async def test_function_that_sleeps(tables: Environ, opened: Database, query: str) -> None:
    """A function that is declared IMMUTABLE is run by planning; the server ends it after the timeout."""
    await declare(tables, "sleeps", "IMMUTABLE")
    with pytest.raises(ExplainRefused, match=r"longer than 0\.5 s"):
        await explain_query(opened, query, statement_timeout_s=0.5)
    assert (await explain_query(opened, "SELECT 1")).plan.kind == "Result"


@pytest.mark.parametrize(
    ("name", "volatility", "query", "reason"),
    [
        ("writes", "IMMUTABLE", "SELECT writes()", "DELETE is not allowed in a non-volatile function"),
        ("writes", "STABLE", "SELECT * FROM orders WHERE id < writes()", "DELETE is not allowed"),
        ("counts", "IMMUTABLE", "SELECT counts()", "cannot execute nextval() in a read-only transaction"),
        ("unlocks", "IMMUTABLE", "SELECT unlocks()", "transaction read-write mode"),
    ],
)
async def test_function_that_writes(
    tables: Environ, opened: Database, name: str, volatility: str, query: str, reason: str
) -> None:
    """A function that writes though it is declared not to is refused by the server."""
    await declare(tables, name, volatility)
    with pytest.raises(ExplainRefused) as caught:
        await explain_query(opened, query)
    assert reason in str(caught.value)
    assert await value(tables, "SELECT count(*) FROM orders") == 3
    assert await value(tables, "SELECT is_called FROM counter") is False


async def test_function_that_changes_settings(tables: Environ, opened: Database) -> None:
    """What a function sets while the query is planned is gone afterwards, a longer timeout before the second look."""
    for name in ("sets", "lingers"):
        await declare(tables, name, "IMMUTABLE")
        await explain_query(opened, f"SELECT {name}()")
    async with opened.client.acquire_connection() as connection:
        assert await connection.fetchval("SHOW work_mem") == "4MB"
        assert await connection.fetchval("SHOW statement_timeout") == "0"


async def test_nothing_stays(opened: Database) -> None:
    """The connection is as before: no setting, no transaction, no prepared statement; and it is the same one."""
    state = "SELECT pg_backend_pid(), current_setting('statement_timeout'), current_setting('transaction_read_only')"
    kept = "SELECT FROM pg_prepared_statements WHERE statement LIKE 'EXPLAIN%'"
    async with opened.client.acquire_connection() as connection:
        before = await connection.fetchrow(state)
    await explain_query(opened, "SELECT * FROM orders")
    with pytest.raises(ExplainRefused):
        await explain_query(opened, "SELECT * FROM orders FOR UPDATE")
    async with opened.client.acquire_connection() as connection:
        assert await connection.execute(kept) == "SELECT 0"  # which prepares nothing, nor tidies up
        assert await connection.fetchrow(state) == before
        assert not connection.is_in_transaction()


async def test_locked_table(tables: Environ, opened: Database) -> None:
    """A table that is locked, as by a migration, is waited for no longer than the timeout."""
    async with connect(Settings.load("poolctl", tables)) as holder, holder.transaction():
        await holder.execute("LOCK TABLE orders")
        with pytest.raises(ExplainRefused, match="a table may be locked"):
            await explain_query(opened, "SELECT * FROM orders", statement_timeout_s=0.3)


async def test_server_that_goes_away(tables: Environ, opened: Database) -> None:
    """A connection that dies meanwhile is no fault of the query's."""
    await declare(tables, "sleeps", "IMMUTABLE")
    explaining = asyncio.create_task(explain_query(opened, "SELECT sleeps()", statement_timeout_s=60))
    busy = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'EXPLAIN%sleeps%' AND pid <> pg_backend_pid()"
    pid = await until(lambda: value(tables, busy), what="it is being planned")
    await execute(tables, f"SELECT pg_terminate_backend({pid})")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - one of several of asyncpg's
        await explaining
    assert not isinstance(caught.value, ExplainRefused)
    assert (await explain_query(opened, "SELECT 1")).plan.kind == "Result"


@pytest.mark.parametrize("tracking", [0, 200], ids=["untracked", "tracked"])
async def test_behind_pgbouncer(
    tables: Environ, rows: None, data_folder: Path, tether: Tether, secrecy: Secrecy, tracking: int
) -> None:
    """Through PgBouncer in transaction mode it works as directly, and leaves nothing on the server's connection."""
    with open_pgbouncer(
        tables, data_folder, tether, max_prepared_statements=tracking, default_pool_size=1, logs=secrecy.folder
    ) as pooler:
        async with open_database(Settings.load("bot", tables | pooler.environ() | {"DB_POOL_MAX": "3"})) as opened:
            for _ in range(3):
                found = await explain_query(opened, "SELECT * FROM orders WHERE customer = 7")
                assert (Rule.MISSING_INDEX, "Seq Scan on orders") in rules(found)
                with pytest.raises(ExplainRefused, match="no INTO"):
                    await explain_query(opened, "SELECT 1 INTO copy")
            async with opened.client.acquire_connection() as connection:
                assert await connection.fetchval("SHOW statement_timeout") == "0"
                assert await connection.fetchval("SHOW transaction_read_only") == "off"
                kept = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'EXPLAIN%'"
                assert await connection.fetchval(kept) == 0


# Suggestions on real plans; their rules are in tests/unit/test_suggestions.py


async def test_missing_index(tables: Environ, rows: None, opened: Database) -> None:
    """A filter without an index on a large table is told, with the statement that makes one; and then no more."""
    query = "SELECT * FROM orders WHERE customer = 7"
    found = await explain_query(opened, query)
    assert rules(found) == {
        (Rule.SEQUENTIAL_SCAN, "Seq Scan on orders"),
        (Rule.MISSING_INDEX, "Seq Scan on orders"),
    }
    (statement,) = [each.text for each in found.suggestions if each.rule is Rule.MISSING_INDEX]
    assert "CREATE INDEX ON public.orders (customer)" in statement
    await execute(tables, "CREATE INDEX ON public.orders (customer)")
    assert (await explain_query(opened, query)).suggestions == ()


async def test_index_that_cannot_be_used(rows: None, opened: Database) -> None:
    """Where there is an index on the column, the filter is what is told to look at."""
    found = await explain_query(opened, "SELECT * FROM customers WHERE lower(email) = 'c7'")
    (text,) = [each.text for each in found.suggestions if each.rule is Rule.MISSING_INDEX]
    assert text.startswith("there is an index on email, but this filter does not use it")


async def test_sort_on_disk(tables: Environ, rows: None) -> None:
    """A sort larger than work_mem is told; one of which few rows are kept is not."""
    await execute(tables, f"ALTER DATABASE {tables['DB_NAME']} SET work_mem = '1MB'")
    async with open_database(Settings.load("bot", tables)) as opened:
        found = await explain_query(opened, "SELECT * FROM orders ORDER BY note")
        assert (Rule.SORT_ON_DISK, "Sort") in rules(found)
        assert "more than work_mem=1.0 MB" in " ".join(map(str, found.suggestions))
        top = await explain_query(opened, "SELECT * FROM orders ORDER BY note LIMIT 5")
        assert Rule.SORT_ON_DISK not in {each.rule for each in top.suggestions}


async def test_estimates_far_off(tables: Environ, opened: Database) -> None:
    """A table that was never analyzed, or has grown tenfold since, is told to be; then no more."""
    await execute(tables, "CREATE TABLE events (id int) WITH (autovacuum_enabled = off)")
    await execute(tables, "INSERT INTO events SELECT generate_series(1, 5000)")
    query = "SELECT * FROM events"

    async def told() -> str:
        found = await explain_query(opened, query)
        return " ".join(each.text for each in found.suggestions if each.rule is Rule.ESTIMATE_OFF)

    assert "public.events was never analyzed" in await until(told)
    await execute(tables, "ANALYZE events")
    assert not await told()
    await execute(tables, "INSERT INTO events SELECT generate_series(1, 60000)")
    assert "had about 5,000 rows at the last ANALYZE, now about 65,000" in await until(told)
    await execute(tables, "ANALYZE events")
    assert not await told()


async def test_nested_loop(rows: None, opened: Database) -> None:
    """A join that no index helps is told with the rows that it looks at."""
    found = await explain_query(
        opened, "SELECT * FROM orders JOIN customers ON orders.customer < customers.id WHERE orders.id < 1000"
    )
    (text,) = [each.text for each in found.suggestions if each.rule is Rule.NESTED_LOOP]
    assert "rows there" in text
