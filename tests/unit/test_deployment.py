"""The fleet that compose makes of its variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import SettingsError
from fleet.plan import PlanError, Verdict
from poolctl.deployment import DEFAULT_WORKERS, Deployment
from poolctl.dotenv_changes import DIRECT, POOLED, Order, applied, changes, ports

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "2 workers, pools of 10, straight to the database"),
        ({"WORKERS": "", "DB_HOST": ""}, "2 workers, pools of 10, straight to the database"),
        ({"WORKERS": "1", "WORKER_DB_POOL_MAX": "3"}, "1 worker, pools of 3, straight to the database"),
        ({"COMPOSE_PROFILES": "a, pgbouncer"}, "2 workers, pools of 10, through PgBouncer"),
        ({"COMPOSE_PROFILES": "*"}, "2 workers, pools of 10, through PgBouncer"),
        ({"COMPOSE_PROFILES": "pgbouncer", "DB_HOST": "postgres"}, "2 workers, pools of 10, straight to the database"),
        ({"COMPOSE_PROFILES": "pgbouncer", "PGBOUNCER_PORT": "7000"}, "2 workers, pools of 10, through PgBouncer"),
        ({"DB_HOST": "pgbouncer"}, "2 workers, pools of 10, through PgBouncer"),
        ({"DB_DIRECT_HOST": "postgres"}, "2 workers, pools of 10, straight to the database"),
        ({"DB_PASSWORD_FILE": "/run/secrets/nowhere"}, "2 workers, pools of 10, straight to the database"),
        ({"DATABASE_URL_FILE": "/run/secrets/nowhere"}, "2 workers, pools of 5, straight to the database"),
        ({"DATABASE_URL": "postgres://u:p@h/d"}, "2 workers, pools of 5, straight to the database"),
    ],
)
def test_what_a_container_makes_of_it(values: dict[str, str], text: str) -> None:
    """As the image's entrypoint fills in addresses; files of secrets are in the container only."""
    assert str(Deployment.of(values)) == text


def test_the_stack_is_as_it_is_told_here() -> None:
    """Hosts, ports and the default number of workers are those of docker-compose.yml and the entrypoint."""
    compose = (ROOT / "docker-compose.yml").read_text()
    entrypoint = (ROOT / "deploy/image/entrypoint.sh").read_text()
    assert f"replicas: ${{WORKERS:-{DEFAULT_WORKERS}}}" in compose
    assert f"STACK_POSTGRES_HOST: {DIRECT}\n" in compose
    assert f"STACK_PGBOUNCER_HOST: {POOLED}\n" in compose
    assert f"${{DB_PORT:-${{PGBOUNCER_PORT:-{ports({})[POOLED]}}}}}" in entrypoint


def test_the_plan_has_the_stack_s_numbers() -> None:
    plan = Deployment.of({"COMPOSE_PROFILES": "pgbouncer,a", "POSTGRES_MAX_CONNECTIONS": "40", "WORKERS": "20"}).plan
    assert (plan.supply.max_connections, plan.demand.workers, plan.profiles) == (40, 20, ("pgbouncer", "a"))


@pytest.mark.parametrize(
    ("values", "error"), [({"WORKERS": "many"}, SettingsError), ({"DB_POOL_MAX": "200"}, PlanError)]
)
def test_no_fleet(values: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error):
        Deployment.of(values)


@pytest.mark.parametrize("order", [Order(workers=20), Order(workers=20, pgbouncer=False)])
@pytest.mark.parametrize("dotenv", [{}, {"WORKER_DB_POOL_MAX": "9"}, {"DB_POOL_MIN": "6"}])
def test_orders_lead_out(order: Order, dotenv: dict[str, str]) -> None:
    """Each order that is offered makes the plan fit, and keeps what else was ordered."""
    after = applied(dotenv, changes(order, dotenv, {}))
    offered = list(Deployment.of(after).orders_out(order))
    assert [each.pgbouncer for each in offered] == [order.pgbouncer, True]
    for each in offered:
        assert Deployment.of(applied(dotenv, changes(each, dotenv, {}))).plan.verdict is Verdict.FITS
        assert each.workers == 20


def test_no_order_beside_a_url() -> None:
    """There the pools cannot be ordered."""
    deployment = Deployment.of({"WORKERS": "50", "DATABASE_URL": "postgres://u:p@h/d"})
    assert deployment.plan.verdict is Verdict.OVER
    assert list(deployment.orders_out(Order(workers=50))) == []
