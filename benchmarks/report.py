"""A run's results, for people as tables and for programs as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.contender import STOCK
from benchmarks.goals import GOALS, Goal
from benchmarks.measurements import Measurements, Spread
from benchmarks.work import TITLES

PACKAGES = ("asyncpg", "tortoise-orm", "sqlalchemy", "psycopg", "psycopg-pool")


def machine(postgres: int) -> dict[str, Any]:
    """What it ran on: versions, and the machine's kind; nothing that tells whose it is."""
    return {
        "python": platform.python_version(),
        "postgresql": postgres,
        **{package: version(package) for package in PACKAGES},
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def as_json(measurements: Measurements, ran: dict[str, Any]) -> str:
    """`ran`: on what, for how long. Rates are operations per second, one per round."""
    rates = [
        {**case._asdict(), "contender": contender, **asdict(spread), "rates": measurements.rates[case][contender]}
        for case, contender, spread in measurements.rows()
    ]
    goals = [
        {**goal.case._asdict(), "other": goal.other, "at_least": goal.at_least, **asdict(ratio), "met": goal.met(ratio)}
        for goal, ratio in _measured(measurements)
    ]
    return json.dumps({**ran, "cases": _rounded(rates), "goals": _rounded(goals)}, indent=1) + "\n"


def write_json(measurements: Measurements, ran: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_json(measurements, ran), encoding="utf-8")


def rates_table(measurements: Measurements) -> Table:
    """Operations per second of every case and contender, and the ratio to stock Tortoise."""
    table = Table("path", "work", "tasks", "contender", title="operations per second", title_justify="left")
    for column in ("median", "lowest–highest", "× stock Tortoise"):
        table.add_column(column, justify="right")
    previous = None
    for case, contender, spread in measurements.rows():
        if previous not in (None, case):
            table.add_section()
        names = (case.path, TITLES[case.work], str(case.tasks)) if case != previous else ("", "", "")
        ratio = measurements.ratio(case, contender, STOCK)
        table.add_row(
            *names,
            contender,
            f"{spread.median:,.0f}",
            f"{spread.lowest:,.0f}–{spread.highest:,.0f}",
            "" if ratio is None else f"{ratio.median:.2f}",
        )
        previous = case
    return table


def goals_table(measurements: Measurements) -> Table:
    """Each goal that the run measured: the median of the ratios of its rounds, the lowest and the highest."""
    table = Table("this engine's", "path", "tasks", "beside", title="goals", title_justify="left")
    for column in ("at least ×", "measured ×", "lowest–highest"):
        table.add_column(column, justify="right")
    table.add_column("")
    for goal, ratio in _measured(measurements):
        case = goal.case
        table.add_row(
            TITLES[case.work],
            case.path,
            str(case.tasks),
            goal.other,
            f"{goal.at_least:.2f}",
            f"{ratio.median:.2f}",
            f"{ratio.lowest:.2f}–{ratio.highest:.2f}",
            "met" if goal.met(ratio) else "missed",
        )
    return table


def _measured(measurements: Measurements) -> Iterator[tuple[Goal, Spread]]:
    for goal in GOALS:
        ratio = goal.measured(measurements)
        if ratio is not None:
            yield goal, ratio


def _rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(each) for each in value]
        return float(f"{value:.5g}") if isinstance(value, float) else value

    return [{name: short(value) for name, value in row.items()} for row in rows]
