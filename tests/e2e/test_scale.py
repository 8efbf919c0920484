"""From 1 to 10 workers on one PostgreSQL, without a pooler: more replicas, smaller pools, a larger server."""

from __future__ import annotations

from tests.e2e.connections import Clients
from tests.e2e.stack import Stack
from tests.waiting import wait_until

SERVERS = {"postgres-1": "healthy", "redis-1": "healthy", "migrate-1": "exited 0"}


def healthy(*, workers: int) -> dict[str, str]:
    """The states of a whole stack that is up."""
    return SERVERS | {"bot-1": "healthy"} | {f"worker-{number}": "healthy" for number in range(1, workers + 1)}


def by_role(pools: dict[str, int]) -> dict[str, int]:
    """The pool of each role; AssertionError if those of one role differ."""
    found = {(process.partition("@")[0], may_open) for process, may_open in pools.items()}
    assert len(found) == len(dict(found)), pools
    return dict(found)


def of_workers(clients: Clients) -> bool:
    return clients.name.startswith("worker-")


def of_the_application(clients: Clients) -> bool:
    return clients.user == "app"


def test_ten_workers_with_smaller_pools(stack: Stack) -> None:
    """10 × 8: `up --wait --scale worker=10` ends with ten healthy workers; each has its name in pg_stat_activity."""
    stack.set(DB_POOL_MAX=8)
    stack.up("--wait", "--scale", "worker=10")
    assert stack.states() == healthy(workers=10)
    names = stack.psql("SELECT DISTINCT application_name FROM pg_stat_activity WHERE usename = 'app'").split()
    assert set(names) >= {f"worker-{number}" for number in range(1, 11)}


def test_scale_down_while_jobs_run(stack: Stack) -> None:
    """2,000 jobs never take more than 10 × 8 connections; `--scale worker=3` meanwhile loses none, and gives back."""
    with stack.connections() as samples:
        load = stack.load(2000)
        load.wait_for(700)
        before = samples.peak(of_workers)
        stack.up("--scale", "worker=3")
        assert load.done() < 2000, "no job was left for the three"
        outcomes = load.wait()
        wait_until(lambda: samples.counts(of_workers)[-1] <= 3 * 8, what="at most 3 × 8 connections")
    outcomes.check(units=16)
    assert {job["tries"] for job in outcomes.jobs} == {1}
    assert len(outcomes.by_process()) == 10
    assert 60 < before <= 10 * 8
    assert samples.peak(of_workers) <= 10 * 8
    assert samples.peak(of_the_application) <= 10 * 8 + 8  # and the bot's
    assert stack.states() == healthy(workers=3)


def test_one_line_sets_every_pool(stack: Stack) -> None:
    """DB_POOL_MAX=3 in `.env` changes workers and bot; PostgreSQL sees no more than that."""
    stack.set(DB_POOL_MAX=3)
    stack.up("--scale", "worker=3")
    assert set(stack.wait_for_processes(4).values()) == {3}
    with stack.connections() as samples:
        stack.load(60).wait().check(units=16)
    assert samples.peak(of_workers) == 3 * 3


def test_one_line_sets_the_workers_pools(stack: Stack) -> None:
    """WORKER_DB_POOL_MAX beside it changes the workers' pools only."""
    stack.set(WORKER_DB_POOL_MAX=5)
    stack.up("--scale", "worker=3")
    assert by_role(stack.wait_for_processes(4)) == {"worker": 5, "bot": 3}
    with stack.connections() as samples:
        stack.load(60).wait().check(units=16)
    assert samples.peak(of_workers) == 3 * 5


def test_ten_workers_on_a_larger_server(stack: Stack) -> None:
    """10 × 10 is refused before anything changes; with POSTGRES_MAX_CONNECTIONS=200 it runs, on 100 connections.

    The order is for the workers' pools, as the test before has given them a line of their own.
    """
    order = ("--workers", "10", "--pool-max", "10", "--apply")
    before = (stack.env(), {container.id for container in stack.running("worker")})
    refused = stack.deploy(*order, check=False)
    assert refused.returncode == 1
    assert "POSTGRES_MAX_CONNECTIONS" in refused.stdout + refused.stderr
    assert (stack.env(), {container.id for container in stack.running("worker")}) == before

    stack.set(POSTGRES_MAX_CONNECTIONS=200)
    stack.deploy(*order)
    assert by_role(stack.wait_for_processes(11)) == {"worker": 10, "bot": 3}
    assert stack.psql("SHOW max_connections") == "200"
    with stack.connections() as samples:
        stack.load(600).wait().check(units=16)
    assert 80 < samples.peak(of_workers) <= 10 * 10
