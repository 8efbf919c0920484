"""One process of benchmarks/memory.py, on the server that the DB_* variables name. Prints one number.

python -m benchmarks.memory_process idle engine|asyncpg traced|resident    bytes per idle connection
python -m benchmarks.memory_process growth CHECKOUTS                       bytes
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.tortoise_engines import open_client
from benchmarks.work import READ, READ_ID
from config import Settings, asyncpg_pool_kwargs

CONNECTIONS = 100
TASKS = 10  # on as many connections
LAP = 10  # checkouts: one for a query, by which connections are handed over, the others bare
KINDS = ("engine", "asyncpg")
HOW = ("traced", "resident")

Acquire = Callable[[], AbstractAsyncContextManager[Any]]


async def idle(kind: str, how: str) -> float:
    """Bytes that each of a hundred idle connections takes, beyond the first."""
    settings = _settings(least=1, most=CONNECTIONS)
    if how == "traced":
        tracemalloc.start()
    async with _engine(settings) if kind == "engine" else _asyncpg(settings) as acquire:
        await _use(acquire, 1)  # what is imported and made once is there now
        before = _bytes(how)
        await _use(acquire, CONNECTIONS)
        return (_bytes(how) - before) / (CONNECTIONS - 1)


async def growth(checkouts: int) -> int:
    """How many more blocks Python's allocator holds after so many checkouts, when a tenth as many came before.

    Resident memory would also count what the C library has free in its heap, which varies by megabytes.
    """
    async with open_client(_settings(least=TASKS, most=TASKS), "pool", "engine") as client:

        async def loop(laps: int) -> None:
            for _ in range(laps):
                await client.execute_query(READ, [READ_ID])
                for _ in range(LAP - 1):
                    async with client.acquire_connection():
                        pass

        async def run(together: int) -> None:
            await asyncio.gather(*(loop(together // TASKS // LAP) for _ in range(TASKS)))

        await run(checkouts // 10)
        before = _blocks()
        await run(checkouts)
        return _blocks() - before


async def _use(acquire: Acquire, together: int) -> None:
    """One query on each of so many connections, all of them out at once."""
    all_out = asyncio.Barrier(together)

    async def query() -> None:
        async with acquire() as connection:
            await connection.fetch(READ, READ_ID)
            await all_out.wait()

    await asyncio.gather(*(query() for _ in range(together)))


@asynccontextmanager
async def _engine(settings: Settings) -> AsyncIterator[Acquire]:
    async with open_client(settings, "pool", "engine") as client:
        yield client.acquire_connection


@asynccontextmanager
async def _asyncpg(settings: Settings) -> AsyncIterator[Acquire]:
    async with asyncpg.create_pool(**asyncpg_pool_kwargs(settings)) as pool:
        yield pool.acquire


def _settings(least: int, most: int) -> Settings:
    return Settings.load("worker", {**os.environ, "DB_POOL_MIN": str(least), "DB_POOL_MAX": str(most)})


def _blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


def _bytes(how: str) -> int:
    """What the process holds now: as Python's allocators count it, or as the kernel does."""
    gc.collect()
    if how == "traced":
        return tracemalloc.get_traced_memory()[0]
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, and only the most that it ever was
    return most if sys.platform == "darwin" else most * 1024


def main() -> None:
    what, *arguments = sys.argv[1:]
    number = asyncio.run(idle(*arguments) if what == "idle" else growth(int(arguments[0])))
    print(number)  # noqa: T201 - its parent reads it


if __name__ == "__main__":
    main()
