"""A plan as text, as JSON and as `.env` lines. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from fleet.plan import Plan, Pooler, Verdict
from fleet.ways_out import WayOut, command_of, env_of, ways_out

LEGACY = (
    "DATABASE_URL fixes the pools. For ways out by pools or PgBouncer set DB_HOST, DB_PORT, DB_USER, DB_PASSWORD and"
    " DB_NAME instead of it"
)


@dataclass(frozen=True, slots=True)
class RedisShare:
    """Connections that the fleet may open to Redis, against what Redis lets in, if that is known."""

    processes: int
    max_connections: int  # REDIS_MAX_CONNECTIONS
    maxclients: int | None

    @property
    def total(self) -> int:
        """All processes with full pools."""
        return self.processes * self.max_connections

    @property
    def verdict(self) -> Verdict | None:
        """Redis needs no head room: what it keeps for itself is not among its maxclients."""
        if self.maxclients is None:
            return None
        return Verdict.OVER if self.total > self.maxclients else Verdict.FITS


def as_text(plan: Plan, redis: RedisShare) -> str:
    """What a person reads: the sum, the verdicts, the edges, and the ways out."""
    return "\n".join((*_sum(plan), "", *_totals(plan), "", *_edges(plan), _redis(redis), *_ways_out(plan)))


def as_json(plan: Plan, redis: RedisShare) -> str:
    """One object; the keys are stable."""
    return json.dumps(
        {
            "workers": plan.demand.workers,
            "pool_max": plan.demand.pool_max,
            "bots": plan.demand.bots,
            "bot_pool_max": plan.demand.bot_pool_max,
            "overhead": plan.demand.overhead,
            "total_idle": plan.total_idle,
            "total_now": plan.now,
            "total_peak": plan.total_peak,
            "total_deploy": plan.total_deploy,
            "servers_peak": plan.servers_peak,
            "servers_deploy": plan.servers_deploy,
            "max_connections": plan.supply.max_connections,
            "reserved": plan.supply.max_connections - plan.supply.available,
            "available": plan.supply.available,
            "usable": plan.supply.usable,
            "verdict": plan.verdict,
            "verdict_deploy": plan.verdict_deploy,
            "max_workers": plan.max_workers,
            "max_pool": plan.max_pool,
            "memory_mb": plan.supply.memory_mb,
            "pooler": None if plan.pooler is None else _pooler_as_json(plan, plan.pooler),
            "redis": {"total": redis.total, "maxclients": redis.maxclients, "verdict": redis.verdict},
            "ways_out": [_way_as_json(way) for way in ways_out(plan)],
        },
        indent=2,
    )


def as_env(plan: Plan) -> str:
    """The plan's own settings as `.env` lines, and each way out as a commented block."""
    supply, pooler = plan.supply, plan.pooler
    lines = [
        f"# {plan.servers_peak} connections at the peak, {supply.usable} usable: {supply.verdict(plan.servers_peak)}"
    ]
    if pooler is not None:
        clients = plan.total_peak
        lines.append(f"# {clients} clients of PgBouncer, {pooler.max_client_conn} let in: {pooler.verdict(clients)}")
    if plan.demand.legacy:
        lines.append(f"# {LEGACY}")
    lines.append(f"# {command_of(plan)}")
    lines += [f"{name}={value}" for name, value in env_of(plan).items()]
    for way in ways_out(plan):
        lines += ["", f"# way out: {way.name}, costs {way.costs}", f"# {way.command}"]
        lines += [f"#{name}={value}" for name, value in way.env.items()]
    return "\n".join(lines)


def _sum(plan: Plan) -> Iterator[str]:
    demand, supply, pooler = plan.demand, plan.supply, plan.pooler
    bots = f" + {demand.bots} bots × {demand.bot_pool_max}" if demand.bots else ""
    yield (
        f"fleet:  {demand.workers} workers × {demand.pool_max}{bots} + {demand.overhead} overhead"
        f" = {plan.total_peak} connections"
    )
    yield (
        f"server: max_connections={supply.max_connections}, {supply.max_connections - supply.available} reserved,"
        f" {supply.available} available, {supply.usable} usable with {supply.head_room_percent} % head room,"
        f" {supply.memory_mb} MB for connections"
    )
    if pooler is not None:
        yield (
            f"pooler: {plan.total_peak} of {pooler.max_client_conn} clients share {pooler.servers} connections"
            f" ({'; '.join(_pools(pooler))})"
        )


