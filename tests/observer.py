"""What the server says of a pool: a connection of its own beside it, and the pool's numbers checked against it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

from config import Settings
from db import connect
from pool import Pool
from tests.pools import open_pool
from tests.proxy import Proxy, open_proxy
from tests.waiting import until

NAME = "observed"  # application_name of the pool's connections


@dataclass
class Observer:
    """Looks at the server, past pool and proxy."""

    connection: asyncpg.Connection

    async def value(self, query: str, *arguments: object) -> Any:
        """The first column of the first row."""
        return await self.connection.fetchval(query, *arguments)

    async def pids(self) -> set[int]:
        """The server processes of the pool's connections."""
        rows = await self.connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()", NAME
        )
        return {row["pid"] for row in rows}

    async def count(self, expected: int, *, timeout_s: float = 5.0) -> None:
        """Waits until the pool has so many connections on the server: a closed one takes a moment to go."""

        async def as_expected() -> bool:
            return len(await self.pids()) == expected

        await until(as_expected, timeout_s=timeout_s, what=f"{expected} connections on the server")

    async def kill(self, *pids: int) -> None:
        """Ends these server processes, and waits until they are gone."""
        await self.connection.fetch("SELECT pg_terminate_backend(pid, 5000) FROM unnest($1::int[]) AS pid", [*pids])


@contextlib.asynccontextmanager
async def open_observer(environ: Mapping[str, str]) -> AsyncIterator[Observer]:
    async with connect(Settings.load("poolctl", environ)) as connection:
        yield Observer(connection)


@contextlib.asynccontextmanager
async def observed_pool(environ: Mapping[str, str], **arguments: Any) -> AsyncIterator[tuple[Pool, Observer]]:
    """A pool as `open_pool` gives it, an observer beside it; at the end its counters must add up."""
    named = {"server_settings": {"application_name": NAME}}
    async with open_observer(environ) as observer:
        async with open_pool(environ, **(named | arguments)) as pool:
            yield pool, observer
            await check_counters(pool)
        await observer.count(0)


@contextlib.asynccontextmanager
async def proxied_pool(environ: Mapping[str, str], **arguments: Any) -> AsyncIterator[tuple[Pool, Observer, Proxy]]:
    """The same with a proxy between the pool and the server; nobody looks for a pooler there."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        through = {**environ, "DB_PORT": str(proxy.listens_on)}
        named = {"server_settings": {"application_name": NAME}, "pooler": "none"}
        async with open_observer(environ) as observer, open_pool(through, **(named | arguments)) as pool:
            yield pool, observer, proxy
            await check_counters(pool)


async def check_counters(pool: Pool) -> None:
    """What was counted adds up. A connection's end is counted one turn of the event loop later, so it waits for it."""

    def size_adds_up() -> bool:
        now = pool.snapshot()
        return now.created == now.size + sum(now.closed.values())

    await until(size_adds_up, timeout_s=2.0, what="created == size + closed")
    now = pool.snapshot()
    assert now.acquires == now.releases + now.in_use
    assert sum(now.wait_s.counts) == now.acquires
    assert sum(now.use_s.counts) == now.releases
    assert sum(now.create_s.counts) == now.created
    assert now.timeouts <= now.waits
    assert now.in_use <= now.peak <= now.ceiling
    assert now.idle == max(0, now.size - now.in_use)


async def backend(pool: Pool) -> int:
    """The server process of the connection that the pool hands out now, by the engine's way."""
    connection = await pool.checkout()
    pid: int = connection.get_server_pid()
    if not pool.try_checkin(connection):
        await pool.checkin(connection)
    return pid


async def warm(pool: Pool, count: int) -> set[int]:
    """Has the pool open so many connections; their server processes."""
    held = [await pool.acquire() for _ in range(count)]
    pids = {connection.get_server_pid() for connection in held}
    for connection in held:
        await pool.release(connection)
    return pids
