"""What the pool's guards cost: this engine, stock Tortoise and a bare asyncpg pool, side by side.

    make bench

All cases run in one process on one server of its own, in turns of a short time each, so that a machine that speeds
up or slows down does so for all. A figure is the median over the turns of operations per second, with the lowest and
the highest turn; the last column is the median of the ratios to stock Tortoise, turn by turn.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table
from tortoise.context import TortoiseContext

from config import Settings, asyncpg_pool_kwargs, tortoise_config
from local import open_servers, open_tether

TURNS = 15
TURN_S = 0.4
CONCURRENCIES = (1, 10)
READ = "SELECT oid, typname, typlen FROM pg_type WHERE oid = $1"

Operation = Callable[[], Awaitable[object]]


async def main(environ: dict[str, str]) -> None:
    settings = Settings.load("worker", environ | {"DB_POOL_MIN": "10", "DB_POOL_MAX": "10"})
    async with AsyncExitStack() as stack:
        cases: dict[str, Operation] = {
            "this engine": await stack.enter_async_context(_tortoise(settings, "pool.engine")),
            "stock Tortoise": await stack.enter_async_context(_tortoise(settings, "tortoise.backends.asyncpg")),
            "asyncpg pool": await stack.enter_async_context(_asyncpg(settings)),
        }
        for operation in cases.values():
            await _rate(operation, 10, TURN_S)  # warm up: plans are cached, all connections open
        table = Table("point read", "concurrency", "per second", "lowest–highest", "× stock Tortoise")
        for concurrency in CONCURRENCIES:
            rates: dict[str, list[float]] = {name: [] for name in cases}
            for _ in range(TURNS):
                for name, operation in cases.items():
                    rates[name].append(await _rate(operation, concurrency, TURN_S))
            for name, measured in rates.items():
                ratio = statistics.median(a / b for a, b in zip(measured, rates["stock Tortoise"], strict=True))
                table.add_row(
                    name,
                    str(concurrency),
                    f"{statistics.median(measured):,.0f}",
                    f"{min(measured):,.0f}–{max(measured):,.0f}",
                    f"{ratio:.2f}",
                )
        Console().print(table)


@asynccontextmanager
async def _tortoise(settings: Settings, engine: str) -> AsyncIterator[Operation]:
    config = tortoise_config(settings)
    connection = config["connections"]["default"]
    connection["engine"] = engine
    if engine != "pool.engine":
        for guard in ("acquire_timeout_s", "pre_ping", "max_lifetime_s"):
            del connection["credentials"][guard]
    async with TortoiseContext() as context:
        await context.init(config=config)
        client = context.db()

        async def read() -> object:
            return await client.execute_query(READ, [23])

        yield read


@asynccontextmanager
async def _asyncpg(settings: Settings) -> AsyncIterator[Operation]:
    async with asyncpg.create_pool(**asyncpg_pool_kwargs(settings)) as pool:

        async def read() -> object:
            return await pool.fetch(READ, 23)

        yield read


async def _rate(operation: Operation, concurrency: int, seconds: float) -> float:
    """Operations per second of `concurrency` tasks in a loop."""
    done = 0
    started = time.perf_counter()
    end = started + seconds

    async def loop() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await operation()
            done += 1

    await asyncio.gather(*(loop() for _ in range(concurrency)))
    return done / (time.perf_counter() - started)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="poolctl-bench-", dir="/var/tmp") as folder, open_tether() as tether:
        Path(folder).chmod(0o711)  # as root the servers run under another account
        with open_servers(Path(folder) / "servers", tether, durable=False) as servers:
            asyncio.run(main(servers.environ()))
