"""What `.env` says reaches the containers, asked of docker compose itself. Needs no engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_reference import compose_keys

OVERRIDES = ("bot-token", "database-url", "dev")
ROOT = Path(__file__).resolve().parents[2]
PROCESSES = ("migrate", "worker", "bot", "poolctl")


def config(
    *options: str | Path, overrides: tuple[str, ...] = (), shown: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    """`docker compose config` of docker-compose.yml and these overrides."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    names = ["docker-compose.yml", *(f"docker-compose.{name}.yml" for name in overrides)]
    files = [argument for name in names for argument in ("-f", ROOT / name)]
    return subprocess.run(
        [docker, "compose", *files, *options, "config", *shown],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def services(env_file: Path, text: str) -> dict[str, dict[str, str | None]]:
    """Each process's environment by compose's reading of this `.env`; None for a key that is absent at run time."""
    env_file.write_text(text)
    done = config("--env-file", env_file, "--profile", "tools", shown=("--format", "json"))
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)["services"]
    return {name: read[name]["environment"] for name in PROCESSES}


def test_every_setting_reaches_each_process(tmp_path: Path) -> None:
    """Each setting that is set in `.env` is in each container, one for a single role too; WORKERS where it counts."""
    of_compose = {"COMPOSE_PROFILES": "tools", "WORKERS": "7", "POSTGRES_MAX_CONNECTIONS": "120"}
    of_compose |= {"WORKER_SHUTDOWN_GRACE": "31"}  # compose itself calculates with these
    given = {name: f"of-{name.lower()}" for name in compose_keys()} | of_compose
    read = services(tmp_path / "env", "".join(f"{name}={value}\n" for name, value in given.items()))
    for name, environment in read.items():
        hidden = {"WORKERS": ""} if name in ("worker", "bot") else {}
        assert {key: environment.get(key) for key in given} == given | hidden, name


def test_what_is_not_set_is_absent(tmp_path: Path) -> None:
    """Without a `.env` no container is told a setting but those that the stack itself decides."""
    decided = {"migrate": {"WORKERS", "PLAN_CHECK"}, "poolctl": {"WORKERS"}}
    for name, environment in services(tmp_path / "env", "").items():
        told = {key for key in compose_keys() if environment.get(key)}
        assert told == decided.get(name, set()) | {"PGBOUNCER_HOST"}, name


@pytest.mark.parametrize("profile", ["", "pgbouncer", "tools", "*"])
@pytest.mark.parametrize("overrides", [(), *((name,) for name in OVERRIDES), OVERRIDES], ids="+".join)
def test_compose_has_nothing_to_say(tmp_path: Path, profile: str, overrides: tuple[str, ...]) -> None:
    """`config -q` is clean for each profile and override: no fault, and no warning either."""
    env_file = tmp_path / "env"
    env_file.write_text(f"COMPOSE_PROFILES={profile}\n")
    done = config("--env-file", env_file, overrides=overrides, shown=("-q",))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_override_is_asked() -> None:
    """A file that is added is in the test above."""
    files = {path.name for path in ROOT.glob("docker-compose.*.yml")} - {"docker-compose.override.yml"}
    assert files == {f"docker-compose.{name}.yml" for name in (*OVERRIDES, "settings")}
