"""`poolctl plan` as it is typed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from dotenv import dotenv_values

from config import Settings
from config.presets import IDLE_LIMITS_S, PRESETS
from tests.conftest import Environ
from tests.processes import Spawner

KEYS = {
    *("workers", "pool_max", "overhead", "total_idle", "total_peak", "total_deploy", "max_connections"),
    *("reserved", "usable", "verdict", "verdict_deploy", "max_workers", "max_pool", "ways_out"),
}


def test_json(spawn: Spawner) -> None:
    """The JSON has its keys, and the numbers of the sum."""
    done = spawn.run("poolctl", "plan", "--workers", "5", "--pool-max", "10", "--format", "json", environ={})
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert set(plan) >= KEYS
    assert (plan["total_idle"], plan["total_peak"], plan["total_deploy"]) == (10, 60, 110)
    assert (plan["reserved"], plan["usable"], plan["verdict"], plan["verdict_deploy"]) == (3, 77, "fits", "over")
    assert (plan["max_workers"], plan["max_pool"], plan["ways_out"]) == (6, 13, [])


def test_over(spawn: Spawner) -> None:
    """A fleet that is over ends with 1, and each way out has settings and a command."""
    done = spawn.run("poolctl", "plan", "--workers", "10", "--pool-max", "10", environ={})
    assert done.returncode == 1
    for line in ("peak                         110  over", "  DB_POOL_MAX=6", "  POSTGRES_MAX_CONNECTIONS=141"):
        assert line in done.stdout
    assert "  COMPOSE_PROFILES=pgbouncer" in done.stdout
    assert done.stdout.count("  docker compose up -d") == 3
    assert "Redis: 11 processes × 50 = 550 connections at most, maxclients=10000" in done.stdout


def test_settings_are_the_defaults(spawn: Spawner) -> None:
    """Without options the pool is that of the settings, and the number of workers is WORKERS."""
    environ = {"WORKERS": "4", "DB_POOL_MAX": "9", "WORKER_DB_POOL_MAX": "7", "WORKER_DB_POOL_MIN": "3"}
    plan = json.loads(spawn.run("poolctl", "plan", "--format", "json", environ=environ).stdout)
    assert (plan["workers"], plan["pool_max"], plan["bot_pool_max"], plan["total_idle"]) == (4, 7, 9, 12)


def test_ways_out_applied_fit(spawn: Spawner) -> None:
    """The settings of each way out, given to the command again, make a plan that fits."""
    arguments = ["plan", "--workers", "12", "--format", "json"]
    over = json.loads(spawn.run("poolctl", *arguments, environ={}).stdout)
    assert len(over["ways_out"]) == 3
    for way in over["ways_out"]:
        env = way["env"]
        options = [*arguments]
        if "POSTGRES_MAX_CONNECTIONS" in env:
            options += ["--max-connections", env["POSTGRES_MAX_CONNECTIONS"]]
        if env.get("COMPOSE_PROFILES") == "pgbouncer":
            options += ["--pgbouncer", "--default-pool-size", env["PGBOUNCER_DEFAULT_POOL_SIZE"]]
            options += ["--reserve-pool-size", env["PGBOUNCER_RESERVE_POOL_SIZE"]]
        applied = spawn.run("poolctl", *options, environ={k: v for k, v in env.items() if k.startswith("DB_")})
        assert json.loads(applied.stdout)["verdict"] == "fits", way["name"]


def test_live(environ: Environ, spawn: Spawner) -> None:
    """`--live` counts the workers that live, their pools, and the server's own numbers."""
    workers = [spawn("worker", environ=environ | {"DB_POOL_MAX": "6"}) for _ in range(2)]
    for worker in workers:
        worker.wait_for(" is up")
    done = spawn.run("poolctl", "plan", "--live", "--format", "json", environ=environ)
    plan = json.loads(done.stdout)
    assert (plan["workers"], plan["pool_max"], plan["max_connections"], plan["reserved"]) == (2, 6, 100, 3)
    assert plan["total_now"] >= 4
    assert plan["redis"]["maxclients"] >= 100


