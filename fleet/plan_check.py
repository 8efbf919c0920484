"""At start: does the fleet still fit the server, with this process in it? PLAN_CHECK says what follows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from arq.connections import ArqRedis
from redis.exceptions import RedisError

from config import Settings
from config.exit_codes import ExitCode
from db.database import Database
from db.errors import DRIVER_ERRORS, DatabaseError
from db.server import ServerReport, connect, read_server
from fleet.errors import FleetError, reason
from fleet.plan import Plan, PlanError, Supply, Verdict
from fleet.plan_inputs import demand_of, from_fleet, from_settings, goes_through_pooler, pooler_from
from fleet.registry import LIVE_S, Identity, ProcessEntry, read_earlier
from fleet.ways_out import ways_out

logger = logging.getLogger(__name__)

LOOK_S = 0.5  # between two looks at processes of which it is not sure that they live
CANNOT_TELL = (RedisError, *DRIVER_ERRORS, DatabaseError, FleetError)


class FleetTooLarge(FleetError):
    """With this process, the pools of all live processes may open more connections than the server has."""


class DeploymentTooLarge(FleetError):
    """The fleet that is about to be deployed does not fit the server."""

    exit_code = ExitCode.FINDING


async def check_plan(settings: Settings, database: Database, queue: ArqRedis, identity: Identity) -> None:
    """Log this process's share; where the fleet does not fit, warn, or with PLAN_CHECK=error raise FleetTooLarge.

    Call it when this process is in the registry. It counts itself and those that entered before it: of processes that
    start together the first ones find room, and the others find it taken. Whatever cannot be read is one warning, and
    the process goes on: a check must not be what stops a fleet.
    """
    if settings.fleet.plan_check == "off":
        return
    if settings.db.has_pooler:
        logger.info("PLAN_CHECK: behind a pooler the pools hold its clients, not the server's connections")
        return
    try:
        async with database.client.acquire_connection() as connection:
            supply = supply_of(await read_server(connection))
        fleet = await read_earlier(queue, identity)
        logger.info("%s", share_line(settings.db.pool_max, fleet, supply))
        if settings.fleet.plan_check == "error":
            fleet = await _without_the_dead(queue, identity, fleet, supply)
    except CANNOT_TELL as error:
        logger.warning("PLAN_CHECK: cannot tell whether the fleet fits: %s: %s", type(error).__name__, reason(error))
        return
    problem = too_large(fleet, supply, legacy=settings.legacy)
    if problem is None:
        return
    if settings.fleet.plan_check == "error":
        raise FleetTooLarge(f"{problem}; PLAN_CHECK=error, so this process does not start")
    logger.warning("%s", problem)


async def _without_the_dead(
    queue: ArqRedis, identity: Identity, fleet: list[ProcessEntry], supply: Supply
) -> list[ProcessEntry]:
    """The fleet as it is when it fits, or when each of its processes has shown that it lives; within LIVE_S.

    A process that died without goodbye stays in the registry for LIVE_S: the one that replaces it must not be refused
    for that. Those of this host need show nothing: read_earlier sees that they exist.
    """
    started = time.monotonic()

    def unsure() -> list[str]:
        elapsed = time.monotonic() - started
        return [entry.id for entry in fleet if entry.host != identity.host and entry.silent_s >= elapsed]

    if not _fits(fleet, supply) and (waited_for := unsure()):
        logger.info("PLAN_CHECK: too large, waits up to %g s for a sign of %s", LIVE_S, ", ".join(waited_for))
    while not _fits(fleet, supply) and unsure():
        await asyncio.sleep(LOOK_S)
        fleet = await read_earlier(queue, identity)
    return fleet


async def check_deployment(settings: Settings, worker: Settings, bot: Settings) -> str | None:
    """What is wrong with WORKERS × a worker's pool on this server, and the ways out; None if it fits.

    For the step before a deployment: nobody need be alive, and behind a pooler PGBOUNCER_* is what it will have.
    `settings` are those to ask the server with. Raises one of CANNOT_TELL if it cannot be asked.
    """
    if worker.fleet.workers is None or worker.fleet.plan_check == "off":
        return None
    async with connect(settings, direct=True, patient=True) as connection:
        supply = supply_of(await read_server(connection))
    demand = demand_of({"workers": worker.fleet.workers, **from_settings(worker, bot)}, legacy=worker.legacy)
    pooler = pooler_from(worker) if goes_through_pooler(worker) else None
    try:
        plan = Plan(demand, supply, pooler, profiles=worker.stack.compose_profiles)
    except PlanError as error:  # one pool alone is larger than the server
        return f"WORKERS={demand.workers}: {error}"
    return None if plan.verdict is not Verdict.OVER else f"{', and '.join(_too_many(plan))}: {_remedy(plan)}"


def _too_many(plan: Plan) -> Iterator[str]:
    """What is over: the server's connections, or, behind a pooler, also its clients."""
    demand, supply, pooler = plan.demand, plan.supply, plan.pooler
    fleet = f"WORKERS={demand.workers} × DB_POOL_MAX={demand.pool_max} + {demand.overhead} overhead = {plan.total_peak}"
    available = f"available {supply.available} of max_connections={supply.max_connections}"
    if pooler is None:
        yield f"{fleet} connections, {available}"
        return
    if pooler.verdict(plan.total_peak) is Verdict.OVER:
        yield f"{fleet} clients of PgBouncer, PGBOUNCER_MAX_CLIENT_CONN={pooler.max_client_conn} let in"
    if supply.verdict(plan.servers_peak) is Verdict.OVER:
        sizes = f"PGBOUNCER_DEFAULT_POOL_SIZE={pooler.default_pool_size} + {pooler.reserve_pool_size} reserve"
        yield f"PgBouncer's {sizes} + {demand.overhead} overhead = {plan.servers_peak} connections, {available}"


