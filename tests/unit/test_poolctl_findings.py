from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from config import Settings
from db.errors import SchemaBehind
from db.server import ServerReport
from fleet.errors import FleetError, QueueUnreachable, WrongRedisPassword
from fleet.registry import JobCounts, ProcessEntry
from pool import PoolSnapshot
from poolctl.findings import Reading, find


def worker(limit: int) -> ProcessEntry:
    pool = PoolSnapshot("worker", 1, limit, 1, 1, 0, 0, 0, 0, 0, 0, 0.0)
    return ProcessEntry("worker", "host", 1, datetime.now(UTC), 1.0, 0.0, pool, JobCounts())


def findings(
    variables: dict[str, str] | None = None,
    *,
    total: int = 1,
    fleet: Sequence[ProcessEntry] | FleetError = (),
    schema: SchemaBehind | None = None,
    direct_is_pooler: bool = False,
    unused_pooler: bool = False,
) -> list[tuple[str, int]]:
    """(text, exit code) of all findings on a server with 100 connections, 97 of them available."""
    server = ServerReport("17.0", 100, 3, 0, total, total, 0, 0, {})
    settings = Settings.load("worker", variables or {})
    reading = Reading(settings, server, fleet, schema, direct_is_pooler, unused_pooler)
    return [(f.text, f.exit_code) for f in find(reading)]


def test_nothing_to_find() -> None:
    """A fleet that just fits has no findings."""
    assert findings(total=77, fleet=[worker(50), worker(47)]) == []


def test_fleet_too_large() -> None:
    """A fleet that may open one connection too many is told the ways out that `poolctl plan` has for it."""
    ((text, code),) = findings(fleet=[worker(50), worker(48)])
    assert code == 1
    assert text.startswith("the fleet is too large for the server: 1 process × 48 + 1 process × 50 = 98, available 97")
    assert "set WORKER_DB_POOL_MAX=33, or" in text  # 77 usable, less 10 for the overhead, for two
    assert "set POSTGRES_MAX_CONNECTIONS=138, or" in text  # 2 × 49 and 10 fit
    ((legacy, _),) = findings({"DATABASE_URL": "postgres://h/d"}, fleet=[worker(50), worker(48)])
    assert "DB_POOL" not in legacy


def test_more_processes_than_connections() -> None:
    """With more processes than connections no DB_POOL_MAX helps, and none is advised."""
    ((text, _),) = findings(fleet=[worker(1)] * 98)
    assert "DB_POOL_MAX" not in text


def test_nothing_but_bots() -> None:
    """Where no worker lives there is nothing to plan, and the finding is still told with a remedy."""
    ((text, _),) = findings(fleet=[replace(worker(98), role="bot")])
    assert "98, available 97 of max_connections=100: lower the largest DB_POOL_MAX, or run fewer processes" in text


def test_one_pool_too_large() -> None:
    """One process whose pool alone is larger than the server is a finding."""
    ((text, code),) = findings({"DB_POOL_MAX": "98"})
    assert (text.split(" of ")[0], code) == ("DB_POOL_MAX=98", 1)
    assert findings({"DB_POOL_MAX": "97"}) == []


def test_behind_a_pooler_pools_may_be_larger() -> None:
    """Where DB_HOST is a pooler, the pools' sizes are not compared with the server's connections."""
    assert findings({"DB_POOL_MAX": "98", "DB_DIRECT_HOST": "server"}, fleet=[worker(98)]) == []


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"DB_HOST": "postgres"},
            "DB_HOST leads to postgres:5432: set COMPOSE_PROFILES=pgbouncer in .env instead of --profile pgbouncer, or",
        ),
        (
            {"DB_HOST": "postgres", "COMPOSE_PROFILES": "pgbouncer"},
            "DB_HOST leads to postgres:5432: unset DB_HOST and DB_PORT; or stop it",
        ),
        (
            {"DATABASE_URL": "postgres://u:kT7@h/d"},
            "DATABASE_URL leads to h:5432: name bouncer:6432 in it; or stop it",
        ),
    ],
    ids=["by the flag", "DB_HOST given", "DATABASE_URL"],
)
def test_a_pooler_that_nobody_uses(variables: dict[str, str], says: str) -> None:
    """PgBouncer runs and DB_HOST goes past it: what to set, by how DB_HOST was given."""
    ((text, code),) = findings(variables | {"PGBOUNCER_HOST": "bouncer"}, unused_pooler=True)
    assert code == 1
    assert text.startswith(f"PgBouncer runs at bouncer:6432, and nobody uses it: {says}")
    assert "kT7" not in text


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"DB_HOST": "bouncer"}, "DB_HOST leads to a pooler at bouncer:5432"),
        ({"DB_HOST": "bouncer", "DB_DIRECT_HOST": "other"}, "DB_DIRECT_HOST leads to a pooler at other:5432"),
        ({"DATABASE_URL": "postgres://u:kT7@h:6432/d"}, "DATABASE_URL leads to a pooler at h:6432"),
    ],
)
def test_a_pooler_in_the_place_of_the_server(variables: dict[str, str], says: str) -> None:
    """Where the server itself should be named there is a pooler: one finding, and none of the pools' sizes."""
    ((text, code),) = findings(variables, fleet=[worker(98)], direct_is_pooler=True)
    assert code == 1
    assert (
        text == f"{says}, and migrations need the server itself: set DB_DIRECT_HOST (and DB_DIRECT_PORT) to the server"
    )


def test_head_room() -> None:
    """More than 80 % of the available connections taken is a finding."""
    ((text, code),) = findings(total=78)
    assert text.startswith("78 of 97 available connections are taken, above the head-room line 77")
    assert code == 1


def test_schema_behind_and_no_redis() -> None:
    """Each problem is a finding of its own."""
    found = findings(schema=SchemaBehind("behind"), fleet=QueueUnreachable("no redis"))
    assert found == [("behind", 3), ("no redis", 3)]


def test_wrong_redis_password_is_a_bad_setting() -> None:
    """What Redis refuses because of a setting ends the command with 2."""
    assert findings(fleet=WrongRedisPassword("refused")) == [("refused", 2)]
