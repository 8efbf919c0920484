"""Ten workers go to PgBouncer and back, and what they stand on is restarted, while jobs run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.stack import Stack
from tests.waiting import wait_until

WORKERS = 10
JOBS = 500
JOBS_OF_A_SWITCH = 2000  # more than the fleet does while compose replaces it
JOBS_AFTER = 100
# Of a unit that is cut off while it runs nobody can say whether the server did it, so it is not run again; who waits
# for a connection then is told that there is none. So many are under way at most: 10 jobs of a worker, 8 of a job.
UNDER_WAY = WORKERS * 10 * 8
SERVER_CONNECTIONS = 25 + 5  # PGBOUNCER_DEFAULT_POOL_SIZE + PGBOUNCER_RESERVE_POOL_SIZE


def by_way_of(stack: Stack) -> set[str]:
    """What the processes are connected to now: `postgres` itself, `pgbouncer`; nothing shows of an idle pooler."""
    hosts = stack.psql("SELECT DISTINCT host(client_addr) FROM pg_stat_activity WHERE usename = 'app'").split()
    pgbouncer = {address for container in stack.running("pgbouncer") for address in container.addresses}
    return {"pgbouncer" if host in pgbouncer else "postgres" for host in hosts}


@pytest.fixture(scope="module")
def up(stack: Stack) -> Stack:
    stack.deploy("--workers", str(WORKERS), "--pool-max", "8", "--apply")
    stack.wait_for_processes(WORKERS + 1)
    return stack


def switched(stack: Stack, *arguments: str) -> None:
    """Switch while jobs run: none is lost, and afterwards nothing fails."""
    load = stack.load(JOBS_OF_A_SWITCH)
    load.wait_for(20)
    stack.deploy(*arguments, "--apply")
    assert load.done() < JOBS_OF_A_SWITCH, "no job was left for after the switch"
    load.wait().check(units=16, may_fail=UNDER_WAY)
    stack.load(JOBS_AFTER).wait().check(units=16)


def test_to_pgbouncer(up: Stack) -> None:
    """`poolctl deploy --pgbouncer --apply` moves all processes while jobs run: none is lost, the scale is kept."""
    assert by_way_of(up) == {"postgres"}
    switched(up, "--pgbouncer")
    assert len(up.running("worker")) == WORKERS
    assert set(up.wait_for_processes(WORKERS + 1).values()) == {5}
    wait_until(lambda: by_way_of(up) == {"pgbouncer"}, what="the way through PgBouncer")


def test_a_plain_up_stays_there(up: Stack) -> None:
    """A plain `docker compose up -d` afterwards replaces nothing: `.env` is the state."""

    def fleet() -> set[str]:
        return {container.id for container in up.containers("worker", "bot", "pgbouncer")}

    before = fleet()
    up.up()
    assert fleet() == before
    assert len(before) == WORKERS + 2


def test_ten_workers_share_25_connections(up: Stack) -> None:
    """10 × 5 connections of the workers are 25 of the server, and 5 more in need."""
    with up.connections() as samples:
        up.load(JOBS).wait().check(units=16)
    assert 20 < samples.peak(lambda clients: clients.user == "app") <= SERVER_CONNECTIONS


def restart_pgbouncer(stack: Stack) -> None:
    stack.compose("restart", "pgbouncer")


def pause_pgbouncer(stack: Stack) -> None:
    """Its processes stand still for 3 s, as do all who wait for it."""
    stack.compose("pause", "pgbouncer")
    try:
        # Nothing to wait for: that time passes is the fault itself.
        stack.run("sleep", "3")
    finally:
        stack.compose("unpause", "pgbouncer")


def restart_postgres(stack: Stack) -> None:
    stack.compose("restart", "postgres")


def restart_redis(stack: Stack) -> None:
    stack.compose("restart", "redis")


FAULTS = [restart_pgbouncer, pause_pgbouncer, restart_postgres, restart_redis]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_jobs_survive(up: Stack, fault: Callable[[Stack], None]) -> None:
    """Every job ends well though what it comes from, or reaches its rows by, goes away for a while."""
    load = up.load(JOBS)
    load.wait_for(40)
    fault(up)
    assert load.done() < JOBS, "no job was left for after the fault"
    load.wait().check(units=16, may_fail=UNDER_WAY)
    up.wait_until_healthy()
    up.load(JOBS_AFTER).wait().check(units=16)


def test_and_back(up: Stack) -> None:
    """`poolctl deploy --direct --apply` takes all processes back and stops the pooler; a plain `up -d` stays there."""
    switched(up, "--direct")
    wait_until(lambda: by_way_of(up) == {"postgres"}, what="the way to the server itself")
    assert up.running("pgbouncer") == []
    up.up()
    assert len(up.running("worker")) == WORKERS
    assert up.running("pgbouncer") == []
    assert by_way_of(up) == {"postgres"}


def test_a_pooler_that_nobody_uses(up: Stack) -> None:
    """The flag `--profile pgbouncer` starts it and moves nobody: `poolctl check` says so."""
    up.compose("--profile", "pgbouncer", "up", "-d", "pgbouncer")
    assert up.running("pgbouncer") != []
    assert by_way_of(up) == {"postgres"}
    said = up.poolctl("check", check=False)
    assert said.returncode == 1, said.stdout
    assert "finding: " in said.stdout
    assert "COMPOSE_PROFILES=pgbouncer" in said.stdout
