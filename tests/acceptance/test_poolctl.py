from __future__ import annotations

import json
import re

import pytest

from config import Settings
from config.variables import VARIABLES
from db.server import connect
from local import LocalServers
from poolctl import __version__
from tests.processes import Spawned, Spawner
from tests.secrecy import Secrecy

SECRETS = {
    "DB_PASSWORD": "kT7-database-secret",
    "REDIS_PASSWORD": "kT7-redis-secret",
    "BOT_TOKEN": "123:kT7-token",
}
UNREACHABLE = {"DB_PORT": "1", "DB_CONNECT_TIMEOUT": "0.5"}
NO_REDIS = {"REDIS_PORT": "1", "REDIS_CONNECT_TIMEOUT": "0.5"}


@pytest.fixture
def empty_database(servers: LocalServers, environ: dict[str, str]) -> dict[str, str]:
    """An environment whose database has no table of ours: a PostgreSQL schema that nobody has created."""
    return environ | {"DB_SCHEMA": "not_yet_there"}


def test_version_and_usage(spawn: Spawner) -> None:
    """--version is exit 0; no command, an unknown command and an unknown option are exit 2 without a traceback."""
    done = spawn.run("poolctl", "--version", environ={})
    assert (done.returncode, done.stdout) == (0, f"poolctl {__version__}\n")
    done = spawn.run("poolctl", "--help", environ={})
    assert done.returncode == 0
    for command in ("config", "check", "migrate", "up"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)
    for arguments in [(), ("nonsense",), ("config", "--nonsense"), ("check", "--role", "poolctl")]:
        done = spawn.run("poolctl", *arguments, environ={})
        assert done.returncode == 2, arguments
        assert "Usage:" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("format", ["table", "json", "env"])
def test_config_shows_every_setting_and_no_secret(spawn: Spawner, secrecy: Secrecy, format: str) -> None:  # noqa: A002
    """Each format names every setting, and none shows a secret, wherever it was set."""
    secrecy.secrets |= set(SECRETS.values())
    api_url = {"BOT_API_URL": f"http://user:{SECRETS['BOT_TOKEN'].split(':')[1]}@bots.example"}
    done = spawn.run("poolctl", "config", "--format", format, environ=SECRETS | api_url)
    assert done.returncode == 0, done.stderr
    for variable in VARIABLES:
        assert variable.name in done.stdout
    assert "kT7" not in done.stdout + done.stderr


@pytest.mark.parametrize("format", ["table", "json", "env"])
def test_config_of_urls_shows_no_secret(spawn: Spawner, secrecy: Secrecy, format: str) -> None:  # noqa: A002
    """Passwords inside DATABASE_URL and REDIS_URL are not shown either, the rest of the URLs is."""
    secrecy.secrets |= {"kT7-database-secret", "kT7-redis-secret"}
    urls = {
        "DATABASE_URL": "postgres://ada:kT7-database-secret@db.example/fleet",
        "REDIS_URL": "rediss://:kT7-redis-secret@cache.example/3",
    }
    done = spawn.run("poolctl", "config", "--format", format, environ=urls)
    assert done.returncode == 0, done.stderr
    assert "kT7" not in done.stdout + done.stderr
    assert "db.example" in done.stdout
    assert "cache.example" in done.stdout


