"""Twenty workers on a server that cannot seat them: refused, with the way out; and the way out, taken."""

from __future__ import annotations

import re

from tests.e2e.connections import Clients
from tests.e2e.stack import ROOT, UP_S, Stack

WORKERS, POOL_MAX = 20, 5
WAY_OUT = re.compile(r"set (?P<lines>(?:\w+=\S+ )*COMPOSE_PROFILES=pgbouncer(?: \w+=\w+)*)")
README = (ROOT / "pgbouncer" / "README.md").read_text(encoding="utf-8")
BROKEN = re.compile(
    r"InvalidSQLStatementName|DuplicatePreparedStatement|prepared statement .* does not exist|Traceback"
)


def test_refused_without_the_pooler(stack: Stack) -> None:
    """20 × 5 on max_connections=40: the migrate step refuses, `up` fails, no worker starts, the log says what to do."""
    stack.set(WORKERS=WORKERS, DB_POOL_MAX=POOL_MAX, POSTGRES_MAX_CONNECTIONS=40)
    refused = stack.up(check=False)
    assert refused.returncode != 0
    assert "migrate" in refused.stderr
    said = stack.logs("migrate")
    assert "WORKERS=20 × DB_POOL_MAX=5 + 10 overhead = 110 connections, available 37 of max_connections=40" in said
    assert "PLAN_CHECK=error" in said
    assert WAY_OUT.search(said), said
    assert stack.running("worker") == []


def test_the_way_out_works(stack: Stack) -> None:
    """The lines that it names, put into `.env`: all twenty start, each with its pool."""
    way_out = WAY_OUT.search(stack.logs("migrate"))
    assert way_out is not None
    stack.set(**dict(line.split("=") for line in way_out["lines"].split()))
    stack.up()
    assert set(stack.wait_for_processes(WORKERS + 1).values()) == {POOL_MAX}


def test_many_clients_share_few_connections(stack: Stack) -> None:
    """600 jobs of 20 × 5 clients: all finish, on no more of the server's connections than the pool has."""
    pgbouncer = {address for container in stack.running("pgbouncer") for address in container.addresses}
    shown = {row["key"]: int(row["value"]) for row in stack.pgbouncer("SHOW CONFIG") if row["value"].isdigit()}
    bound = shown["default_pool_size"] + shown["reserve_pool_size"]
    assert bound < WORKERS * POOL_MAX

    def through_pgbouncer(clients: Clients) -> bool:
        return clients.user == "app" and clients.host in pgbouncer

    with stack.connections() as samples:
        load = stack.load(600)
        load.wait_for(200)
        pools = {row["user"]: row for row in stack.pgbouncer("SHOW POOLS")}
        clients = int(pools["app"]["cl_active"]) + int(pools["app"]["cl_waiting"])
        outcomes = load.wait()
    outcomes.check(units=16)
    assert len(outcomes.by_process()) == WORKERS
    assert bound < clients <= (WORKERS + 1) * POOL_MAX
    assert shown["default_pool_size"] <= samples.peak(through_pgbouncer) <= bound
    everybody = samples.peak(lambda clients: clients.user == "app")
    assert everybody == samples.peak(through_pgbouncer), "nobody goes past the pooler"


def test_prepared_statements_are_kept(stack: Stack) -> None:
    """Clients prepare a statement once and bind it many times, PgBouncer likewise at its servers; none is missing."""
    stats = next(row for row in stack.pgbouncer("SHOW STATS_TOTALS") if row["database"] == "app")
    client, server, binds = (int(stats[name]) for name in ("client_parse_count", "server_parse_count", "bind_count"))
    assert 0 < client < binds / 10, stats
    assert 0 < server < binds / 10, stats
    assert not BROKEN.search(stack.logs())


def test_check_finds_nothing(stack: Stack) -> None:
    """`poolctl check` inside the stack is content."""
    said = stack.poolctl("check", check=False)
    assert "no findings" in said.stdout, said.stdout
    assert said.returncode == 0


def test_another_password(stack: Stack) -> None:
    """What pgbouncer/README.md says, typed: PgBouncer's role has the new password, and everybody gets through."""
    (block,) = re.findall(r"```console\n(\$ rm -f secrets/pgbouncer_password .*?)```", README, re.DOTALL)
    before = stack.secrets()
    for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
        stack.run("sh", "-c", command, timeout_s=UP_S)
    after = stack.secrets()
    stack.secrecy.secrets |= set(after.values())
    assert {name for name in after if after[name] != before[name]} == {"pgbouncer_password"}
    stack.wait_until_healthy()
    said = stack.poolctl("check", check=False)
    assert "no findings" in said.stdout, said.stdout
    stack.load(100).wait().check(units=16)
