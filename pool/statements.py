"""What Tortoise asks of a connection, statement by statement: the same outside and inside a transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from pool.connection import PoolConnection

Result = TypeVar("Result")
Statement = Callable[[PoolConnection, str, Sequence[Any]], Awaitable[Result]]

_WITHOUT_ROWS = ("INSERT", "UPDATE", "DELETE")


async def insert(connection: PoolConnection, query: str, values: Sequence[Any]) -> Any:
    """The one row that RETURNING gives, or None."""
    return await connection.fetchrow(query, *values)


async def many(connection: PoolConnection, query: str, values: Sequence[Any]) -> None:
    """The query once for each sequence of `values`, all or none: asyncpg runs them in a transaction of its own."""
    await connection.executemany(query, values)


async def rows(connection: PoolConnection, query: str, values: Sequence[Any]) -> tuple[int, Sequence[Any]]:
    """How many rows, and the rows. INSERT, UPDATE and DELETE give no rows, as in Tortoise."""
    if query.lstrip()[:6].upper() in _WITHOUT_ROWS:
        return _affected(await connection.execute(query, *values)), []
    found = await connection.fetch(query, *values)
    return len(found), found


async def dictionaries(connection: PoolConnection, query: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    """Each row as a dictionary."""
    return [dict(row) for row in await connection.fetch(query, *values)]


async def script(connection: PoolConnection, query: str, _: Sequence[Any]) -> None:
    """One or more statements without parameters."""
    await connection.execute(query)


class StatementMethods:
    """Tortoise's five methods, for a client that runs a statement on a connection in its own way: `_run`."""

    async def _run(self, statement: Statement[Result], query: str, values: Sequence[Any] | None) -> Result:
        raise NotImplementedError

    async def execute_insert(self, query: str, values: list[Any]) -> Any:
        return await self._run(insert, query, values)

    async def execute_many(self, query: str, values: list[Any]) -> None:
        await self._run(many, query, values)

    async def execute_query(self, query: str, values: list[Any] | None = None) -> tuple[int, Any]:
        return await self._run(rows, query, values)

    async def execute_query_dict(self, query: str, values: list[Any] | None = None) -> list[dict[str, Any]]:
        return await self._run(dictionaries, query, values)

    async def execute_script(self, query: str) -> None:
        await self._run(script, query, None)


def _affected(status: str) -> int:
    """The rows that a command tag counts: 3 of `UPDATE 3`, and as in Tortoise 0 of `INSERT 0 1`."""
    count = status.split(" ")[1:2]
    return int(count[0]) if count and count[0].isdecimal() else 0
