"""Transactions that PgBouncer counts for one query: of this engine, and of stock Tortoise, which sends a reset too.

    python -m benchmarks.pooler

Needs a PgBouncer on PATH or in /usr/sbin, and the development packages.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.contender import ENGINE, POOL, STOCK
from benchmarks.server import open_server
from benchmarks.tortoise_engines import open_client
from benchmarks.work import READ, READ_ID, create_table
from config import Settings

QUERIES = 1000
GOAL = 1.0  # transactions for each query
RESULTS = Path("benchmarks/results/pooler.json")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    queries: Annotated[int, typer.Option(min=1, help="How many of each engine.")] = QUERIES,
    results: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS,
) -> None:
    """Count transactions behind PgBouncer."""
    try:
        import pytest

        from tests.pgbouncer import find_pgbouncer, open_pgbouncer
    except ImportError as error:
        raise SystemExit(f"the package {error.name} is missing: `make .venv` installs what development needs") from None
    try:
        find_pgbouncer()
    except pytest.skip.Exception as reason:
        raise SystemExit(str(reason)) from None
    counted = {}
    with open_server() as (servers, tether):
        server = servers.environ() | {"DB_POOL_MIN": str(POOL), "DB_POOL_MAX": str(POOL)}
        asyncio.run(create_table(Settings.load("worker", server)))
        folder = servers.postgres.log.parent.parent
        with open_pgbouncer(server, folder, tether) as pgbouncer:

            def transactions() -> int:
                rows = pgbouncer.ask("SHOW STATS")
                return sum(int(row["total_xact_count"]) for row in rows if row["database"] == server["DB_NAME"])

            settings = Settings.load("worker", server | pgbouncer.environ())
            for name, engine, app in ((ENGINE, "pool", "engine"), (STOCK, "tortoise", "stock")):
                counted[name] = asyncio.run(count(settings, engine, app, queries, transactions)) / queries
            version = ".".join(map(str, pgbouncer.version))
    table = Table("behind PgBouncer " + version, "transactions for each query", "")
    for name, number in counted.items():
        verdict = "" if name == STOCK else "met" if number <= GOAL else "missed"
        table.add_row(name, f"{number:.2f}", verdict)
    Console(width=120).print(table)
    results.parent.mkdir(parents=True, exist_ok=True)
    answer = {"pgbouncer": version, "queries": queries, "transactions_per_query": counted}
    results.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


async def count(settings: Settings, engine: str, app: str, queries: int, transactions: Callable[[], int]) -> int:
    """Transactions by so many queries, one after another, once a first one has prepared the statement."""
    async with open_client(settings, engine, app) as client:
        await client.execute_query(READ, [READ_ID])
        before = await asyncio.to_thread(transactions)
        for _ in range(queries):
            await client.execute_query(READ, [READ_ID])
        return await asyncio.to_thread(transactions) - before


if __name__ == "__main__":
    app()
