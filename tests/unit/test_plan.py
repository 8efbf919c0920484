"""The plan's arithmetic: monotone, and exact at its edges."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from config.groups import LARGEST_POOL
from fleet.plan import LARGEST_SERVER, Demand, Plan, PlanError, PooledDatabase, Pooler, Supply, Verdict
from fleet.ways_out import ways_out

ORDER = [Verdict.FITS, Verdict.TIGHT, Verdict.OVER]


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    pool_max, bot_pool_max = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    return Demand(
        workers=draw(st.integers(1, 120)),
        pool_max=pool_max,
        pool_min=draw(st.integers(0, pool_max)),
        bots=draw(st.integers(0, 5)),
        bot_pool_max=bot_pool_max,
        bot_pool_min=draw(st.integers(0, bot_pool_max)),
        overhead=draw(st.integers(0, 30)),
        surge=draw(st.integers(1, 3)),
    )


@st.composite
def supplies(draw: st.DrawFn) -> Supply:
    superuser_reserved, reserved = draw(st.integers(0, 5)), draw(st.integers(0, 20))
    return Supply(
        max_connections=draw(st.integers(max(60, superuser_reserved + reserved + 1), 1000)),  # 60: the largest pool
        superuser_reserved=superuser_reserved,
        reserved=reserved,
        head_room_percent=draw(st.integers(0, 60)),
    )


sizes = st.none() | st.integers(1, 60)
databases = st.builds(
    PooledDatabase, users=st.integers(1, 3), pool_size=sizes, reserve_pool_size=sizes, max_db_connections=sizes
)
poolers = st.builds(
    Pooler,
    default_pool_size=st.integers(1, 60),
    reserve_pool_size=st.integers(0, 20),
    max_client_conn=st.integers(1, 2000),
    max_db_connections=st.integers(0, 100),
    databases=st.lists(databases, min_size=1, max_size=3).map(tuple),
)
plans = st.builds(Plan, demands(), supplies(), st.none() | poolers)
pooled_plans = st.builds(Plan, demands(), supplies(), poolers)
SUMS = [each.name for each in fields(Demand) if each.name != "legacy"]


def worse(a: Plan, b: Plan) -> bool:
    """Whether b is nowhere better than a."""
    return (
        ORDER.index(a.verdict) <= ORDER.index(b.verdict)
        and ORDER.index(a.verdict_deploy) <= ORDER.index(b.verdict_deploy)
        and a.total_idle <= b.total_idle
        and a.total_peak <= b.total_peak
        and a.total_deploy <= b.total_deploy
        and a.servers_peak <= b.servers_peak
    )


@given(plan=plans, name=st.sampled_from(SUMS))
def test_more_demand_is_never_better(plan: Plan, name: str) -> None:
    """One more of any demand makes no total smaller and no verdict better."""
    try:
        more = replace(plan, demand=replace(plan.demand, **{name: getattr(plan.demand, name) + 1}))
    except PlanError:  # a floor above its ceiling, or a pool above the server
        assume(False)
    assert worse(plan, more)


@given(plan=pooled_plans, name=st.sampled_from(["default_pool_size", "reserve_pool_size", "max_db_connections"]))
def test_more_server_connections_are_never_better(plan: Plan, name: str) -> None:
    """One more connection that the pooler may open makes no verdict better, and no edge wider."""
    assert plan.pooler is not None
    assume(name != "max_db_connections" or plan.pooler.max_db_connections)  # 0 = no limit
    more = replace(plan, pooler=replace(plan.pooler, **{name: getattr(plan.pooler, name) + 1}))
    assert worse(plan, more)
    assert (more.max_workers, more.max_pool) <= (plan.max_workers, plan.max_pool)


@given(plan=pooled_plans, more=databases)
def test_more_pooled_databases_are_never_better(plan: Plan, more: PooledDatabase) -> None:
    """Another database, or another user of one, makes no verdict better."""
    assert plan.pooler is not None
    first, *rest = plan.pooler.databases
    another = replace(plan, pooler=replace(plan.pooler, databases=(first, *rest, more)))
    assert worse(plan, another)
    user = replace(first, users=first.users + 1)
    assert worse(plan, replace(plan, pooler=replace(plan.pooler, databases=(user, *rest))))


@given(plan=pooled_plans)
def test_more_clients_let_in_are_never_worse(plan: Plan) -> None:
    """One more in max_client_conn makes no verdict worse, and no edge narrower."""
    assert plan.pooler is not None
    more = replace(plan, pooler=replace(plan.pooler, max_client_conn=plan.pooler.max_client_conn + 1))
    assert worse(more, plan)
    assert more.max_workers >= plan.max_workers
    assert more.max_pool >= plan.max_pool


@given(plan=plans, name=st.sampled_from(["superuser_reserved", "reserved", "head_room_percent"]))
def test_more_reserve_is_never_better(plan: Plan, name: str) -> None:
    """Reserving more makes no verdict better, and no edge wider."""
    try:
        less = replace(plan, supply=replace(plan.supply, **{name: getattr(plan.supply, name) + 1}))
    except PlanError:
        return
    assert worse(plan, less)
    assert less.max_workers <= plan.max_workers
    assert less.max_pool <= plan.max_pool


@given(plan=plans)
def test_a_larger_server_is_never_worse(plan: Plan) -> None:
    """One more in max_connections makes no verdict worse, and no edge narrower."""
    more = replace(plan, supply=replace(plan.supply, max_connections=plan.supply.max_connections + 1))
    assert worse(more, plan)
    assert more.max_workers >= plan.max_workers
    assert more.max_pool >= plan.max_pool


@given(plan=plans)
def test_fits_means_below_the_line(plan: Plan) -> None:
    """`fits` is at most usable, `tight` at most available, and `over` has a reason."""
    total, supply = plan.servers_peak, plan.supply
    if plan.verdict is Verdict.FITS:
        assert total <= supply.usable
    elif plan.verdict is Verdict.TIGHT:
        assert supply.usable < total <= supply.available
    else:
        assert total > supply.available or (plan.pooler is not None and plan.total_peak > plan.pooler.max_client_conn)


@given(plan=plans)
def test_the_edges_are_exact(plan: Plan) -> None:
    """`max_workers` workers, and pools of `max_pool`, fit; one more does not."""

    def fits(**changes: int) -> bool:
        try:
            return replace(plan, demand=replace(plan.demand, pool_min=0, **changes)).verdict is Verdict.FITS
        except PlanError:  # above the server
            return False

    if plan.max_workers:
        assert fits(workers=plan.max_workers)
    assert not fits(workers=plan.max_workers + 1)
    if plan.max_pool:
        assert fits(pool_max=plan.max_pool)
    assert not fits(pool_max=plan.max_pool + 1)


BARE = Supply(superuser_reserved=0, head_room_percent=0)


@pytest.mark.parametrize(
    ("workers", "pool_max", "max_connections", "peak"),
    [(1, 10, 100, 10), (5, 10, 100, 50), (10, 8, 100, 80), (10, 10, 200, 100)],
)
def test_worked_sums(workers: int, pool_max: int, max_connections: int, peak: int) -> None:
    """1 × 10, 5 × 10 and 10 × 8 = 80 go on 100 connections, 10 × 10 = 100 with 200."""
    plan = Plan(Demand(workers=workers, pool_max=pool_max), Supply(max_connections=max_connections))
    assert plan.demand.peak == peak
    assert plan.total_peak == peak + 10
    assert plan.verdict is not Verdict.OVER


def test_ten_times_ten_is_over_a_hundred() -> None:
    """10 × 10 and the overhead do not go on 100 connections."""
    assert Plan(Demand(workers=10, pool_max=10), Supply()).verdict is Verdict.OVER


def test_three_times_sixty_is_over() -> None:
    """3 × 60 on 100 connections is over."""
    assert Plan(Demand(workers=3, pool_max=60), Supply()).verdict is Verdict.OVER


def test_pooler_shares_25_for_50() -> None:
    """PgBouncer serves the 10 × 5 = 50 connections of the processes with 25 of the server."""
    plan = Plan(Demand(workers=10, pool_max=5), Supply(), Pooler(default_pool_size=25, reserve_pool_size=0))
    assert plan.demand.peak == 50
    assert plan.servers_peak == 25 + plan.demand.overhead
    assert plan.verdict is Verdict.FITS


def test_the_overhead_is_on_both_sides_of_a_pooler() -> None:
    """Bot and interface are clients, too: 198 × 5 + 10 are the 1000 that PgBouncer lets in, and one more is not."""
    plan = Plan(Demand(workers=198, pool_max=5), Supply(), Pooler())
    assert (plan.total_peak, plan.servers_peak, plan.verdict) == (1000, 30 + 10, Verdict.FITS)
    assert (plan.max_workers, plan.max_pool) == (198, 5)
    assert replace(plan, demand=replace(plan.demand, overhead=11)).verdict is Verdict.OVER


def test_several_databases_have_a_limit_each() -> None:
    """max_db_connections is of each database: two of 40 are 80, and only all users of one share it."""
    two = (PooledDatabase(), PooledDatabase())
    assert Pooler(default_pool_size=40, max_db_connections=40, databases=two).servers == 80
    assert Pooler(default_pool_size=40, max_db_connections=40, databases=(PooledDatabase(users=2),)).servers == 40


@pytest.mark.parametrize("pooler", [None, Pooler(max_client_conn=2**31 - 1)])
def test_edges_are_numbers_that_there_may_be(pooler: Pooler | None) -> None:
    """No more workers, and no larger pool, are called fitting than the settings take."""
    plan = Plan(Demand(workers=1, pool_max=1), Supply(max_connections=LARGEST_SERVER), pooler)
    assert (plan.max_workers, plan.max_pool) == (LARGEST_POOL, LARGEST_POOL)


@given(plan=plans)
def test_the_largest_plans_have_ways_out_or_none(plan: Plan) -> None:
    """At the bounds of all inputs nothing is advised that cannot be."""
    huge = replace(plan.demand, workers=LARGEST_POOL, bots=LARGEST_POOL, surge=LARGEST_POOL)
    for way in ways_out(replace(plan, demand=huge)):
        assert way.plan.supply.max_connections <= LARGEST_SERVER
        assert all(int(value) < 2**31 for value in way.env.values() if value.isdigit())


def test_pooler_has_a_pool_for_each_pair() -> None:
    """Each database's pools count with its own settings, and its limit is for all its users together."""
    own = PooledDatabase(users=3, pool_size=7, reserve_pool_size=1, max_db_connections=20)
    usual = PooledDatabase(users=2)
    assert Pooler(databases=(usual,)).servers == 2 * (25 + 5)
    assert Pooler(databases=(usual, usual), max_db_connections=50).servers == 2 * 50
    assert Pooler(databases=(usual, own), max_db_connections=70).servers == 60 + 20
    assert Pooler(databases=(usual, own)).pools == 5


