"""`poolctl plan` as it is typed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import redis
from dotenv import dotenv_values

from config import Settings
from config.presets import IDLE_LIMITS_S, PRESETS
from db import connect, read_server
from tests.conftest import Environ
from tests.processes import Spawner
from tests.proxy import open_proxy
from tests.secrecy import Secrecy
from tests.waiting import until

pytestmark = pytest.mark.slow  # fifty starts of poolctl

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
    for line in ("peak                         110  over", "  WORKER_DB_POOL_MAX=6", "  POSTGRES_MAX_CONNECTIONS=141"):
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
        applied = spawn.run("poolctl", *options, environ=env)
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


def test_live_counts_nothing_of_its_own(environ: Environ, spawn: Spawner) -> None:
    """The connection that asks is not taken for a worker's, and is not among those that there are now."""
    done = spawn.run("poolctl", "plan", "--live", "--workers", "1", "--format", "json", environ=environ)
    assert json.loads(done.stdout)["total_now"] == 0


async def test_live_is_not_taken_for_a_worker(environ: Environ, spawn: Spawner) -> None:
    """It reads with a worker's settings, under a name of its own."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        connect(Settings.load("bot", environ)) as connection,
    ):
        proxy.delay_s = 0.3  # so that it can be seen
        names: set[str] = set()

        async def seen() -> bool:
            names.update((await read_server(connection)).by_application)
            return any(name.startswith(("poolctl@", "worker@")) for name in names)

        spawn("poolctl", "plan", "--live", "--workers", "1", environ=environ | {"DB_PORT": str(proxy.listens_on)})
        await until(seen)
    assert not [name for name in names if name.startswith("worker@")]


def test_live_pools_that_differ(environ: Environ, spawn: Spawner) -> None:
    """Pools of different sizes come to their real sum, as in the check at start, and a line says how."""
    pools = {"worker": ("3", "12"), "bot": ("60",)}
    started = [
        spawn(role, environ=environ | {"DB_POOL_MAX": size, "DB_POOL_MIN": "1"})
        for role, sizes in pools.items()
        for size in sizes
    ]
    for process in started:
        process.wait_for(" is up")
    assert "1 process × 3 + 1 process × 12 + 1 process × 60 = 75" in "".join(each.output() for each in started)
    done = spawn.run("poolctl", "plan", "--live", "--format", "json", environ=environ)
    plan = json.loads(done.stdout)
    assert (plan["workers"], plan["pool_max"], plan["overhead"], plan["total_peak"]) == (2, 8, 60, 76)
    assert "the pools of the live workers differ, 1 × 3 + 1 × 12 = 15: planned with their mean, 8" in done.stderr
    assert "the bot's pool of 60 is larger than the overhead of 10" in done.stderr


def test_live_pool_above_the_server(environ: Environ, spawn: Spawner) -> None:
    """A live pool that alone is larger than the server is one line and exit 2."""
    worker = spawn("worker", environ=environ | {"DB_POOL_MAX": "101"})
    worker.wait_for(" is up")
    done = spawn.run("poolctl", "plan", "--live", environ=environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pool_max=101 is greater than max_connections=100: lower pool_max or raise max_connections\n"


@pytest.mark.parametrize(
    ("forbidden", "code", "errors"), [("-info", 0, 0), ("-smembers", 3, 1)], ids=["INFO", "SMEMBERS"]
)
def test_live_with_a_redis_that_refuses(
    environ: Environ, spawn: Spawner, secrecy: Secrecy, forbidden: str, code: int, errors: int
) -> None:
    """Without INFO the limit of Redis is unknown and the rest is told; without the registry it is one line."""
    secrecy.secrets.add("shy-password-4c")
    with redis.Redis(
        host=environ["REDIS_HOST"], port=int(environ["REDIS_PORT"]), password=environ["REDIS_PASSWORD"]
    ) as client:
        client.acl_setuser(
            "shy", enabled=True, passwords=["+shy-password-4c"], keys=["*"], commands=["+@all", forbidden]
        )
        try:
            shy = environ | {"REDIS_USERNAME": "shy", "REDIS_PASSWORD": "shy-password-4c"}
            done = spawn.run("poolctl", "plan", "--live", "--workers", "2", environ=shy)
        finally:
            client.acl_deluser("shy")
    assert (done.returncode, len(done.stderr.splitlines())) == (code, errors)
    assert ("maxclients=unknown" in done.stdout) is (code == 0)
    assert ("does not tell who is alive" in done.stderr) is (code != 0)


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
        (["--workers", "3", "--pgbouncer", "--users", "0"], "--users 0 is not from 1 to 10000"),
        (["--workers", "3", "--pgbouncer", "--databases", "1" + 30 * "0"], "0 is not from 1 to 10000: give so many"),
        (["--workers", "3", "--plot", "chart.gif"], "chart.gif"),
        (["--workers", "1", "--pool-max", "200"], "pool_max=200 is greater than max_connections=100: lower pool_max"),
        (
            ["--workers", "1", "--bots", "1", "--bot-pool-max", "101"],
            "bot_pool_max=101 is greater than max_connections",
        ),
        (["--workers", "1", "--max-connections", "262144"], "max_connections=262144 is greater than 262143"),
        (["--workers", "1" + 400 * "0", "--plot"], "0 is greater than 10000: give 10000 or less"),
        (["--workers", "3", "--plot", "a.svg", "--format", "json"], "--plot and --format json exclude each other"),
        (["--preset", "large", "--format", "env", "--workers", "0"], "prints this preset alone: leave out --workers"),
        (["--preset", "large", "--format", "env", "--plot"], "--plot and --format env exclude each other"),
        (["--preset", "large", "--format", "env", "--live", "--surge", "1"], "leave out --live, --surge"),
    ],
)
def test_bad_input(spawn: Spawner, arguments: list[str], line: str) -> None:
    """What no plan can be made of is one clear line and exit 2."""
    done = spawn.run("poolctl", "plan", *arguments, environ={})
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr


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


def test_a_floor_that_nobody_asked_for_yields(spawn: Spawner) -> None:
    """With a smaller --pool-max the settings' floor goes down with it."""
    done = spawn.run("poolctl", "plan", "--workers", "3", "--pool-max", "1", "--format", "json", environ={})
    assert json.loads(done.stdout)["total_idle"] == 3


