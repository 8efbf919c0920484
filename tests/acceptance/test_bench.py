"""The benchmarks run to their end and write what they measured. How fast anything is, no test says."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.jobs import CASES, OWN, STOCK
from benchmarks.measurements import Case
from benchmarks.path import DIRECT, PATHS
from benchmarks.work import Work
from tests.pgbouncer import find_pgbouncer
from tests.processes import Spawner

ROOT = Path(__file__).resolve().parents[2]
COMPARED = ("psycopg", "psycopg_pool", "sqlalchemy")
CONTENDERS = 8
MISSING = [package for package in COMPARED if find_spec(package) is None]

needs_compared = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing: `make bench` installs it")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")
def test_make_bench_runs_the_engine_benchmark() -> None:
    """`make bench BENCH=…` hands its options on."""
    done = subprocess.run(
        ["make", "--dry-run", "bench", "BENCH=--quick"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python -m benchmarks.engine --quick" in done.stdout  # make itself may say where it was


@pytest.mark.slow
def test_jobs(spawn: Spawner, tmp_path: Path) -> None:
    """The benchmark of the worker measures both contenders in both cases."""
    results = tmp_path / "jobs.json"
    done = spawn.run("benchmarks.jobs", "--quick", "--results", str(results), environ={}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    measured = json.loads(results.read_text())
    assert {(each["case"], each["contender"]) for each in measured} == set(product(CASES, (STOCK, OWN)))
    assert all(each["jobs_per_s"] > 0 for each in measured)
    assert "goal" not in done.stdout  # a short round meets none, and misses none


@needs_compared
@pytest.mark.slow
def test_one_case(spawn: Spawner, tmp_path: Path) -> None:
    """A part of the run writes its files where it is told to, and only there."""
    results, chart = tmp_path / "results.json", tmp_path / "chart.svg"
    words = ["--quick", "--only", DIRECT, "--only", Work.READ, "--only", "10"]
    done = spawn.run("benchmarks.engine", *words, "--results", str(results), "--chart", str(chart), environ={})
    assert done.returncode == 0, done.stderr
    measured = json.loads(results.read_text())
    cases = [(case["path"], case["work"], case["tasks"]) for case in measured["cases"]]
    assert cases == [(DIRECT, Work.READ, 10)] * CONTENDERS
    assert all(case["lowest"] > 0 for case in measured["cases"])
    assert len(measured["goals"]) == 4
    assert "this engine" in "".join(ElementTree.parse(chart).getroot().itertext())
    assert all(goal["other"] in done.stdout for goal in measured["goals"])


@needs_compared
@pytest.mark.slow
def test_every_case(spawn: Spawner, tmp_path: Path) -> None:
    """All work on both paths, by every contender that can do it."""
    results, chart = tmp_path / "results.json", tmp_path / "chart.svg"
    words = ["--quick", "--results", str(results), "--chart", str(chart)]
    done = spawn.run("benchmarks.engine", *words, environ={}, timeout_s=200)
    assert done.returncode == 0, done.stderr
    measured = json.loads(results.read_text())
    cases = {Case(case["path"], Work(case["work"]), case["tasks"]) for case in measured["cases"]}
    assert cases == {Case(path, work, tasks) for path in PATHS for work in Work for tasks in (1, 10, 100)}
    # On two paths with three numbers of tasks; two have an ORM's `get`, and one has no pool to acquire from.
    assert len(measured["cases"]) == 6 * (3 * CONTENDERS + 2 + CONTENDERS - 1)
    assert len(measured["goals"]) == 16
    ElementTree.parse(chart)


@pytest.mark.slow
def test_memory(spawn: Spawner, tmp_path: Path) -> None:
    """Memory is measured for both kinds, and growth over checkouts."""
    results = tmp_path / "memory.json"
    words = ["--processes", "1", "--checkouts", "10000", "--results", str(results)]
    done = spawn.run("benchmarks.memory", *words, environ={}, timeout_s=120)
    assert done.returncode == 0, done.stderr
    measured = json.loads(results.read_text())
    assert all(number > 1000 for kinds in measured["bytes_per_idle_connection"].values() for number in kinds.values())


@pytest.mark.slow
def test_pooler(spawn: Spawner, tmp_path: Path) -> None:
    """Transactions are counted by PgBouncer, and stock Tortoise has two for each query."""
    find_pgbouncer()
    results = tmp_path / "pooler.json"
    words = ["--queries", "50", "--results", str(results)]
    done = spawn.run("benchmarks.pooler", *words, environ={}, timeout_s=120)
    assert done.returncode == 0, done.stderr
    counted = json.loads(results.read_text())["transactions_per_query"]
    assert counted == {"this engine": 1.0, "stock Tortoise": 2.0}
