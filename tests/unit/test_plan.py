"""The plan's arithmetic: monotone, exact at its edges, and its ways out lead out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.plan import Demand, Plan, PlanError, Pooler, Supply, Verdict

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
        max_connections=draw(st.integers(superuser_reserved + reserved + 1, 1000)),
        superuser_reserved=superuser_reserved,
        reserved=reserved,
        head_room_percent=draw(st.integers(0, 60)),
    )


poolers = st.none() | st.builds(
    Pooler,
    default_pool_size=st.integers(1, 60),
    reserve_pool_size=st.integers(0, 20),
    pairs=st.integers(1, 3),
    max_client_conn=st.integers(1, 2000),
    max_db_connections=st.integers(0, 100),
)
plans = st.builds(Plan, demands(), supplies(), poolers)


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


@given(plan=plans, name=st.sampled_from(["workers", "pool_max", "bots", "bot_pool_max", "overhead", "surge"]))
def test_more_demand_is_never_better(plan: Plan, name: str) -> None:
    """One more of any demand makes no total smaller and no verdict better."""
    assert worse(plan, replace(plan, demand=replace(plan.demand, **{name: getattr(plan.demand, name) + 1})))


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
        assert total > supply.available or (plan.pooler is not None and plan.demand.peak > plan.pooler.max_client_conn)


@given(plan=plans)
def test_the_edges_are_exact(plan: Plan) -> None:
    """`max_workers` workers, and pools of `max_pool`, fit; one more does not."""

    def fits(**changes: int) -> bool:
        demand = replace(plan.demand, pool_min=0, **changes)
        return replace(plan, demand=demand).verdict is Verdict.FITS

    if plan.max_workers:
        assert fits(workers=plan.max_workers)
    assert not fits(workers=plan.max_workers + 1)
    if plan.max_pool:
        assert fits(pool_max=plan.max_pool)
    assert not fits(pool_max=plan.max_pool + 1)


@given(plan=plans)
def test_ways_out_lead_out(plan: Plan) -> None:
    """Each way out, applied, fits; there is none where the plan fits already."""
    ways = plan.ways_out()
    assert all(way.plan.verdict is Verdict.FITS for way in ways)
    assert all(way.env and way.command and way.costs for way in ways)
    if plan.verdict is Verdict.FITS:
        assert ways == ()
    elif plan.pooler is None:
        assert "a larger max_connections" in [way.name for way in ways]


@given(plan=plans)
def test_a_larger_server_is_the_smallest_that_does(plan: Plan) -> None:
    """The way out by max_connections raises it no further than it must."""
    for way in plan.ways_out():
        if way.name == "a larger max_connections":
            less = replace(way.plan.supply, max_connections=way.plan.supply.max_connections - 1)
            assert replace(plan, supply=less).verdict is not Verdict.FITS


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
        (lambda: Pooler(default_pool_size=0), "default_pool_size=0 is less than 1"),
    ],
)
def test_bad_numbers(make: object, message: str) -> None:
    """A number that cannot be is refused with its name, value and bound."""
    with pytest.raises(PlanError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value).startswith(message)