def test_bot_larger_than_the_overhead(spawn: Spawner) -> None:
    """The one bot is part of the overhead, so the overhead is at least its pool; one line says so."""
    environ = {"BOT_DB_POOL_MAX": "60"}
    done = spawn.run("poolctl", "plan", "--workers", "6", "--format", "json", environ=environ)
    assert (json.loads(done.stdout)["total_peak"], done.returncode) == (120, 1)
    assert done.stderr.startswith("the bot's pool of 60 is larger than the overhead of 10 that it is part of")
    assert len(done.stderr.splitlines()) == 1
    given = spawn.run("poolctl", "plan", "--workers", "6", "--overhead", "0", "--format", "json", environ=environ)
    assert (json.loads(given.stdout)["total_peak"], given.stderr) == (60, "")


def test_clients_of_a_pooler(spawn: Spawner) -> None:
    """Both sides have their totals and their verdicts, and too many clients have a way out of their own."""
    arguments = ("plan", "--workers", "200", "--pool-max", "5", "--pgbouncer")
    done = spawn.run("poolctl", *arguments, environ={})
    assert done.returncode == 1
    assert "peak, at the server           40  fits" in done.stdout
    assert "peak, clients               1010  over" in done.stdout
    assert "deployment, clients         2010  over" in done.stdout
    assert "  PGBOUNCER_MAX_CLIENT_CONN=2010" in done.stdout
    plan = json.loads(spawn.run("poolctl", *arguments, "--format", "json", environ={}).stdout)
    sides = plan["pooler"]
    assert (sides["clients_peak"], sides["clients_deploy"]) == (1010, 2010)
    assert (sides["verdict"], sides["verdict_deploy"], plan["verdict"]) == ("over", "over", "over")
    for each in (plan, *plan["ways_out"]):
        assert each["servers_peak"] == 40
    assert [way["total_peak"] for way in plan["ways_out"]] == [810, 1010]


@pytest.mark.parametrize(
    ("arguments", "verdict", "says"),
    [
        (("--workers", "6"), "fits", "maxclients=10000\n"),
        (("--workers", "300", "--pgbouncer"), "over", "over, lower REDIS_MAX_CONNECTIONS to 33\n"),
        (("--workers", "9999", "--bots", "1", "--pgbouncer"), "over", "over, raise maxclients to 500050\n"),
    ],
)
def test_redis_has_a_verdict(spawn: Spawner, arguments: tuple[str, ...], verdict: str, says: str) -> None:
    """Too many for Redis is told with a remedy that there is."""
    assert says in spawn.run("poolctl", "plan", *arguments, environ={}).stdout
    done = spawn.run("poolctl", "plan", *arguments, "--format", "json", environ={})
    assert json.loads(done.stdout)["redis"]["verdict"] == verdict


def test_env_is_complete(spawn: Spawner, tmp_path: Path) -> None:
    """The block names all that the plan counted with, and each way out has its command."""
    arguments = ("plan", "--workers", "20", "--bots", "2", "--pool-max", "5", "--pgbouncer", "--format", "env")
    done = spawn.run("poolctl", *arguments, environ={})
    assert done.stdout.startswith("# 40 connections at the peak, 77 usable: fits\n# 130 clients of PgBouncer")
    (tmp_path / "env").write_text(done.stdout)
    assert dotenv_values(tmp_path / "env") == {
        "WORKERS": "20",
        "WORKER_DB_POOL_MIN": "2",
        "WORKER_DB_POOL_MAX": "5",
        "BOT_DB_POOL_MIN": "2",
        "BOT_DB_POOL_MAX": "10",
        "POSTGRES_MAX_CONNECTIONS": "100",
        "COMPOSE_PROFILES": "pgbouncer",
        "PGBOUNCER_DEFAULT_POOL_SIZE": "25",
        "PGBOUNCER_RESERVE_POOL_SIZE": "5",
        "PGBOUNCER_MAX_CLIENT_CONN": "1000",
        "PGBOUNCER_MAX_DB_CONNECTIONS": "0",
    }
    assert "# docker compose up -d --scale worker=20 --scale bot=3\n" in done.stdout
    over = spawn.run("poolctl", "plan", "--workers", "10", "--format", "env", environ={})
    assert over.stdout.count("# docker compose up -d --scale worker=10\n") == 4  # itself, and three ways out
    assert "#WORKER_DB_POOL_MAX=6\n" in over.stdout


