"""How much memory the pool's engine takes: per idle connection, and over a million checkouts.

    python -m benchmarks.memory

Each number comes from a process of its own. An idle connection has run one query.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.memory_process import CONNECTIONS, HOW, KINDS
from benchmarks.server import open_server
from benchmarks.work import create_table
from config import Settings

PROCESSES = 5  # of each kind; the median counts
CHECKOUTS = 1_000_000
AT_MOST = 1.05  # × asyncpg's memory per connection
LEAK = 0.001  # blocks of memory for each checkout; what is left of one in use differs from look to look
RESULTS = Path("benchmarks/results/memory.json")
ROOT = Path(__file__).resolve().parents[1]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    checkouts: Annotated[int, typer.Option(min=1000, help="How many, for the growth.")] = CHECKOUTS,
    processes: Annotated[int, typer.Option(min=1, help="How many of each kind.")] = PROCESSES,
    results: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS,
) -> None:
    """Measure memory per idle connection, and growth."""
    with open_server() as (servers, _):
        environ = servers.environ()
        asyncio.run(create_table(Settings.load("worker", environ)))
        idle = {
            how: {
                kind: statistics.median(_child(environ, "idle", kind, how) for _ in range(processes)) for kind in KINDS
            }
            for how in HOW
        }
        growth = _child(environ, "growth", str(checkouts))
    ratios = {how: kinds["engine"] / kinds["asyncpg"] for how, kinds in idle.items()}
    table = Table("", "this engine", "asyncpg pool", "ratio or bound", "")
    for how, kinds in idle.items():
        verdict = ""
        if how == "traced":  # exact; resident memory comes in pages and varies by more than the goal
            verdict = "met" if ratios[how] <= AT_MOST else "missed"
        numbers = (f"{kinds[kind] / 1024:.1f} KiB" for kind in KINDS)
        table.add_row(f"{how} memory per idle connection", *numbers, f"{ratios[how]:.3f}", verdict)
    name = f"more blocks of memory after {checkouts:,} checkouts"
    grown = "met" if growth <= LEAK * checkouts else "missed"
    table.add_row(name, f"{growth:,.0f}", "", f"{LEAK * checkouts:,.0f}", grown)
    Console(width=120).print(table)
    results.parent.mkdir(parents=True, exist_ok=True)
    answer = {"connections": CONNECTIONS, "bytes_per_idle_connection": idle, "ratios": ratios}
    results.write_text(json.dumps(answer | {"checkouts": checkouts, "more_blocks": growth}, indent=1) + "\n")


def _child(environ: Mapping[str, str], *arguments: str) -> float:
    """What a process of its own measures."""
    command = [sys.executable, "-m", "benchmarks.memory_process", *arguments]
    done = subprocess.run(command, env=dict(environ), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    app()