def supply_of(server: ServerReport) -> Supply:
    """What the server gives, as the plan counts it. Raises PlanError if no server can be so."""
    return Supply(
        max_connections=server.max_connections,
        superuser_reserved=server.superuser_reserved,
        reserved=server.reserved,
    )


def share_line(pool_max: int, fleet: Sequence[ProcessEntry], supply: Supply) -> str:
    """`up to 10 of 77 usable; 6 processes × 10 = 60`."""
    return f"up to {pool_max} of {supply.usable} usable; {_sum(fleet)}"


def too_large(fleet: Sequence[ProcessEntry], supply: Supply, *, legacy: bool = False) -> str | None:
    """What is wrong and what to do where the live pools may open more than the server has; else None.

    The ways out are those of `poolctl plan --live`. `legacy`: DATABASE_URL fixes the pools.
    """
    if _fits(fleet, supply):
        return None
    try:
        numbers = {"workers": 0, "pool_max": 1, **from_fleet(fleet)}
        remedy = _remedy(Plan(demand_of(numbers, legacy=legacy), supply))
    except PlanError:  # no worker lives, or the mean pool alone is larger than the server
        remedy = "lower the largest DB_POOL_MAX, or run fewer processes"
    return (
        f"the fleet is too large for the server: {_sum(fleet)}, available {supply.available} of"
        f" max_connections={supply.max_connections}: {remedy} (`poolctl plan --live` says more)"
    )


def _fits(fleet: Sequence[ProcessEntry], supply: Supply) -> bool:
    return supply.verdict(sum(entry.pool.limit for entry in fleet)) is not Verdict.OVER


def _remedy(plan: Plan) -> str:
    ways = [" ".join(f"{name}={value}" for name, value in way.changes.items()) for way in ways_out(plan)]
    return ", or ".join([*(f"set {way}" for way in ways), "run fewer workers"])


def _sum(fleet: Sequence[ProcessEntry]) -> str:
    """`6 processes × 10 = 60`; pools of different sizes each as a term of their own."""
    sizes = sorted(Counter(entry.pool.limit for entry in fleet).items())
    terms = " + ".join(f"{count} {'process' if count == 1 else 'processes'} × {size}" for size, count in sizes)
    return f"{terms} = {sum(count * size for size, count in sizes)}"
