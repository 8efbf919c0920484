"""The plans in docs/swarm.md and docs/kubernetes.md are what `poolctl plan` says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.processes import Spawner

ROOT = Path(__file__).resolve().parents[2]
PLANS = [
    pytest.param(command, output, id=f"{name}: {command}")
    for name in ("swarm", "kubernetes")
    for command, output in re.findall(
        r"^```console\n\$ (poolctl plan [^\n]*)\n(.*?)\n```",
        (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
]


def test_there_are_plans() -> None:
    """Both pages show one."""
    assert len(PLANS) == 2


@pytest.mark.parametrize(("command", "output"), PLANS)
def test_plan(command: str, output: str, spawn: Spawner) -> None:
    """It prints what stands there."""
    done = spawn.run(*shlex.split(command), environ={})
    assert done.stdout.rstrip("\n") == output, done.stderr
