"""What a plan is made of: read from settings, and from the processes that live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from config import Settings
from fleet.plan import Demand, Pooler, Supply, overhead_with
from fleet.registry import ProcessEntry

PREFIXES = {"worker": "", "bot": "bot_"}  # of the numbers of a role's pools


def from_settings(worker: Settings, bot: Settings) -> dict[str, int]:
    """Both roles' pools, by the names of Demand."""
    numbers: dict[str, int] = {}
    for prefix, settings in (("", worker), ("bot_", bot)):
        numbers |= {f"{prefix}pool_min": settings.db.pool_min, f"{prefix}pool_max": settings.db.pool_max}
    return numbers


def from_fleet(fleet: Sequence[ProcessEntry]) -> dict[str, int]:
    """How many live of each role, and their pools; nothing of a role of which none lives.

    A plan knows one size for all pools of a role: where they differ it is their mean, rounded up, so that the sum is
    that of the fleet, or more by less than one connection for each process.
    """
    numbers: dict[str, int] = {}
    for role, prefix in PREFIXES.items():
        pools = [entry.pool for entry in fleet if entry.role == role]
        if pools:
            numbers[f"{prefix}pool_max"] = _mean([pool.limit for pool in pools])
            numbers[f"{prefix}pool_min"] = _mean([pool.floor for pool in pools])
            numbers |= {"workers": len(pools)} if role == "worker" else {"bots": len(pools) - 1}
    return numbers


def demand_of(numbers: Mapping[str, int], *, legacy: bool = False) -> Demand:
    """The demand; its overhead covers at least the one bot's pool, unless `overhead` is among the numbers.

    `legacy`: DATABASE_URL fixes the pools. Raises PlanError.
    """
    overhead = overhead_with(numbers.get("bot_pool_max", 0))
    return Demand(**{"overhead": overhead, **numbers}, legacy=legacy)


def supply_from(settings: Settings) -> Supply:
    """The server that POSTGRES_MAX_CONNECTIONS starts."""
    return Supply(max_connections=settings.stack.postgres_max_connections)


def pooler_from(settings: Settings) -> Pooler:
    """PgBouncer as PGBOUNCER_* sets it up, whether it is there or not."""
    pgbouncer = settings.pgbouncer
    return Pooler(
        default_pool_size=pgbouncer.default_pool_size,
        reserve_pool_size=pgbouncer.reserve_pool_size,
        max_client_conn=pgbouncer.max_client_conn,
        max_db_connections=pgbouncer.max_db_connections,
    )


def goes_through_pooler(settings: Settings) -> bool:
    """Whether a process with these settings goes through a pooler once compose has started it.

    Where DB_HOST is not given the profile decides, as in the image's entrypoint; else it may be PgBouncer itself.
    """
    db = settings.db
    if db.has_pooler:
        return True
    if settings.origins["DB_HOST"] == "default":
        return settings.stack.pgbouncer
    return settings.pgbouncer.address in db.addresses.split(",")


def _mean(numbers: Sequence[int]) -> int:
    return -(-sum(numbers) // len(numbers))  # rounded up
