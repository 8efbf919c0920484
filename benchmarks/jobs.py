"""How many jobs a second one worker runs, beside arq's own worker in the same run: `python -m benchmarks.jobs --help`.

The jobs are on the queue before their worker starts; the time counts from the first start to the last end, as their
results tell. Both run MAX_JOBS at once, which is arq's default. Only ratios mean something elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from arq.connections import ArqRedis
from rich.console import Console
from rich.table import Table

from benchmarks.server import open_server
from config import Settings
from fleet.jobs import Arguments, Job, job_payload
from fleet.queue import open_queue
from local import Tether

MAX_JOBS = 10
STOCK, OWN = "arq", "this worker"
CASES: Mapping[str, float] = {"20 ms": 20.0, "no-op": 0.0}
JOBS = {STOCK: 150, OWN: 1500}  # of one round: seconds of each
ROUNDS = 3
IDLE_S = 5.0
GOAL_TIMES_STOCK = 6.0
GOAL_OF_CEILING = 0.85  # of MAX_JOBS / job time
TIMEOUT_S = 120.0
POLL_S = 0.05
RESULTS = Path("benchmarks/results/jobs.json")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(width=120)


class Pause(Arguments):
    """How long a job takes."""

    ms: float = 0.0


PAUSE = Job("pause", Pause, type(None))


@dataclass(frozen=True, slots=True)
class Round:
    """Jobs per second of one contender in one case, and round trips per second of its idle worker to Redis."""

    case: str
    contender: str
    jobs_per_s: float
    idle_round_trips_per_s: float


@app.command()
def main(
    quick: Annotated[bool, typer.Option(help="One short round: to see that it runs, not how fast.")] = False,
    results: Annotated[Path | None, typer.Option(help=f"JSON file; {RESULTS} without --quick.")] = None,
) -> None:
    """Measure jobs per second."""
    rounds: list[Round] = []
    with open_server() as (servers, tether):
        environ = servers.environ()
        for _ in range(1 if quick else ROUNDS):
            for case, ms in CASES.items():
                for contender in (STOCK, OWN):
                    count = JOBS[contender] // (10 if quick else 1)
                    idle_s = 0.5 if quick else IDLE_S
                    rounds.append(asyncio.run(measure(environ, tether, contender, case, ms, count, idle_s)))
    console.print(rates_table(rounds, goals=not quick))
    target = results or (None if quick else RESULTS)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps([asdict(each) for each in rounds], indent=1) + "\n", encoding="utf-8")
        console.print(f"results: {target}")


async def measure(
    environ: dict[str, str], tether: Tether, contender: str, case: str, ms: float, count: int, idle_s: float
) -> Round:
    """One worker of the contender, from its start to its end."""
    async with open_queue(Settings.load("poolctl", environ)) as queue:
        await queue.flushall()
        ids = [f"job-{number}" for number in range(count)]
        await _enqueue(queue, contender, ids, ms)
        child = tether.spawn(
            [sys.executable, "-m", "benchmarks.job_worker", contender, environ["REDIS_HOST"], environ["REDIS_PORT"]],
            death_signal=signal.SIGKILL,
            environ={"PATH": os.defpath, "PYTHONPATH": os.getcwd(), **environ},
            cwd=Path.cwd(),
        )
        try:
            speed = await _speed(queue, contender, ids)
            before = await _reads(queue)
            await asyncio.sleep(idle_s)
            idle = (await _reads(queue) - before - 1) / idle_s
        finally:
            child.stop()
    return Round(case, contender, speed, idle)


async def _enqueue(queue: ArqRedis, contender: str, ids: list[str], ms: float) -> None:
    payload = job_payload(PAUSE, Pause(ms=ms))
    if contender == STOCK:
        payload = pickle.dumps({"t": None, "f": PAUSE.name, "a": (), "k": {"ms": ms}, "et": round(time.time() * 1000)})
    async with queue.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.set(f"arq:job:{job_id}", payload)
            pipe.zadd("arq:queue", {job_id: time.time() * 1000})
        await pipe.execute()


async def _speed(queue: ArqRedis, contender: str, ids: list[str]) -> float:
    """Jobs per second, once all have their results."""
    keys = [f"arq:result:{job_id}" for job_id in ids]
    deadline = time.monotonic() + TIMEOUT_S
    while await queue.exists(*keys) < len(keys):
        if time.monotonic() > deadline:
            raise SystemExit(f"{contender}: not done within {TIMEOUT_S:g} s")
        await asyncio.sleep(POLL_S)
    loads: Any = pickle.loads if contender == STOCK else json.loads  # of our own server
    outcomes = [loads(raw) for raw in await queue.mget(keys)]
    span_ms = max(outcome["ft"] for outcome in outcomes) - min(outcome["st"] for outcome in outcomes)
    return len(ids) * 1000 / max(span_ms, 1)


async def _reads(queue: ArqRedis) -> int:
    # Not the commands: those inside of a script count, too.
    return int((await queue.info("stats"))["total_reads_processed"])


def rates_table(rounds: list[Round], *, goals: bool) -> Table:
    """The medians of the rounds, and with `goals` whether they meet them."""
    table = Table("jobs", "arq, jobs/s", "this worker, jobs/s", "times", "of the ceiling", "idle round trips/s")
    if goals:
        table.add_column("goal")
    for case, ms in CASES.items():
        stock, own = (_median(rounds, case, contender, "jobs_per_s") for contender in (STOCK, OWN))
        idle = [_median(rounds, case, contender, "idle_round_trips_per_s") for contender in (STOCK, OWN)]
        ceiling = own / (MAX_JOBS * 1000 / ms) if ms else None
        met = own >= GOAL_TIMES_STOCK * stock and (ceiling is None or ceiling >= GOAL_OF_CEILING)
        table.add_row(
            case,
            f"{stock:.0f}",
            f"{own:.0f}",
            f"{own / stock:.1f}",
            "–" if ceiling is None else f"{ceiling:.2f}",
            f"{idle[0]:.1f} → {idle[1]:.1f}",
            *(["met" if met else "missed"] if goals else []),
        )
    return table


def _median(rounds: list[Round], case: str, contender: str, field: str) -> float:
    return median(getattr(each, field) for each in rounds if (each.case, each.contender) == (case, contender))


if __name__ == "__main__":
    app()
