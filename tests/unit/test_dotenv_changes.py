"""Which lines of `.env` an order changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import SettingsError
from config.reference import REFUSED
from poolctl.dotenv_changes import HANDED_ON, Change, Order, applied, changes, contradicting, overriding

ROOT = Path(__file__).resolve().parents[2]
THROUGH, DIRECT = Order(pgbouncer=True), Order(pgbouncer=False)


def changed(order: Order, dotenv: dict[str, str], shell: dict[str, str] | None = None) -> dict[str, str | None]:
    return {change.name: change.value for change in changes(order, dotenv, shell or {})}


@pytest.mark.parametrize(
    ("order", "dotenv", "wanted"),
    [
        (Order(), {"WORKERS": "3", "DB_HOST": "db.example.com"}, {}),
        (Order(workers=10), {}, {"WORKERS": "10"}),
        (Order(pool_max=5), {}, {"DB_POOL_MAX": "5"}),
        (Order(pool_max=5), {"WORKER_DB_POOL_MAX": "8"}, {"WORKER_DB_POOL_MAX": "5"}),
        (Order(pool_max=5), {"WORKER_DB_POOL_MAX": ""}, {"DB_POOL_MAX": "5"}),
        (Order(pool_max=5), {"BOT_DB_POOL_MAX": "8"}, {"DB_POOL_MAX": "5"}),
        # A floor above the new ceiling goes down with it, in the variable that counts.
        (Order(pool_max=5), {"DB_POOL_MIN": "8"}, {"DB_POOL_MAX": "5", "DB_POOL_MIN": "5"}),
        (Order(pool_max=5), {"DB_POOL_MIN": "5"}, {"DB_POOL_MAX": "5"}),
        (
            Order(pool_max=5),
            {"DB_POOL_MIN": "3", "WORKER_DB_POOL_MIN": "9", "BOT_DB_POOL_MIN": "7"},
            {"DB_POOL_MAX": "5", "WORKER_DB_POOL_MIN": "5", "BOT_DB_POOL_MIN": "5"},
        ),
        (
            Order(pool_max=5),
            {"DB_POOL_MIN": "8", "WORKER_DB_POOL_MAX": "9", "DB_POOL_MAX": "9"},
            {"WORKER_DB_POOL_MAX": "5", "DB_POOL_MIN": "5"},
        ),
        (Order(pool_max=5), {"BOT_DB_POOL_MIN": "7", "BOT_DB_POOL_MAX": "8"}, {"DB_POOL_MAX": "5"}),
        (
            Order(pool_max=5),
            {"DB_POOL_MIN": "9", "WORKER_DB_POOL_MAX": "9", "BOT_DB_POOL_MAX": "7"},
            {"WORKER_DB_POOL_MAX": "5", "DB_POOL_MIN": "5"},
        ),
        # Through PgBouncer
        (THROUGH, {}, {"COMPOSE_PROFILES": "pgbouncer", "DB_POOL_MAX": "5"}),
        (THROUGH, {"DB_POOL_MAX": "3"}, {"COMPOSE_PROFILES": "pgbouncer"}),
        (THROUGH, {"DB_POOL_MAX": "9"}, {"COMPOSE_PROFILES": "pgbouncer", "DB_POOL_MAX": "5"}),
        (THROUGH, {"DB_POOL_MAX": "x"}, {"COMPOSE_PROFILES": "pgbouncer", "DB_POOL_MAX": "5"}),
        (THROUGH, {"WORKER_DB_POOL_MAX": "9"}, {"COMPOSE_PROFILES": "pgbouncer"}),
        (
            Order(pgbouncer=True, pool_max=7),
            {"DB_POOL_MAX": "9"},
            {"COMPOSE_PROFILES": "pgbouncer", "DB_POOL_MAX": "7"},
        ),
        # Again: a pool chosen since then stays
        (THROUGH, {"COMPOSE_PROFILES": "pgbouncer", "DB_POOL_MAX": "9"}, {}),
        (THROUGH, {"COMPOSE_PROFILES": "pgbouncer"}, {"DB_POOL_MAX": "5"}),
        (THROUGH, {"COMPOSE_PROFILES": "*", "DB_POOL_MAX": "9"}, {}),
        # Other profiles stay, in their order
        (
            THROUGH,
            {"COMPOSE_PROFILES": "monitoring, tools", "DB_POOL_MAX": "5"},
            {"COMPOSE_PROFILES": "monitoring, tools,pgbouncer"},
        ),
        (DIRECT, {"COMPOSE_PROFILES": "b, pgbouncer,a", "DB_POOL_MAX": "5"}, {"COMPOSE_PROFILES": "b,a"}),
        (DIRECT, {"COMPOSE_PROFILES": "pgbouncer", "DB_POOL_MAX": "5"}, {"COMPOSE_PROFILES": ""}),
        (DIRECT, {"COMPOSE_PROFILES": "pgbouncer2"}, {}),
        (DIRECT, {}, {}),
        # Addresses of the stack's own that lead elsewhere
        (THROUGH, {"DB_HOST": "postgres", "DB_POOL_MAX": "5"}, {"COMPOSE_PROFILES": "pgbouncer", "DB_HOST": None}),
        (
            THROUGH,
            {"DB_HOST": "postgres", "DB_PORT": "5432", "DB_POOL_MAX": "5"},
            {"COMPOSE_PROFILES": "pgbouncer", "DB_HOST": None, "DB_PORT": None},
        ),
        (THROUGH, {"DB_PORT": "5432", "DB_POOL_MAX": "5"}, {"COMPOSE_PROFILES": "pgbouncer", "DB_PORT": None}),
        (THROUGH, {"DB_HOST": "pgbouncer", "DB_POOL_MAX": "5"}, {"COMPOSE_PROFILES": "pgbouncer"}),
        (
            THROUGH,
            {"DB_HOST": "pgbouncer", "DB_PORT": "6432", "DB_POOL_MAX": "5"},
            {"COMPOSE_PROFILES": "pgbouncer"},
        ),
        (DIRECT, {"DB_HOST": "pgbouncer", "DB_PORT": "6432"}, {"DB_HOST": None, "DB_PORT": None}),
        (DIRECT, {"DB_HOST": "postgres", "DB_PORT": "5432"}, {}),
        (DIRECT, {"DB_PORT": "7000", "PGBOUNCER_PORT": "7000"}, {"DB_PORT": None}),
        (DIRECT, {"DB_HOST": "", "DB_PORT": ""}, {}),
        (DIRECT, {"WORKER_DB_HOST": "pgbouncer", "DB_PORT": "6432"}, {"WORKER_DB_HOST": None, "DB_PORT": None}),
        (
            DIRECT,
            {"WORKER_DB_HOST": "pgbouncer", "BOT_DB_HOST": "pgbouncer", "DB_HOST": "pgbouncer"},
            {"WORKER_DB_HOST": None, "BOT_DB_HOST": None, "DB_HOST": None},
        ),
        # The image fills in the port for DB_HOST only
        (
            THROUGH,
            {"WORKER_DB_HOST": "pgbouncer", "DB_POOL_MAX": "5"},
            {"COMPOSE_PROFILES": "pgbouncer", "WORKER_DB_HOST": None},
        ),
        (DIRECT, {"DB_POOLER": "transaction"}, {"DB_POOLER": None}),
        (DIRECT, {"DB_POOLER": "auto"}, {}),
        (
            THROUGH,
            {"DB_POOLER": "none", "DB_POOL_MAX": "5"},
            {"COMPOSE_PROFILES": "pgbouncer", "DB_POOLER": None},
        ),
        # Beside a URL the number of workers is all that can be ordered
        (Order(workers=3), {"DATABASE_URL": "postgres://u:p@h/d"}, {"WORKERS": "3"}),
    ],
)
def test_changes(order: Order, dotenv: dict[str, str], wanted: dict[str, str | None]) -> None:
    """Just the lines that the order is about."""
    assert changed(order, dotenv) == wanted


@pytest.mark.parametrize(
    ("order", "dotenv", "line"),
    [
        (THROUGH, {"DB_HOST": "db.example.com"}, "DB_HOST=db.example.com is a database outside of this stack: unset"),
        (DIRECT, {"BOT_DB_HOST": "a,b"}, "BOT_DB_HOST=a,b is a database outside of this stack"),
        (DIRECT, {"DB_PORT": "5433"}, "DB_PORT=5433 is no port of this stack"),
        (DIRECT, {"COMPOSE_PROFILES": "*"}, "COMPOSE_PROFILES=* is every profile, PgBouncer's too"),
        (THROUGH, {"COMPOSE_PROFILES": "${MORE}"}, "COMPOSE_PROFILES=${MORE} is not names of profiles"),
        (Order(pool_max=5), {"DATABASE_URL": "postgres://u:hunter2@h/d"}, "--pool-max 5 and DATABASE_URL exclude"),
        (Order(pool_max=5), {"DATABASE_URL_FILE": "/x"}, "--pool-max 5 and DATABASE_URL_FILE exclude each other"),
        (
            Order(pool_max=5),
            {"COMPOSE_FILE": "docker-compose.yml:over/docker-compose.database-url.yml"},
            "--pool-max 5 and docker-compose.database-url.yml in COMPOSE_FILE exclude each other",
        ),
        (THROUGH, {"DATABASE_URL": "postgres://u:hunter2@h/d"}, "--pgbouncer cannot move the processes, as DATABASE"),
        (DIRECT, {"DATABASE_URL": "postgres://u:hunter2@h/d"}, "--direct cannot move the processes, as DATABASE_URL"),
        (THROUGH, {"DB_HOST": "postgres://u:hunter2@h/d"}, "DB_HOST is a database outside of this stack"),
        (THROUGH, {"DB_HOST": "u:hunter2@h"}, "DB_HOST is a database outside of this stack"),
    ],
)
def test_refused(order: Order, dotenv: dict[str, str], line: str) -> None:
    """One line with what to do, and no password."""
    shells = [{}, dotenv] if "exclude" in line or "cannot move" in line else [{}]  # the shell's are told, not edited
    for shell in shells:
        with pytest.raises(SettingsError) as error:
            changes(order, {} if shell else dotenv, shell)
        assert str(error.value).startswith(line)
        assert len(str(error.value).splitlines()) == 1
        assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"pool_max": 0}, {"workers": -1}, {"pool_max": 10_001}])
def test_numbers_have_bounds(numbers: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="give a number from 1 to 10000"):
        Order(**numbers)


@pytest.mark.parametrize(
    ("dotenv", "shell", "names"),
    [
        ({}, {}, []),
        ({"WORKERS": "10"}, {"WORKERS": "3"}, ["WORKERS"]),
        ({"WORKERS": "10"}, {"WORKERS": ""}, ["WORKERS"]),
        ({"WORKERS": "10"}, {"WORKERS": " 10", "DB_POOL_MAX": ""}, []),
        ({"WORKERS": "10"}, {"WORKERS": "9", "DB_POOL_MAX": "3"}, ["DB_POOL_MAX", "WORKERS"]),
        ({"DB_POOL_MAX": "5"}, {"WORKER_DB_POOL_MAX": "3"}, ["WORKER_DB_POOL_MAX"]),
        ({"COMPOSE_PROFILES": "pgbouncer"}, {"COMPOSE_PROFILES": "tools"}, ["COMPOSE_PROFILES"]),
        ({}, {"DB_HOST": "db.example.com", "LOG_LEVEL": "DEBUG"}, ["DB_HOST", "LOG_LEVEL"]),
        ({}, {"DATABASE_URL": "postgres://u:hunter2@h/d"}, ["DATABASE_URL"]),
        ({}, {"POOLCTL_IMAGE": "poolctl:2"}, ["POOLCTL_IMAGE"]),
        # With these compose reads no `.env`
        ({"COMPOSE_ENV_FILES": "other"}, {"COMPOSE_ENV_FILES": "other"}, ["COMPOSE_ENV_FILES"]),
        # No container is given these, or they are not ours
        ({}, {"DB_PASSWORD": "x", "BOT_TOKEN": "y", "DB_PASSWORD_FILE": "z", "HOME": "/root", "COMPOSE_FILE": "a"}, []),
    ],
)
def test_the_shell_wins(dotenv: dict[str, str], shell: dict[str, str], names: list[str]) -> None:
    """Settings that the shell has otherwise, and nothing else of it."""
    assert overriding(dotenv, shell) == names


def test_all_that_compose_takes_is_known() -> None:
    """Each setting that a compose file of the stack takes from the shell or `.env`, and none that comes from a file."""
    taken: set[str] = set()
    for path in ROOT.glob("docker-compose*.yml"):
        text = path.read_text()
        taken |= set(re.findall(r"\$\{([A-Z_]+)", text)) | set(re.findall(r"^ +([A-Z_]+):$", text, re.MULTILINE))
    assert len(taken) > 50
    assert taken - set(REFUSED) <= HANDED_ON
    assert not HANDED_ON & {"DB_PASSWORD", "WORKER_DB_PASSWORD_FILE", "BOT_TOKEN", "REDIS_PASSWORD"}


PROFILES = st.lists(st.sampled_from(["a", "b", "pgbouncer", " pgbouncer", "c "]), max_size=4).map(",".join)
HOSTS = st.sampled_from([None, "", "postgres", "pgbouncer"])
PORTS = st.sampled_from([None, "", "5432", "6432"])
POOLS = st.sampled_from([None, "1", "4", "8", "20"])


@given(
    st.fixed_dictionaries(
        {
            "COMPOSE_PROFILES": PROFILES,
            **{
                f"{role}DB_{part}": values
                for role in ("", "WORKER_", "BOT_")
                for part, values in (("HOST", HOSTS), ("PORT", PORTS))
            },
            **{f"{role}DB_POOL_{end}": POOLS for role in ("", "WORKER_", "BOT_") for end in ("MIN", "MAX")},
        }
    ),
    st.builds(
        Order,
        workers=st.none() | st.integers(1, 20),
        pgbouncer=st.none() | st.booleans(),
        pool_max=st.none() | st.integers(1, 20),
    ),
)
def test_an_order_is_fulfilled(dotenv: dict[str, str | None], order: Order) -> None:
    """After it nothing contradicts it, a second time changes nothing, and it leaves the other profiles."""
    values = {name: value for name, value in dotenv.items() if value is not None}
    after = applied(values, changes(order, values, {}))
    again = changes(order, after, {})
    assert applied(after, again) == after
    others = [name.strip() for name in values["COMPOSE_PROFILES"].split(",") if name.strip() not in ("", "pgbouncer")]
    left = [name.strip() for name in after["COMPOSE_PROFILES"].split(",") if name.strip()]
    if order.pgbouncer is not None:
        assert contradicting(order.pgbouncer, after) == []
        assert ("pgbouncer" in left) is order.pgbouncer
    assert [name for name in left if name != "pgbouncer"] == others
    if order.workers is not None:
        assert after["WORKERS"] == str(order.workers)
    if order.pool_max is not None:
        assert after.get("WORKER_DB_POOL_MAX") or after["DB_POOL_MAX"] == str(order.pool_max)


def test_a_change_is_named() -> None:
    assert changes(Order(workers=3, pool_max=4), {}, {}) == [Change("WORKERS", "3"), Change("DB_POOL_MAX", "4")]
