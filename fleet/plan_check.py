"""At start: does the fleet still fit the server, with this process in it? PLAN_CHECK says what follows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import asyncpg
from arq.connections import ArqRedis
from redis.exceptions import RedisError
from tortoise.exceptions import BaseORMException

from config import Settings
from config.exit_codes import ExitCode
from config.groups import DatabaseSettings
from db.database import Database
from db.server import ServerReport, connect, read_server
from fleet.errors import FleetError
from fleet.plan import Demand, Plan, Supply, Verdict
from fleet.registry import ProcessEntry, read_fleet

logger = logging.getLogger(__name__)


class FleetTooLarge(FleetError):
    """With this process, the pools of all live processes may open more connections than the server has."""


class DeploymentTooLarge(FleetError):
    """The fleet that is about to be deployed does not fit the server."""

    exit_code = ExitCode.FINDING


async def check_plan(settings: Settings, database: Database, queue: ArqRedis) -> None:
    """Log this process's share; where the fleet does not fit, warn, or with PLAN_CHECK=error raise FleetTooLarge.

    Call it when this process is in the registry: processes that start together then count each other. Whatever
    cannot be read is one warning, and the process goes on: a check must not be what stops a fleet.
    """
    if settings.fleet.plan_check == "off":
        return
    if is_pooled(settings.db):
        logger.info("PLAN_CHECK: behind a pooler the pools hold its clients, not the server's connections")
        return
    try:
        async with database.client.acquire_connection() as connection:
            server = await read_server(connection)
        fleet = await read_fleet(queue)
    except (RedisError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, BaseORMException, FleetError) as error:
        logger.warning("PLAN_CHECK: cannot tell whether the fleet fits: %s: %s", type(error).__name__, error)
        return
    supply = supply_of(server)
    logger.info("%s", share_line(settings.db.pool_max, fleet, supply))
    problem = too_large(fleet, supply)
    if problem is None:
        return
    if settings.fleet.plan_check == "error":
        raise FleetTooLarge(f"{problem}; PLAN_CHECK=error, so this process does not start")
    logger.warning("%s", problem)


async def check_deployment(worker: Settings) -> str | None:
    """What is wrong with WORKERS × a worker's pool on this server, and the ways out; None if it fits.

    For the step before a deployment: nobody need be alive. Raises DatabaseError if the server cannot be asked.
    """
    workers = worker.fleet.workers
    if workers is None or worker.fleet.plan_check == "off" or is_pooled(worker.db):
        return None
    async with connect(worker, direct=True, patient=True) as connection:
        server = await read_server(connection)
    demand = Demand(workers=workers, pool_max=worker.db.pool_max, pool_min=worker.db.pool_min)
    plan = Plan(demand, supply_of(server))
    if plan.verdict is not Verdict.OVER:
        return None
    ways = "; or ".join(" ".join(f"{name}={value}" for name, value in way.env.items()) for way in plan.ways_out())
    total = f"{plan.total_peak} connections, available {plan.supply.available}"
    return (
        f"WORKERS={workers} × DB_POOL_MAX={demand.pool_max} + {demand.overhead} overhead = {total}"
        f" of max_connections={plan.supply.max_connections}: set {ways}"
    )


def is_pooled(db: DatabaseSettings) -> bool:
    """Whether DB_HOST is a pooler: the server itself is elsewhere."""
    return db.addresses != db.direct_addresses


def supply_of(server: ServerReport) -> Supply:
    """What the server gives, as the plan counts it."""
    return Supply(
        max_connections=server.max_connections,
        superuser_reserved=server.superuser_reserved,
        reserved=server.reserved,
    )


def share_line(pool_max: int, fleet: Sequence[ProcessEntry], supply: Supply) -> str:
    """`up to 10 of 77 usable; 6 processes × 10 = 60`."""
    return f"up to {pool_max} of {supply.usable} usable; {_sum(fleet)}"


def too_large(fleet: Sequence[ProcessEntry], supply: Supply) -> str | None:
    """What is wrong and what to do where the live pools may open more than the server has; else None."""
    total = sum(entry.pool.limit for entry in fleet)
    if supply.verdict(total) is not Verdict.OVER:
        return None
    each = supply.usable // max(1, len(fleet))
    lower = f"lower DB_POOL_MAX to {each}, " if each else ""
    raised = supply.raised_for(total).max_connections
    return (
        f"the fleet is too large for the server: {_sum(fleet)}, available {supply.available} of"
        f" max_connections={supply.max_connections}: {lower}run fewer processes, raise max_connections to {raised},"
        f" or put a pooler in between (`poolctl plan --live` shows each)"
    )


def _sum(fleet: Sequence[ProcessEntry]) -> str:
    """`6 processes × 10 = 60`; pools of different sizes each as a term of their own."""
    sizes = sorted(Counter(entry.pool.limit for entry in fleet).items())
    terms = " + ".join(f"{count} {'process' if count == 1 else 'processes'} × {size}" for size, count in sizes)
    return f"{terms} = {sum(count * size for size, count in sizes)}"