def _pools(pooler: Pooler) -> Iterator[str]:
    """What its connections follow from: the settings for all, how many pools, and each database's own settings."""
    limit = f", max_db_connections={pooler.max_db_connections}" if pooler.max_db_connections else ""
    yield f"default_pool_size={pooler.default_pool_size}, reserve_pool_size={pooler.reserve_pool_size}{limit}"
    if pooler.pools > 1:
        yield f"{pooler.pools} pools"
    for database in pooler.databases:
        names = ("pool_size", "reserve_pool_size", "max_db_connections")
        own = [f"{name}={value}" for name in names if (value := getattr(database, name)) is not None]
        if own:
            yield f"{database.name}: {', '.join(own)}"


def _totals(plan: Plan) -> Iterator[str]:
    supply, pooler = plan.supply, plan.pooler
    at_server = "" if pooler is None else ", at the server"
    rows = [("at rest", plan.total_idle, "the floors of all pools")]
    if plan.now is not None:
        rows.append(("now", plan.now, "counted at the server"))
    rows.append((f"peak{at_server}", plan.servers_peak, str(supply.verdict(plan.servers_peak))))
    rows.append((f"deployment{at_server}", plan.servers_deploy, str(supply.verdict(plan.servers_deploy))))
    if pooler is not None:
        rows.append(("peak, clients", plan.total_peak, str(pooler.verdict(plan.total_peak))))
        rows.append(("deployment, clients", plan.total_deploy, str(pooler.verdict(plan.total_deploy))))
    yield from (f"{name:<26}{connections:>6}  {remark}" for name, connections, remark in rows)


def _edges(plan: Plan) -> Iterator[str]:
    demand = plan.demand
    if plan.max_workers:
        yield f"the most that fits: {plan.max_workers} workers with pools of {demand.pool_max}"
    else:
        yield f"not one worker with a pool of {demand.pool_max} fits"
    if plan.max_pool:
        yield f"                or: {demand.workers} workers with pools of {plan.max_pool}"


def _redis(redis: RedisShare) -> str:
    known = "unknown" if redis.maxclients is None else redis.maxclients
    line = (
        f"Redis: {redis.processes} processes × {redis.max_connections} = {redis.total} connections at most,"
        f" maxclients={known}"
    )
    if redis.maxclients is None or redis.verdict is Verdict.FITS:
        return line
    if redis.processes > redis.maxclients:
        return f"{line}: over, raise maxclients to {redis.total}"
    return f"{line}: over, lower REDIS_MAX_CONNECTIONS to {redis.maxclients // redis.processes}"


def _ways_out(plan: Plan) -> Iterator[str]:
    ways = ways_out(plan)
    for number, way in enumerate(ways, 1):
        yield ""
        yield f"way out {number}: {way.name}: peak {way.plan.servers_peak}, {way.plan.supply.usable} usable"
        yield f"  costs: {way.costs}; {way.plan.supply.memory_mb} MB for connections"
        yield from (f"  {name}={value}" for name, value in way.env.items())
        yield f"  {way.command}"
    if plan.demand.legacy and plan.verdict is not Verdict.FITS:
        yield from ("", LEGACY)


def _pooler_as_json(plan: Plan, pooler: Pooler) -> dict[str, object]:
    return {
        "clients_peak": plan.total_peak,
        "clients_deploy": plan.total_deploy,
        "verdict": pooler.verdict(plan.total_peak),
        "verdict_deploy": pooler.verdict(plan.total_deploy),
        "max_client_conn": pooler.max_client_conn,
        "default_pool_size": pooler.default_pool_size,
        "reserve_pool_size": pooler.reserve_pool_size,
        "max_db_connections": pooler.max_db_connections,
        "pools": pooler.pools,
        "servers": pooler.servers,
    }


def _way_as_json(way: WayOut) -> dict[str, object]:
    return {
        "name": way.name,
        "env": way.env,
        "command": way.command,
        "costs": way.costs,
        "memory_mb": way.plan.supply.memory_mb,
        "total_peak": way.plan.total_peak,
        "servers_peak": way.plan.servers_peak,
        "usable": way.plan.supply.usable,
    }