def test_config_says_where_values_come_from(spawn: Spawner) -> None:
    """The table, plain and uncut in a pipe, shows a role's value and the variable that won."""
    long_name = "x" * 300
    environ = {"DB_POOL_MAX": "7", "WORKER_DB_POOL_MAX": "5", "DB_NAME": long_name, "DB_COLOUR": "1"}
    done = spawn.run("poolctl", "config", environ=environ | {"FORCE_COLOR": "1", "COLUMNS": "40"})
    assert re.search(r"^DB_POOL_MAX +5 +environment \(WORKER_DB_POOL_MAX\) *$", done.stdout, re.MULTILINE)
    assert re.search(rf"^DB_NAME +{long_name} +environment *$", done.stdout, re.MULTILINE)
    assert re.search(r"^DB_POOL_TIMEOUT +30 +default *$", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
    assert done.stderr.startswith("warning: DB_COLOUR ")

    done = spawn.run("poolctl", "config", "--role", "bot", "--format", "json", environ=environ)
    shown = json.loads(done.stdout)
    assert shown["role"] == "bot"
    assert shown["settings"]["DB_POOL_MAX"] == {"value": 7, "origin": "environment"}


@pytest.mark.parametrize("command", ["config", "check", "migrate"])
def test_bad_settings(spawn: Spawner, command: str) -> None:
    """Every fault of the settings is a line on standard error, exit 2, no traceback."""
    done = spawn.run("poolctl", command, environ={"DB_PORT": "none", "DB_POOL_MIN": "-1", "REDIS_DB": "x"})
    assert done.returncode == 2
    assert {line.split("=")[0] for line in done.stderr.splitlines()} == {"DB_POOL_MIN", "DB_PORT", "REDIS_DB"}
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["check", "migrate"])
def test_unreachable_database(spawn: Spawner, environ: dict[str, str], command: str) -> None:
    """A database that does not answer is one line that names it, exit 3."""
    done = spawn.run("poolctl", command, environ=environ | UNREACHABLE)
    assert done.returncode == 3
    assert "127.0.0.1:1/" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["check", "migrate"])
def test_wrong_password(spawn: Spawner, environ: dict[str, str], command: str) -> None:
    """A wrong password is a bad setting: one line, exit 2, and the password is not in it."""
    done = spawn.run("poolctl", command, environ=environ | {"DB_PASSWORD": "kT7-wrong"})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "DB_PASSWORD" in line
    assert "kT7" not in line