def test_thirty_per_process() -> None:
    """(100 − 10) / 3 = 30 per process."""
    assert Plan(Demand(workers=3, pool_max=10, overhead=10), BARE).max_pool == 30


def test_sixteen_each() -> None:
    """5 processes on 100 connections of which 20 are reserved have 16 each."""
    supply = Supply(superuser_reserved=0, reserved=20, head_room_percent=0)
    assert Plan(Demand(workers=5, pool_max=10, overhead=0), supply).max_pool == 16
    # The same line by head room: 20 % of 100.
    assert Plan(Demand(workers=5, pool_max=10, overhead=0), Supply(superuser_reserved=0)).max_pool == 16


def test_two_hundred_are_two_gigabytes() -> None:
    """200 connections take about 2 GB."""
    assert Supply(max_connections=200).memory_mb == 2000


def test_usable_of_the_default_server() -> None:
    """PostgreSQL's default 100, less 3 reserved, less 20 % head room, is 77."""
    assert (Supply().available, Supply().usable) == (97, 77)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Demand(workers=0, pool_max=5), "workers=0 is less than 1: give 1 or more"),
        (lambda: Demand(workers=-3, pool_max=5), "workers=-3 is less than 1"),
        (lambda: Demand(workers=1, pool_max=0), "pool_max=0 is less than 1"),
        (lambda: Demand(workers=1, pool_max=5, bots=-1), "bots=-1 is less than 0"),
        (lambda: Demand(workers=1, pool_max=5, pool_min=6), "pool_min=6 is greater than pool_max=5: lower pool_min"),
        (lambda: Demand(workers=1, pool_max=5, surge=0), "surge=0 is less than 1"),
        (lambda: Supply(max_connections=0), "max_connections=0 is less than 1"),
        (lambda: Supply(max_connections=3), "max_connections=3 is not greater than the 3 reserved ones"),
        (lambda: Supply(head_room_percent=100), "head_room_percent=100 is greater than 99"),
        (lambda: Supply(max_connections=262_144), "max_connections=262144 is greater than 262143: give 262143 or less"),
        (lambda: Demand(workers=10_001, pool_max=5), "workers=10001 is greater than 10000"),
        (lambda: Demand(workers=1, pool_max=10_001), "pool_max=10001 is greater than 10000"),
        (lambda: Demand(workers=1, pool_max=5, bots=10_001), "bots=10001 is greater than 10000"),
        (lambda: Demand(workers=1, pool_max=5, overhead=10_001), "overhead=10001 is greater than 10000"),
        (
            lambda: Plan(Demand(workers=1, pool_max=101), Supply()),
            "pool_max=101 is greater than max_connections=100: lower pool_max or raise max_connections",
        ),
        (
            lambda: Plan(Demand(workers=1, pool_max=5, bots=1, bot_pool_max=101), Supply()),
            "bot_pool_max=101 is greater than max_connections=100",
        ),
        (lambda: Pooler(default_pool_size=0), "default_pool_size=0 is less than 1"),
        (lambda: PooledDatabase(users=0), "users=0 is less than 1"),
        (lambda: PooledDatabase(pool_size=0), "pool_size=0 is less than 1"),
    ],
)
def test_bad_numbers(make: object, message: str) -> None:
    """A number that cannot be is refused with its name, value and bound."""
    with pytest.raises(PlanError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value).startswith(message)
