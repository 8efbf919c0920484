"""`EXPLAIN` of exactly one SELECT: its plan, and what may make it faster.

PostgreSQL's own parser says what is one SELECT, twice. The extended protocol takes one statement only, so the text is
explained in a statement of that; and it is explained as a subquery, where the grammar has no place for INTO, a writing
WITH, EXPLAIN, EXECUTE or anything else that is no SELECT. What then remains is FOR UPDATE, which is seen in the plan.

EXPLAIN does not run the query, and functions in it that may have effects (VOLATILE, which they are unless declared
otherwise) are not run. But planning computes constants, and so calls functions that are declared IMMUTABLE, and for
estimates STABLE ones. That happens in a read-only transaction that is rolled back, under `statement_timeout`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg

from db.database import Database
from db.errors import DRIVER_ERRORS, first_line
from db.query_plan import DEEPEST, PlanNode, PlanTooDeep
from db.suggestions import Suggestion, suggestions
from db.table_facts import read_table_facts

LONGEST = 8 * 1024  # bytes of a query
LONGEST_PLAN = 1024 * 1024  # characters of JSON
STATEMENT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 2.0  # beyond that, for the server to say so
SPARE_S = 5.0  # beyond that, for all of it: other statements, and the wait for a connection

_WORK_MEM = "SELECT setting::bigint * 1024 FROM pg_settings WHERE name = 'work_mem'"
# Not the query's fault: the server or the way to it is. What ends a statement at its timeout is, though.
_OUTAGES = (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InsufficientResourcesError)


class ExplainRefused(Exception):
    """The text is not one SELECT, or the server cannot plan it. One line; it may show the query's own text."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A query's plan, and suggestions, in the plan's order."""

    plan: PlanNode
    suggestions: tuple[Suggestion, ...]


async def explain_query(
    database: Database, sql: str, *, statement_timeout_s: float = STATEMENT_TIMEOUT_S
) -> Explanation:
    """Explain one SELECT (or WITH … SELECT), on a connection of this process's pool, which it leaves as it was.

    Planning may take `statement_timeout_s` seconds, all of it SPARE_S more. Raises ExplainRefused, TimeoutError, and
    what the pool and the driver raise where the server cannot be asked.
    """
    query = one_query(sql)
    limit_s = statement_timeout_s + SPARE_S
    missing = "free connection in the pool"
    try:
        async with asyncio.timeout(limit_s) as limit, database.client.acquire_connection() as connection:
            missing = "plan"
            return await _explanation(connection, query, statement_timeout_s)
    except TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError(f"no {missing} within {limit_s:g} s") from None


async def _explanation(connection: Any, query: str, statement_timeout_s: float) -> Explanation:
    async with _planning(connection, statement_timeout_s):
        plan = await _plan(connection, query, statement_timeout_s)
        tables = await read_table_facts(connection)
        work_mem = await connection.fetchval(_WORK_MEM)
    # In a transaction of its own: a function that planning calls may have changed the settings of the first one.
    async with _planning(connection, statement_timeout_s):
        await _check_grammar(connection, query, statement_timeout_s)
    if any(node.kind in ("LockRows", "ModifyTable") for node in plan.walk()):
        raise ExplainRefused("only what reads is explained, and this locks rows: leave out FOR UPDATE or FOR SHARE")
    return Explanation(plan, tuple(suggestions(plan, tables, work_mem)))


def one_query(sql: str) -> str:
    """The text without blanks and semicolons at its end. Raises ExplainRefused for what is seen without a server."""
    query = sql.strip().rstrip("; \t\r\n")
    if "\0" in query:
        raise ExplainRefused("a query has no NUL characters: remove them")
    try:
        size = len(query.encode())
    except UnicodeEncodeError:
        raise ExplainRefused("the query is no valid text (it has half of a UTF-16 pair): type it anew") from None
    if size > LONGEST:
        raise ExplainRefused(f"the query is {size:,} bytes long, and {LONGEST:,} is the most: shorten it")
    word = first_word(query)
    if word.upper() not in ("SELECT", "WITH"):
        begins = f"this begins with {word[:20]}" if word else "this begins with none"
        raise ExplainRefused(f"only one SELECT, or WITH … SELECT, is explained, and {begins}")
    return query