def test_check_of_a_healthy_fleet(spawn: Spawner, environ: dict[str, str]) -> None:
    """With a database up to date and a worker that fits, check reports all and is exit 0."""
    worker = spawn("worker", environ=environ | {"DB_POOL_MAX": "4"})
    worker.wait_for(" is up")
    done = spawn.run("poolctl", "check", environ=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^database: postgres@127\.0\.0\.1:\d+/test_\d+, PostgreSQL \d+", done.stdout, re.MULTILINE)
    assert "max_connections: 100, of these 3 for superusers" in done.stdout
    assert "97 available" in done.stdout
    assert re.search(rf"^worker@\S+:{worker.pid} +[2-4] *$", done.stdout, re.MULTILINE)
    assert re.search(r"^poolctl@\S+ +1 *$", done.stdout, re.MULTILINE)
    assert "pool of each worker: DB_POOL_MIN=2, DB_POOL_MAX=10, " in done.stdout
    assert "pools of all live processes (1): up to 4 connections" in done.stdout
    assert "schema: up to date" in done.stdout
    assert done.stdout.endswith("no findings\n")


def test_check_finds_a_fleet_that_does_not_fit(spawn: Spawner, environ: dict[str, str]) -> None:
    """Processes whose pools together exceed what the server has are a finding, exit 1."""
    workers: list[Spawned] = [spawn("worker", environ=environ | {"DB_POOL_MAX": "49"}) for _ in range(2)]
    for worker in workers:
        worker.wait_for(" is up")
    done = spawn.run("poolctl", "check", environ=environ)
    assert done.returncode == 1, done.stdout + done.stderr
    (finding,) = re.findall(r"^finding: (.*)$", done.stdout, re.MULTILINE)
    assert finding.startswith("the fleet is too large for the server: 2 processes × 49 = 98, available 97 of")
    assert "set WORKER_DB_POOL_MAX=33, or set POSTGRES_MAX_CONNECTIONS=138, or run fewer workers" in finding


def test_check_finds_a_schema_behind(spawn: Spawner, empty_database: dict[str, str]) -> None:
    """A schema that is behind is a finding, exit 3, and the rest is reported all the same."""
    done = spawn.run("poolctl", "check", environ=empty_database)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "schema: behind" in done.stdout
    assert re.search(r"^finding: .*run `poolctl migrate`", done.stdout, re.MULTILINE)
    assert "97 available" in done.stdout


def test_check_without_redis(spawn: Spawner, environ: dict[str, str]) -> None:
    """Redis that does not answer is a finding, exit 3, and the database is reported all the same."""
    done = spawn.run("poolctl", "check", environ=environ | NO_REDIS)
    assert done.returncode == 3, done.stdout + done.stderr
    assert re.search(r"^finding: Redis at default@127\.0\.0\.1:1/0 is unreachable", done.stdout, re.MULTILINE)
    assert "pools of all live processes: not known without Redis" in done.stdout
    assert "97 available" in done.stdout


def test_check_with_a_wrong_redis_password(spawn: Spawner, environ: dict[str, str]) -> None:
    """A password that Redis refuses is a bad setting, exit 2, and is not shown."""
    done = spawn.run("poolctl", "check", environ=environ | {"REDIS_PASSWORD": "kT7-wrong"})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "REDIS_PASSWORD" in done.stdout
    assert "kT7" not in done.stdout + done.stderr


def test_check_by_another_host(spawn: Spawner, environ: dict[str, str]) -> None:
    """Where DB_HOST is not the server itself, both are connected to, and each that does not answer is exit 3."""
    direct = {"DB_DIRECT_HOST": "localhost", "DB_DIRECT_PORT": environ["DB_PORT"]}
    done = spawn.run("poolctl", "check", environ=environ | direct)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^database: postgres@localhost:", done.stdout, re.MULTILINE)
    assert re.search(r"^pooler: postgres@127\.0\.0\.1:", done.stdout, re.MULTILINE)

    done = spawn.run("poolctl", "check", environ=environ | direct | UNREACHABLE)
    assert done.returncode == 3
    assert "127.0.0.1:1/" in done.stderr

    done = spawn.run("poolctl", "check", environ=environ | direct | {"DB_DIRECT_PORT": "1"})
    assert done.returncode == 3
    assert "localhost:1/" in done.stderr


def test_migrate(spawn: Spawner, empty_database: dict[str, str]) -> None:
    """migrate names what it applied, exit 0; the second time there is nothing to apply; check is content then."""
    done = spawn.run("poolctl", "migrate", environ=empty_database)
    assert done.returncode == 0, done.stderr
    assert re.search(r": applied fleet\.0001_\w+$", done.stdout, re.MULTILINE)

    done = spawn.run("poolctl", "migrate", environ=empty_database)
    assert done.returncode == 0, done.stderr
    assert "nothing to apply, the schema is up to date" in done.stdout

    assert spawn.run("poolctl", "check", environ=empty_database).returncode == 0


async def test_migration_whose_record_was_lost(spawn: Spawner, environ: dict[str, str]) -> None:
    """A migration that ran and whose record a crash has lost is exit 3 with the remedy, and --fake mends it."""
    async with connect(Settings.load("poolctl", environ)) as connection:
        await connection.execute("DELETE FROM tortoise_migrations")
    done = spawn.run("poolctl", "migrate", environ=environ)
    assert done.returncode == 3
    assert "run `poolctl migrate --fake`" in done.stderr.splitlines()[-1]

    done = spawn.run("poolctl", "migrate", "--fake", environ=environ)
    assert done.returncode == 0, done.stderr
    assert spawn.run("poolctl", "check", environ=environ).returncode == 0


def test_process_finds_the_schema_behind(spawn: Spawner, empty_database: dict[str, str]) -> None:
    """A bot that finds the schema behind says what to run, exit 3."""
    done = spawn.run("bot", environ=empty_database)
    assert done.returncode == 3
    assert "poolctl migrate" in done.stderr
    assert "Traceback" not in done.stderr
