"""The ways out lead out, as they are printed and whatever was set before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import Settings, SettingsError
from fleet.plan import LARGEST_SERVER, Demand, Plan, PooledDatabase, Pooler, Supply, Verdict
from fleet.plan_inputs import demand_of, from_settings, goes_through_pooler, pooler_from, supply_from
from fleet.ways_out import WayOut, command_of, env_of, ways_out
from tests.unit.test_plan import plans

SMALLER, SERVER, POOLER, SETTINGS = (
    "smaller pools",
    "a larger max_connections",
    "PgBouncer",
    "other settings of PgBouncer",
)
TEN = Plan(Demand(workers=10, pool_max=10, pool_min=2), Supply())


def way(plan: Plan, name: str) -> WayOut:
    """The way out of that name."""
    return next(way for way in ways_out(plan) if way.name == name)


def names(plan: Plan) -> list[str]:
    """Which ways out there are."""
    return [way.name for way in ways_out(plan)]


def applied(plan: Plan, environ: dict[str, str]) -> Plan:
    """The plan of a fleet that boots with `environ`, on servers that were started with it; the rest as in `plan`."""
    worker, bot = Settings.load("worker", environ), Settings.load("bot", environ)
    demand = demand_of(
        {
            **from_settings(worker, bot),
            "workers": worker.fleet.workers or 0,
            "bots": plan.demand.bots,
            "overhead": plan.demand.overhead,
            "surge": plan.demand.surge,
        }
    )
    supply = replace(plan.supply, max_connections=supply_from(worker).max_connections)
    if not goes_through_pooler(worker):
        return Plan(demand, supply)
    databases = (PooledDatabase(),) if plan.pooler is None else plan.pooler.databases
    return Plan(demand, supply, replace(pooler_from(worker), databases=databases))


POOL_LINES = [f"{role}DB_POOL_{end}" for role in ("", "WORKER_", "BOT_") for end in ("MIN", "MAX")]
STACK_LINES = [
    "POSTGRES_MAX_CONNECTIONS",
    *(f"PGBOUNCER_{name}" for name in ("DEFAULT_POOL_SIZE", "RESERVE_POOL_SIZE", "MAX_CLIENT_CONN")),
    "PGBOUNCER_MAX_DB_CONNECTIONS",
]
PROFILES = ("pgbouncer", "*", "monitoring", "tools")


@given(
    plan=plans,
    before=st.dictionaries(st.sampled_from(POOL_LINES + STACK_LINES), st.integers(1, 60).map(str)),
    profiles=st.lists(st.sampled_from(PROFILES), unique=True).map(tuple),
)
def test_ways_out_lead_out(plan: Plan, before: dict[str, str], profiles: tuple[str, ...]) -> None:
    """The lines of each way out, beside whatever settings and profiles there were, boot a fleet that fits."""
    before |= {"COMPOSE_PROFILES": ",".join(profiles)}
    try:
        bot = Settings.load("bot", before)
        Settings.load("worker", before)
    except SettingsError:
        return  # no fleet boots with these
    demand = replace(plan.demand, bot_pool_min=bot.db.pool_min, bot_pool_max=bot.db.pool_max)
    plan = replace(plan, demand=demand, profiles=profiles)
    for each in ways_out(plan):
        assert each.plan.verdict is Verdict.FITS
        assert applied(plan, before | each.env).verdict is Verdict.FITS
        assert each.changes.items() <= each.env.items()
        assert each.changes
        assert each.costs
        assert f"worker={plan.demand.workers}" in each.command
        now = Settings.load("worker", before | each.env).stack
        assert set(profiles) - {"pgbouncer", "*"} <= set(now.compose_profiles)
        assert now.pgbouncer is (each.plan.pooler is not None)


@given(plan=plans)
def test_none_where_it_fits(plan: Plan) -> None:
    """There is a way out if and only if it is needed, as far as a larger server is one."""
    if plan.verdict is Verdict.FITS:
        assert ways_out(plan) == ()
    elif plan.pooler is None:
        assert SERVER in names(plan)


@given(plan=plans)
def test_a_larger_server_is_the_smallest_that_does(plan: Plan) -> None:
    """The way out by max_connections raises it no further than it must."""
    for each in ways_out(plan):
        if each.name == SERVER:
            less = replace(each.plan.supply, max_connections=each.plan.supply.max_connections - 1)
            assert less.verdict(plan.servers_peak) is not Verdict.FITS


@given(plan=plans)
def test_a_smaller_pooler_is_the_largest_that_does(plan: Plan) -> None:
    """The way out by default_pool_size lowers it no further than it must."""
    for each in ways_out(plan):
        pooler = each.plan.pooler
        if each.name == SETTINGS and pooler is not None and "PGBOUNCER_DEFAULT_POOL_SIZE" in each.changes:
            larger = replace(pooler, default_pool_size=pooler.default_pool_size + 1)
            assert replace(each.plan, pooler=larger).verdict is not Verdict.FITS


def test_ten_times_ten() -> None:
    """10 × 10 on 100: pools of 6, or 141 connections, or PgBouncer; each changes nothing else."""
    assert {each.name: each.changes for each in ways_out(TEN)} == {
        SMALLER: {"WORKER_DB_POOL_MAX": "6"},
        SERVER: {"POSTGRES_MAX_CONNECTIONS": "141"},
        POOLER: {
            "WORKER_DB_POOL_MAX": "5",
            "COMPOSE_PROFILES": "pgbouncer",
            "PGBOUNCER_DEFAULT_POOL_SIZE": "25",
            "PGBOUNCER_RESERVE_POOL_SIZE": "5",
            "PGBOUNCER_MAX_CLIENT_CONN": "1000",
            "PGBOUNCER_MAX_DB_CONNECTIONS": "0",
        },
    }


def test_other_profiles_stay_on() -> None:
    """To the pooler and away from it, compose's other profiles are kept; without the pooler's nothing is written."""
    plan = replace(TEN, profiles=("monitoring", "tools"))
    assert way(plan, POOLER).changes["COMPOSE_PROFILES"] == "monitoring,tools,pgbouncer"
    assert "COMPOSE_PROFILES" not in way(plan, SMALLER).env
    leaving = replace(TEN, profiles=("pgbouncer", "monitoring"))
    assert way(leaving, SMALLER).env["COMPOSE_PROFILES"] == "monitoring"
    assert way(replace(TEN, profiles=("pgbouncer",)), SMALLER).env["COMPOSE_PROFILES"] == ""


def test_defaults_are_the_settings() -> None:
    """What a plan takes for granted is what the stack is started with where nothing is set."""
    settings = Settings.load("worker", {})
    assert (supply_from(settings), pooler_from(settings)) == (Supply(), Pooler())


def test_settings_of_the_stack_count() -> None:
    """Each number comes from its variable."""
    environ = {
        "POSTGRES_MAX_CONNECTIONS": "240",
        "PGBOUNCER_DEFAULT_POOL_SIZE": "31",
        "PGBOUNCER_RESERVE_POOL_SIZE": "7",
        "PGBOUNCER_MAX_CLIENT_CONN": "1234",
        "PGBOUNCER_MAX_DB_CONNECTIONS": "36",
    }
    settings = Settings.load("worker", environ)
    assert supply_from(settings) == Supply(max_connections=240)
    assert pooler_from(settings) == Pooler(
        default_pool_size=31, reserve_pool_size=7, max_client_conn=1234, max_db_connections=36
    )


@pytest.mark.parametrize(
    ("environ", "through"),
    [
        ({}, False),
        ({"COMPOSE_PROFILES": "pgbouncer"}, True),
        ({"COMPOSE_PROFILES": "monitoring"}, False),
        ({"COMPOSE_PROFILES": "pgbouncer", "DB_HOST": "postgres"}, False),
        ({"COMPOSE_PROFILES": "pgbouncer", "WORKER_DB_HOST": "postgres"}, False),
        ({"COMPOSE_PROFILES": "pgbouncer", "DATABASE_URL": "postgres://u:p@db/app"}, False),
        ({"DB_HOST": "pgbouncer", "DB_PORT": "6432"}, True),
        ({"DB_HOST": "pgbouncer"}, False),
        ({"DB_HOST": "bouncer", "DB_PORT": "7000", "PGBOUNCER_HOST": "bouncer", "PGBOUNCER_PORT": "7000"}, True),
        ({"DATABASE_URL": "postgres://u:p@pgbouncer:6432/app"}, True),
        ({"DB_HOST": "any", "DB_DIRECT_HOST": "postgres"}, True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_who_goes_through_a_pooler(environ: dict[str, str], through: bool) -> None:
    """The profile decides where DB_HOST is not given; else DB_HOST does, by PgBouncer's address or another server's."""
    assert goes_through_pooler(Settings.load("worker", environ)) is through


def test_a_floor_above_the_new_ceiling_is_lowered() -> None:
    """Both lines of the pool are written, so that the floor is never above the ceiling."""
    plan = replace(TEN, demand=replace(TEN.demand, pool_min=8))
    assert way(plan, SMALLER).changes == {"WORKER_DB_POOL_MIN": "6", "WORKER_DB_POOL_MAX": "6"}
    assert way(plan, POOLER).changes["WORKER_DB_POOL_MIN"] == "5"


@pytest.mark.parametrize(("workers", "offered"), [(7, False), (9, False), (10, True), (12, True)])
def test_pooler_from_ten_workers_on(workers: int, offered: bool) -> None:
    """Below 10 workers a pooler is more to run than it saves."""
    plan = Plan(Demand(workers=workers, pool_max=20), Supply())
    assert (POOLER in names(plan)) is offered


def test_a_new_pooler_lets_a_deployment_in() -> None:
    """Of its clients there may be as many as a deployment has, the overhead among them."""
    plan = Plan(Demand(workers=150, pool_max=5), Supply())
    assert way(plan, POOLER).changes["PGBOUNCER_MAX_CLIENT_CONN"] == str(2 * 150 * 5 + 10)
    assert way(plan, POOLER).plan.verdict_deploy is Verdict.FITS


def test_the_bots_are_left_alone() -> None:
    """With bots their pools stay as they are, and their lines and their number are in the block."""
    plan = replace(TEN, demand=replace(TEN.demand, bots=2, bot_pool_max=8, bot_pool_min=8))
    for each in ways_out(plan):
        assert (each.env["BOT_DB_POOL_MIN"], each.env["BOT_DB_POOL_MAX"]) == ("8", "8")
        assert not [name for name in each.changes if name.startswith("BOT_")]
        assert each.command == "docker compose up -d --scale worker=10 --scale bot=3"
    assert "BOT_DB_POOL_MAX" not in env_of(TEN)
    assert command_of(TEN) == "docker compose up -d --scale worker=10"


def test_too_many_clients() -> None:
    """What lets in too few clients is PgBouncer: it must let in more, or the pools become smaller."""
    plan = Plan(Demand(workers=200, pool_max=5), Supply(), Pooler())
    assert names(plan) == [SMALLER, SETTINGS]
    assert way(plan, SMALLER).changes == {"WORKER_DB_POOL_MAX": "4"}
    assert way(plan, SETTINGS).changes == {"PGBOUNCER_MAX_CLIENT_CONN": "2010"}


def test_too_many_servers_behind_a_pooler() -> None:
    """Where PgBouncer opens too many connections, it may open fewer, or the server has more."""
    plan = Plan(Demand(workers=40, pool_max=5), Supply(), Pooler(default_pool_size=90))
    assert way(plan, SETTINGS).changes == {"PGBOUNCER_DEFAULT_POOL_SIZE": "62"}
    assert way(plan, SERVER).changes == {"POSTGRES_MAX_CONNECTIONS": str(132 + 3)}
    own_size = replace(plan, pooler=Pooler(databases=(PooledDatabase(pool_size=90),)))
    assert SETTINGS not in names(own_size)  # the default is not what counts there


def test_both_sides_too_many() -> None:
    """One change of PgBouncer's settings mends both sides."""
    plan = Plan(Demand(workers=300, pool_max=5), Supply(), Pooler(default_pool_size=90))
    assert set(way(plan, SETTINGS).changes) == {"PGBOUNCER_MAX_CLIENT_CONN", "PGBOUNCER_DEFAULT_POOL_SIZE"}


def test_no_server_is_so_large() -> None:
    """No way out asks for more than PostgreSQL takes."""
    edge = LARGEST_SERVER * 8 // 10 // 1000
    assert SERVER in names(Plan(Demand(workers=edge - 1, pool_max=1000), Supply(max_connections=1000)))
    assert SERVER not in names(Plan(Demand(workers=edge + 1, pool_max=1000), Supply(max_connections=1000)))


def test_legacy_pools_are_not_named() -> None:
    """Beside DATABASE_URL no way out writes a pool setting, as all of them would be refused there."""
    legacy = replace(TEN, demand=replace(TEN.demand, legacy=True))
    assert names(legacy) == [SERVER]
    url = {"DATABASE_URL": "postgres://u:p@h/d"}
    (only,) = ways_out(legacy)
    assert Settings.load("worker", url | only.env).fleet.workers == 10
    pooled = replace(legacy, demand=replace(legacy.demand, workers=300), pooler=Pooler())
    assert names(pooled) == [SETTINGS]
