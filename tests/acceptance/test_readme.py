"""The commands in README and docs do what is written there."""

from __future__ import annotations

import re
import shlex
import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from config import Settings, SettingsError
from fleet.plan import Supply, Verdict
from fleet.plan_check import too_large
from fleet.registry import JobCounts, ProcessEntry
from pool import PoolSnapshot
from poolctl.deployment import Deployment
from tests.conftest import Environ
from tests.processes import Spawner

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", README, re.MULTILINE)
# Run by tests/acceptance/test_clean_clone.py, and by whoever runs this.
MAKE = ["make demo", "make test"]
SERVES = ["python -m worker", "python -m bot"]
# Typed by tests/e2e/test_compose_document.py, on a real engine.
COMPOSE = [command for command in COMMANDS if re.search(r"docker compose|make secrets|poolctl deploy", command)]


def test_the_two_commands_come_first() -> None:
    """A newcomer finds `make demo` and `make test` before anything else."""
    assert COMMANDS[:2] == MAKE


def run_by_test() -> list[Any]:
    """All commands but those that have a test of their own; a whole fleet is slow."""
    commands = [command for command in COMMANDS if command not in (*MAKE, *SERVES, *COMPOSE)]
    return [pytest.param(c, marks=[pytest.mark.slow] if " up " in c else [], id=c) for c in commands]


@pytest.mark.parametrize("command", run_by_test())
def test_command(command: str, environ: Environ, spawn: Spawner, tmp_path: Path) -> None:
    """Every command in README runs as it stands there and exits 0."""
    words = shlex.split(command)
    settings = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    program, *arguments = words[len(settings) :]
    assert program == "poolctl"
    done = spawn.run("poolctl", *arguments, environ=environ | settings, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c in SERVES])
def test_process(command: str, environ: Environ, spawn: Spawner) -> None:
    """A process that README starts is up, and ends with SIGTERM."""
    process = spawn(command.split()[-1], environ=environ)
    process.wait_for(" is up")
    process.send(signal.SIGTERM)
    assert process.wait() == 0


def test_compose() -> None:
    """Every command for Docker Compose in README stands in docs/compose.md, too, where a test types it."""
    document = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")
    typed = re.findall(r"^\$ (.+)$", document, re.MULTILINE)
    assert len(COMPOSE) > 5
    assert set(COMPOSE) <= set(typed)


SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
PLANS = re.findall(r"^```console\n\$ (poolctl plan [^\n]*)\n(.*?)\n```", SCALING, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("command", "output"), PLANS, ids=[command for command, _ in PLANS])
def test_scaling(command: str, output: str, spawn: Spawner) -> None:
    """Every plan in docs/scaling.md prints what stands there."""
    done = spawn.run(*shlex.split(command), environ={})
    assert done.stdout.rstrip("\n") == output, done.stderr


def test_all_commands_of_scaling_are_run() -> None:
    """No command in docs/scaling.md is left out by the test above."""
    assert len(PLANS) == SCALING.count("\n$ ") >= 5


def test_findings_are_real() -> None:
    """Ten workers and a bot with pools of ten are told what README shows."""
    shown = re.search(r"^pools of all live processes \(11\): up to 110 .*\nfinding: (.*) …$", README, re.MULTILINE)
    assert shown is not None
    pool = PoolSnapshot("worker", 1, 10, 1, 1, 0, 0, 0, 0, 0, 0, 0.0)
    worker = ProcessEntry("worker", "host", 1, datetime.now(UTC), 1.0, 0.0, pool, JobCounts())
    said = too_large([worker] * 10 + [replace(worker, role="bot")], Supply())
    assert said is not None
    assert said.startswith(shown[1])


def test_the_three_ways_fit() -> None:
    """README's table of three ways has the plan's sums, each fits the server, and no more connections were measured."""
    rows = re.findall(r"^\| (`DB_POOL_MAX=.*) \| (.*) \| (\d+) \|.*\|$", README, re.MULTILINE)
    assert len(rows) == 3
    for lines, total, at_once in rows:
        plan = Deployment.of({"WORKERS": "10", **dict(re.findall(r"`([A-Z_]+)=(\w+)`", lines))}).plan
        assert plan.verdict is not Verdict.OVER
        assert int(at_once) <= plan.servers_peak
        if plan.pooler is None:
            assert total.endswith(f" = {plan.total_peak} of {plan.supply.available}")
        else:
            sizes = f"{plan.pooler.default_pool_size} + {plan.pooler.reserve_pool_size}"
            assert total == f"{plan.total_peak} clients on {sizes}"


def test_faults_are_real() -> None:
    """The faults that README shows are what the settings say."""
    shown = re.search(r"to do:\n\n```text\n(.*?)\n```", README, re.DOTALL)
    assert shown is not None
    lines = shown[1].splitlines()
    environ = {"DB_POOL_MIN": "12", "DB_PORT": "70000"}
    with pytest.raises(SettingsError) as caught:
        Settings.load("worker", environ)
    said = str(caught.value).splitlines()
    with pytest.raises(SettingsError) as caught:
        Settings.load("worker", {"DB_POOL_SIZE": "20", "DB_MAX_OVERFLOW": "40"})
    said += str(caught.value).splitlines()
    assert set(lines) <= set(said)
