"""deploy/image/entrypoint.sh: what it fills in, and that what is given wins. The script runs really."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from config import Settings
from config.stack import PgBouncerSettings
from tests.processes import ROOT
from tests.secrecy import Secrecy
from tests.shells import Shell, open_shell

ENTRYPOINT = ROOT / "deploy" / "image" / "entrypoint.sh"
STACK = {"STACK_POSTGRES_HOST": "pg", "STACK_PGBOUNCER_HOST": "pooler", "STACK_REDIS_HOST": "queue"}
PASSWORD = 'pw of "the app" 5b1d $HOME \\'
PRINT = "import os, sys; sys.stdout.write('\\0'.join(f'{name}={value}' for name, value in os.environ.items()))"
NOT_OURS = {"PATH", "PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"}
DIRECT = {"DB_HOST": "pg", "DB_USER": "app", "DB_NAME": "app", "REDIS_HOST": "queue"}
POOLED = DIRECT | {"DB_HOST": "pooler", "DB_PORT": "6432", "DB_DIRECT_HOST": "pg"}
PROFILE = {"COMPOSE_PROFILES": "pgbouncer"}

Added = Callable[..., dict[str, str]]


def without(variables: dict[str, str], *names: str) -> dict[str, str]:
    """The other variables."""
    return {name: value for name, value in variables.items() if name not in names}


ELSEWHERE = without(DIRECT, "DB_HOST")


@pytest.fixture(params=["dash", "bash"])  # the image is Debian's
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    return open_shell(request.param, tmp_path)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """An empty folder for secrets."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    return folder


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Stands in for the engine's name service, which is not there outside a container: first, there is none."""
    folder = tmp_path / "network"
    folder.mkdir()
    answer(folder, "hostname", "exit 1")
    answer(folder, "getent", "exit 2")
    return folder


def answer(network: Path, program: str, line: str) -> None:
    """Have `program` do no more than `line`."""
    path = network / program
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.fixture
def added(shell: Shell, secrets: Path, network: Path, tmp_path: Path) -> Added:
    """The variables that a process finds with these given, and was not given."""

    def run(environ: dict[str, str], *, stack: dict[str, str] = STACK) -> dict[str, str]:
        given = {"STACK_SECRETS": str(secrets), **stack, **environ}
        done = shell.run(ENTRYPOINT, sys.executable, "-c", PRINT, environ=given, cwd=tmp_path, first_on_path=network)
        assert (done.returncode, done.stderr) == (0, "")
        after = dict(each.split("=", 1) for each in done.stdout.split("\0"))
        assert {name: after.get(name) for name in given if given[name]} == {k: v for k, v in given.items() if v}
        return {name: value for name, value in after.items() if given.get(name) != value and name not in NOT_OURS}

    return run


def test_outside_a_stack(added: Added, secrets: Path) -> None:
    """Without STACK_POSTGRES_HOST nothing is changed, whatever secrets there are."""
    (secrets / "db_password").write_text(PASSWORD)
    assert added({"COMPOSE_PROFILES": "pgbouncer"}, stack={"STACK_REDIS_HOST": "queue"}) == {}


def test_direct(added: Added) -> None:
    """With nothing given: the stack's PostgreSQL and Redis, role and database `app`, and no file that is not there."""
    assert added({}) == DIRECT


def test_names_have_defaults(added: Added) -> None:
    """STACK_POSTGRES_HOST alone makes a stack."""
    stack = {"STACK_POSTGRES_HOST": "pg"}
    assert added({}, stack=stack) == DIRECT | {"REDIS_HOST": "redis"}
    assert added({"COMPOSE_PROFILES": "pgbouncer"}, stack=stack)["DB_HOST"] == "pgbouncer"


@pytest.mark.parametrize("profiles", ["pgbouncer", "pgbouncer,monitoring", "tools, pgbouncer", "*", "tools,*"])
def test_pooled(added: Added, profiles: str) -> None:
    """With the profile on, the processes go through the pooler, and migrations past it."""
    assert added({"COMPOSE_PROFILES": profiles}) == POOLED


@pytest.mark.parametrize("profiles", ["", "tools", "pgbouncers", "my-pgbouncer", "pg*", "PGBOUNCER"])
def test_other_profiles(added: Added, profiles: str) -> None:
    """Nothing but the profile's own name, or all of them, counts."""
    assert added({"COMPOSE_PROFILES": profiles}) == DIRECT


def test_pooler_is_that_of_the_settings() -> None:
    """The pooler's port and its profile are those of config/stack.py."""
    assert f"${{PGBOUNCER_PORT:-{PgBouncerSettings().port}}}" in ENTRYPOINT.read_text()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"DB_HOST": "db.internal"}, ELSEWHERE),
        ({"DB_HOST": "db.internal"} | PROFILE, ELSEWHERE),
        ({"DB_HOST": "pooler"}, without(POOLED, "DB_HOST")),
        ({"DB_HOST": "pooler", "DB_PORT": "7000"}, without(POOLED, "DB_HOST", "DB_PORT")),
        (PROFILE | {"DB_PORT": "7000"}, without(POOLED, "DB_PORT")),
        (PROFILE | {"PGBOUNCER_PORT": "7000"}, POOLED | {"DB_PORT": "7000"}),
        (PROFILE | {"DB_DIRECT_HOST": "other"}, without(POOLED, "DB_DIRECT_HOST")),
        ({"DB_USER": "shop"}, without(DIRECT, "DB_USER")),
        ({"DB_NAME": "shop"}, without(DIRECT, "DB_NAME")),
        ({"REDIS_HOST": "redis.internal"}, without(DIRECT, "REDIS_HOST")),
        ({"DB_HOST": "", "DB_USER": "", "REDIS_HOST": ""}, DIRECT),
    ],
)
def test_given_wins(added: Added, given: dict[str, str], expected: dict[str, str]) -> None:
    """What is given stays, and an empty variable is not given."""
    assert added(given) == expected