def first_word(sql: str) -> str:
    """The first keyword or name of a statement, after blanks, comments and opening brackets; `""` if there is none."""
    at = 0
    while at < len(sql):
        if sql.startswith("--", at):
            at = sql.find("\n", at) + 1 or len(sql)
        elif sql.startswith("/*", at):
            at = _after_comment(sql, at)
        elif sql[at].isspace() or sql[at] == "(":
            at += 1
        else:
            break
    end = at
    while end < len(sql) and (sql[end].isalnum() or sql[end] in "_$"):
        end += 1
    return sql[at:end]


def _after_comment(sql: str, at: int) -> int:
    """Where a comment ends that begins `at`; PostgreSQL's may hold others."""
    depth = 0
    while at < len(sql):
        if sql.startswith("/*", at):
            depth += 1
            at += 2
        elif sql.startswith("*/", at):
            depth -= 1
            at += 2
            if not depth:
                return at
        else:
            at += 1
    return at


@contextlib.asynccontextmanager
async def _planning(connection: Any, statement_timeout_s: float) -> AsyncIterator[None]:
    """A read-only transaction that is rolled back, and in which the server's refusals are ExplainRefused."""
    transaction = connection.transaction(readonly=True)
    await transaction.start()
    try:
        await connection.execute(f"SET LOCAL statement_timeout = {round(statement_timeout_s * 1000)}")
        yield
    except asyncpg.QueryCanceledError as error:
        raise ExplainRefused(
            f"planning took longer than {statement_timeout_s:g} s and was ended: a table may be locked, or a function"
            " that is declared IMMUTABLE or STABLE takes long"
        ) from error
    except _OUTAGES:
        raise
    except asyncpg.PostgresError as error:
        raise ExplainRefused(f"PostgreSQL refuses it: {first_line(error)}") from error
    finally:
        # Where that fails, what led to it counts; and the pool lets go of such a connection.
        with contextlib.suppress(*DRIVER_ERRORS):
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await transaction.rollback()


async def _plan(connection: Any, query: str, statement_timeout_s: float) -> PlanNode:
    text = await _explained(connection, query, statement_timeout_s)
    if len(text) > LONGEST_PLAN:
        raise ExplainRefused(f"the plan is {len(text):,} characters long, and {LONGEST_PLAN:,} is the most")
    try:
        return PlanNode.read(json.loads(text)[0]["Plan"])
    except (PlanTooDeep, RecursionError):
        raise ExplainRefused(f"the plan is nested more than {DEEPEST} levels deep: simplify the query") from None


async def _check_grammar(connection: Any, query: str, statement_timeout_s: float) -> None:
    """Refuses what is not one SELECT. That the text can stand alone was seen, so it does not close the bracket."""
    subquery = f"SELECT * FROM (\n{query}\n) AS query"  # noqa: S608 - what it may hold is the question here
    try:
        await _explained(connection, subquery, statement_timeout_s)
    except (asyncpg.PostgresSyntaxError, asyncpg.FeatureNotSupportedError) as error:
        raise ExplainRefused(
            "only what reads is explained: no INTO, and no INSERT, UPDATE, DELETE or MERGE after WITH"
            f" (PostgreSQL: {first_line(error)})"
        ) from error


async def _explained(connection: Any, query: str, statement_timeout_s: float) -> str:
    """The answer's JSON. The statement has no name, so none is left behind, also behind a pooler."""
    timeout_s = statement_timeout_s + ANSWER_TIMEOUT_S
    statement = await connection.prepare(f"EXPLAIN (FORMAT JSON) {query}", name="", timeout=timeout_s)
    if parameters := len(statement.get_parameters()):
        raise ExplainRefused(f"the query has {parameters} parameters ($1 …): put values in their place")
    answer: str = await statement.fetchval(timeout=timeout_s)
    return answer