def test_settings_of_the_stack_are_the_defaults(spawn: Spawner) -> None:
    """POSTGRES_MAX_CONNECTIONS, PGBOUNCER_* and the profile count; options win over each."""
    environ = {
        "WORKERS": "12",
        "POSTGRES_MAX_CONNECTIONS": "60",
        "COMPOSE_PROFILES": "monitoring,pgbouncer",
        "PGBOUNCER_DEFAULT_POOL_SIZE": "18",
        "PGBOUNCER_RESERVE_POOL_SIZE": "2",
        "PGBOUNCER_MAX_CLIENT_CONN": "300",
        "PGBOUNCER_MAX_DB_CONNECTIONS": "19",
    }

    def made(*arguments: str) -> dict[str, Any]:
        done = spawn.run("poolctl", "plan", "--format", "json", *arguments, environ=environ)
        assert done.returncode in (0, 1), done.stderr
        plan: dict[str, Any] = json.loads(done.stdout)
        return plan

    plan = made()
    pooler = plan["pooler"]
    assert (plan["max_connections"], plan["servers_peak"], pooler["max_client_conn"]) == (60, 19 + 10, 300)
    assert (pooler["default_pool_size"], pooler["reserve_pool_size"], pooler["max_db_connections"]) == (18, 2, 19)
    assert made("--no-pgbouncer")["pooler"] is None
    given = made("--max-connections", "70", "--default-pool-size", "30", "--max-db-connections", "0")
    assert (given["max_connections"], given["servers_peak"]) == (70, 30 + 2 + 10)
    lines = spawn.run("poolctl", "plan", "--format", "env", environ=environ).stdout.splitlines()
    assert "COMPOSE_PROFILES=monitoring,pgbouncer" in lines
    beside = spawn.run("poolctl", "plan", "--format", "json", environ=environ | {"DB_HOST": "db.example"})
    assert json.loads(beside.stdout)["pooler"] is None
    assert beside.stderr.startswith("COMPOSE_PROFILES starts PgBouncer, but DB_HOST leads past it to db.example:5432")


def test_several_databases(spawn: Spawner) -> None:
    """max_db_connections is of each database: two of them have 2 × 40."""
    arguments = ["plan", "--workers", "12", "--pool-max", "10", "--pgbouncer", "--databases", "2", "--format", "json"]
    arguments += ["--default-pool-size", "40", "--max-db-connections", "40"]
    plan = json.loads(spawn.run("poolctl", *arguments, environ={}).stdout)
    assert (plan["pooler"]["servers"], plan["servers_peak"], plan["verdict"]) == (80, 90, "tight")


def test_legacy(spawn: Spawner) -> None:
    """Beside DATABASE_URL only what it allows is advised, and one line says what else there would be."""
    done = spawn.run("poolctl", "plan", "--workers", "20", environ={"DATABASE_URL": "postgres://h/d"})
    assert done.stdout.count("way out ") == 1
    assert "DB_POOL" not in done.stdout
    assert "DATABASE_URL fixes the pools" in done.stdout.splitlines()[-1]


def test_a_variable_of_the_role_wins_over_a_preset(spawn: Spawner) -> None:
    """A preset counts as its lines would: WORKER_DB_POOL_MAX wins over them, DB_POOL_MAX does not."""
    arguments = ("plan", "--workers", "13", "--preset", "large", "--format", "json")
    won = spawn.run("poolctl", *arguments, environ={"WORKER_DB_POOL_MAX": "10", "DB_POOL_MAX": "9"})
    plan = json.loads(won.stdout)
    assert (plan["pool_max"], plan["bot_pool_max"], plan["verdict"]) == (10, 5, "over")
    refused = spawn.run("poolctl", *arguments, environ={"WORKER_DB_POOL_MIN": "8"})
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("WORKER_DB_POOL_MIN=8 is greater than DB_POOL_MAX=5")


def test_a_preset_wins_over_what_lives(environ: Environ, spawn: Spawner) -> None:
    """The number of workers is that of the live ones, the pool is the preset's."""
    worker = spawn("worker", environ=environ | {"DB_POOL_MAX": "6"})
    worker.wait_for(" is up")
    done = spawn.run("poolctl", "plan", "--live", "--preset", "medium", "--format", "json", environ=environ)
    plan = json.loads(done.stdout)
    assert (plan["workers"], plan["pool_max"]) == (1, 8)


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