SECRETS = {
    "db_password": "DB_PASSWORD",
    "redis_password": "REDIS_PASSWORD",
    "bot_token": "BOT_TOKEN",
    "pgbouncer_password": "PGBOUNCER_PASSWORD",
    "database_url": "DATABASE_URL",
    "redis_url": "REDIS_URL",
}


@pytest.mark.parametrize(("file", "variable"), SECRETS.items())
def test_secret(added: Added, secrets: Path, file: str, variable: str) -> None:
    """A secret that is mounted is found by its name; one that is given, or another file of it, wins."""
    (secrets / file).write_text(PASSWORD)
    assert added({})[f"{variable}_FILE"] == str(secrets / file)
    assert f"{variable}_FILE" not in added({variable: "given"})
    assert f"{variable}_FILE" not in added({f"{variable}_FILE": "/elsewhere"})


@pytest.mark.parametrize("given", ["plainly", "as a secret"])
def test_database_url_stands_alone(added: Added, secrets: Path, network: Path, given: str) -> None:
    """With DATABASE_URL no part of the database's address is filled in beside it; Redis is."""
    (secrets / "db_password").write_text(PASSWORD)
    answer(network, "hostname", "echo 10.0.0.7")
    answer(network, "getent", "echo 10.0.0.7 shop-worker-3.shop_default")
    environ = {"COMPOSE_PROFILES": "pgbouncer"}
    if given == "plainly":
        assert added(environ | {"DATABASE_URL": "postgres://u@h/d"}) == {"REDIS_HOST": "queue"}
    else:
        (secrets / "database_url").write_text("postgres://u@h/d")
        assert added(environ) == {"REDIS_HOST": "queue", "DATABASE_URL_FILE": str(secrets / "database_url")}


def test_redis_url_stands_alone(added: Added, secrets: Path) -> None:
    """With REDIS_URL neither host nor password of Redis is filled in beside it."""
    (secrets / "redis_password").write_text(PASSWORD)
    assert added({"REDIS_URL": "redis://queue"}) == without(DIRECT, "REDIS_HOST")


@pytest.mark.parametrize(
    ("container", "name"),
    [
        ("shop-worker-3.shop_default", "worker-3"),
        ("my-shop-2-worker-12.my-shop-2_default", "worker-12"),
        ("shop-bot-1.shop_default", "bot-1"),
        ("shop-poolctl-run-5b1d00ff.shop_default", None),
        ("shop_worker.3.x7k2.shop_default", None),
        ("localhost", None),
    ],
)
def test_replica(added: Added, network: Path, container: str, name: str | None) -> None:
    """A replica of compose's is called as compose calls it; what has no number keeps the settings' own default."""
    answer(network, "hostname", "echo 10.0.0.7 fd00::7")
    answer(network, "getent", f'[ "$*" = "-s hosts:dns hosts 10.0.0.7" ] && echo "10.0.0.7      {container}"')
    assert added({}).get("DB_APPLICATION_NAME") == name
    assert "DB_APPLICATION_NAME" not in added({"DB_APPLICATION_NAME": "mine"})


def test_settings_take_it(added: Added, secrets: Path, secrecy: Secrecy) -> None:
    """A worker's settings are made of what the entrypoint adds, without a warning, the secrets included."""
    secrecy.secrets.add(PASSWORD)
    for file in ("db_password", "redis_password", "bot_token", "pgbouncer_password"):
        (secrets / file).write_text(f"{PASSWORD}\n")
    environ = {**STACK, "COMPOSE_PROFILES": "pgbouncer"}
    settings = Settings.load("worker", environ | added(environ))
    assert settings.warnings == ()
    assert (settings.db.addresses, settings.db.direct_addresses) == ("pooler:6432", "pg:5432")
    assert (settings.db.user, settings.db.name, settings.redis.host) == ("app", "app", "queue")
    for secret in (settings.db.password, settings.redis.password, settings.bot.token, settings.pgbouncer.password):
        assert secret is not None
        assert secret.get_secret_value() == PASSWORD


@pytest.mark.parametrize("stack", [STACK, {}], ids=["in a stack", "elsewhere"])
def test_becomes_the_command(shell: Shell, tmp_path: Path, stack: dict[str, str]) -> None:
    """The command takes the script's place, so it gets the signals; its exit code is the container's."""
    command = "import os, sys; print(sys.argv[1:], os.getppid()); sys.exit(3)"
    done = shell.run(ENTRYPOINT, sys.executable, "-c", command, "a b", "", "*", environ=stack, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == f"['a b', '', '*'] {os.getpid()}\n"
