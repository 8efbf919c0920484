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
    """The query once for each sequence of `values`, all or none."""
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


def _affected(status: str) -> int:
    """The rows that a command tag counts: 3 of `UPDATE 3`, and as in Tortoise 0 of `INSERT 0 1`."""
    count = status.split(" ")[1:2]
    return int(count[0]) if count and count[0].isdecimal() else 0