def test_live_without_a_server(spawn: Spawner) -> None:
    """`--live` without a server is one line and exit 3."""
    environ = {"DB_HOST": "127.0.0.1", "DB_PORT": "1", "DB_CONNECT_TIMEOUT": "1"}
    done = spawn.run("poolctl", "plan", "--live", "--workers", "1", environ=environ)
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "127.0.0.1:1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "how many workers? WORKERS is not set: give --workers N"),
        (["--workers", "0"], "workers=0 is less than 1: give 1 or more"),
        (["--workers", "-1"], "workers=-1 is less than 1"),
        (["--workers", "3", "--bots", "-1"], "bots=-1 is less than 0"),
        (["--workers", "3", "--pool-min", "9", "--pool-max", "5"], "pool_min=9 is greater than pool_max=5"),
        (["--workers", "3", "--max-connections", "2"], "max_connections=2 is not greater than the 3 reserved ones"),
        (["--workers", "3", "--preset", "huge"], "--preset huge is unknown: give one of dev, small"),
        (["--workers", "3", "chart.svg"], "chart.svg is not expected: give a file together with --plot"),
        (["--workers", "3", "--pgbouncer", "--users", "0"], "--databases 1 × --users 0 is less than 1"),
        (["--workers", "3", "--plot", "chart.gif"], "chart.gif"),
    ],
)
def test_bad_input(spawn: Spawner, arguments: list[str], line: str) -> None:
    """What no plan can be made of is one clear line and exit 2."""
    done = spawn.run("poolctl", "plan", *arguments, environ={})
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr


def test_pool_above_the_server(spawn: Spawner) -> None:
    """A pool that alone is larger than the server is over, and no pool of that size fits."""
    done = spawn.run("poolctl", "plan", "--workers", "1", "--pool-max", "200", environ={})
    assert done.returncode == 1
    assert "not one worker with a pool of 200 fits" in done.stdout


@pytest.mark.parametrize("name", PRESETS)
def test_presets(spawn: Spawner, tmp_path: Path, name: str) -> None:
    """A preset's block is a `.env` that loads, and explains each line."""
    done = spawn.run("poolctl", "plan", "--preset", name, "--format", "env", environ={})
    assert done.returncode == 0
    (tmp_path / "env").write_text(done.stdout)
    values = {key: value or "" for key, value in dotenv_values(tmp_path / "env").items()}
    db = Settings.load("worker", values).db
    sizes = {"dev": (3, 8), "small": (2, 10), "medium": (2, 8), "large": (2, 5)}
    assert (db.pool_min, db.pool_max) == sizes.get(name, (2, 10))
    assert db.echo == (name == "dev")
    if name in IDLE_LIMITS_S:
        assert 0 < db.max_idle_time < IDLE_LIMITS_S[name]
        assert 0 < db.max_lifetime < IDLE_LIMITS_S[name]
    lines = done.stdout.splitlines()
    assert all(before.startswith("# ") for before, line in itertools.pairwise(lines) if "=" in line)


def test_preset_fills_the_pool(spawn: Spawner) -> None:
    """A preset gives the plan its pool."""
    done = spawn.run("poolctl", "plan", "--workers", "13", "--preset", "large", "--format", "json", environ={})
    plan = json.loads(done.stdout)
    assert (plan["pool_max"], plan["total_peak"], plan["verdict"]) == (5, 75, "fits")


def test_plot(spawn: Spawner, tmp_path: Path) -> None:
    """`--plot` draws in the terminal, and with a file into it."""
    drawn = spawn.run("poolctl", "plan", "--workers", "5", "--plot", environ={})
    assert drawn.returncode == 0
    assert "usable" in drawn.stdout
    for name in ("chart.svg", "chart.png"):
        done = spawn.run("poolctl", "plan", "--workers", "5", "--plot", name, environ={}, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"wrote {name}\n"), done.stderr
        assert (tmp_path / name).stat().st_size > 1000
