"""How fast the pool's engine is beside others, in one run: `make bench`, or `python -m benchmarks.engine --help`.

All contenders work in one process, on one server of its own, with a pool of ten each. Cases are measured round by
round and in a round contender by contender, for a short time each, so that a machine that speeds up or slows down
does so for all. Only ratios mean something elsewhere: each is the median of the ratios of the rounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.chart import draw
from benchmarks.contender import POOL
from benchmarks.measurements import Case, Measurements
from benchmarks.path import PATHS, open_path
from benchmarks.rate import rate
from benchmarks.report import goals_table, machine, rates_table, write_json
from benchmarks.server import open_server
from benchmarks.work import Work, create_table
from config import Settings

TASKS = (1, 10, 100)
ROUNDS, SECONDS = 7, 0.15
QUICK_ROUNDS, QUICK_SECONDS = 1, 0.01
WARM_UP_S = 0.01  # of each case once: statements are prepared, all connections are open
RESULTS, CHART = Path("benchmarks/results/engine.json"), Path("docs/pool-speed.svg")
CHOICES = tuple(map(str, (*PATHS, *Work, *TASKS)))

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()
if not console.is_terminal:
    console = Console(width=120)  # rich takes 80, too few for the tables


@app.command()
def main(
    quick: Annotated[bool, typer.Option(help="One very short round: to see that it runs, not how fast.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help=f"Rounds; {ROUNDS} without --quick.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.001, help=f"Of each turn; {SECONDS} without --quick.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Only these cases, may be repeated: {', '.join(CHOICES)}.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help=f"JSON file; {RESULTS} for a whole run, none with --quick or --only.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(help=f"SVG file; {CHART} for a whole run, none with --quick or --only.")
    ] = None,
) -> None:
    """Measure this engine beside other pools."""
    missing = [package for package in ("psycopg", "psycopg_pool", "sqlalchemy") if find_spec(package) is None]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}: `make bench` installs what this engine is compared with")
    unknown = set(only or ()).difference(CHOICES)
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: choose among {', '.join(CHOICES)}", param_hint="--only"
        )
    if not (quick or only):
        results, chart = results or RESULTS, chart or CHART
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
    measurements = Measurements()
    with open_server() as (servers, tether), Progress(console=console, transient=True) as progress:
        environ = servers.environ() | {"DB_POOL_MIN": str(POOL), "DB_POOL_MAX": str(POOL)}
        asyncio.run(create_table(Settings.load("worker", environ)))
        for path, cases in chosen(set(only or ())):
            bar = progress.add_task(path, total=len(cases) * rounds)
            with open_path(path, environ, tether) as way:
                asyncio.run(
                    measure(
                        Settings.load("worker", way),
                        cases,
                        rounds,
                        seconds,
                        measurements,
                        partial(progress.advance, bar),
                    )
                )
        postgres = servers.postgres.binary.major
    console.print(rates_table(measurements))
    console.print(goals_table(measurements))
    if results is not None:
        write_json(measurements, machine(postgres) | {"pool": POOL, "rounds": rounds, "seconds": seconds}, results)
        console.print(f"results: {results}")
    if chart is not None:
        draw(measurements, chart)
        console.print(f"chart: {chart}")


def chosen(only: Set[str]) -> Iterator[tuple[str, list[Case]]]:
    """The cases by path. Of a dimension that `only` names no value of, all values."""

    def named(values: Iterable[Any]) -> list[Any]:
        return [value for value in values if str(value) in only] or list(values)

    for path in named(PATHS):
        yield path, [Case(path, work, tasks) for work, tasks in product(named(Work), named(TASKS))]


async def measure(
    settings: Settings,
    cases: Sequence[Case],
    rounds: int,
    seconds: float,
    measurements: Measurements,
    advance: Callable[[], None],
) -> None:
    """Adds the rates of all contenders. Each round begins with another one, so that none has a better place."""
    from benchmarks.contenders import open_contenders  # needs packages that a test of this module may lack

    async with open_contenders(settings) as contenders:
        names = list(contenders)
        for case, name in product(cases, names):
            if case.work in contenders[name].operations:
                await rate(contenders[name], case.work, case.tasks, WARM_UP_S)
        for turn in range(rounds):
            first = turn % len(names)
            for case in cases:
                for name in names[first:] + names[:first]:
                    if case.work in contenders[name].operations:
                        speed = await rate(contenders[name], case.work, case.tasks, seconds)
                        measurements.add(case, name, speed)
                advance()


if __name__ == "__main__":
    app()
