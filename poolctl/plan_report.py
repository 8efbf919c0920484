"""A plan as text, as JSON and as `.env` lines. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from fleet.plan import Plan, WayOut


@dataclass(frozen=True, slots=True)
class RedisShare:
    """Connections that the fleet may open to Redis, against what Redis lets in."""

    processes: int
    max_connections: int  # REDIS_MAX_CONNECTIONS
    maxclients: int

    @property
    def total(self) -> int:
        """All processes with full pools."""
        return self.processes * self.max_connections


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
            "max_connections": plan.supply.max_connections,
            "reserved": plan.supply.max_connections - plan.supply.available,
            "available": plan.supply.available,
            "usable": plan.supply.usable,
            "verdict": plan.verdict,
            "verdict_deploy": plan.verdict_deploy,
            "max_workers": plan.max_workers,
            "max_pool": plan.max_pool,
            "memory_mb": plan.supply.memory_mb,
            "pooler": None
            if plan.pooler is None
            else {
                "clients": plan.demand.peak,
                "max_client_conn": plan.pooler.max_client_conn,
                "servers": plan.servers_peak,
                "servers_deploy": plan.servers_deploy,
            },
            "redis": {"total": redis.total, "maxclients": redis.maxclients},
            "ways_out": [_way_as_json(way) for way in plan.ways_out()],
        },
        indent=2,
    )


def as_env(plan: Plan) -> str:
    """The plan's own settings as `.env` lines, and each way out as a commented block."""
    demand = plan.demand
    lines = [
        f"# {plan.total_peak} connections at the peak, {plan.supply.usable} usable: {plan.verdict}",
        f"WORKERS={demand.workers}",
        f"DB_POOL_MIN={demand.pool_min}",
        f"DB_POOL_MAX={demand.pool_max}",
        f"POSTGRES_MAX_CONNECTIONS={plan.supply.max_connections}",
    ]
    for way in plan.ways_out():
        lines += ["", f"# way out: {way.name}, costs {way.costs}"]
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
            f"pooler: {demand.peak} of {pooler.max_client_conn} clients share {pooler.servers} connections"
            f" (default_pool_size={pooler.default_pool_size}, reserve_pool_size={pooler.reserve_pool_size})"
        )


def _totals(plan: Plan) -> Iterator[str]:
    at_server = "" if plan.pooler is None else ", at the server"
    rows = [("at rest", plan.total_idle, "the floors of all pools")]
    if plan.now is not None:
        rows.append(("now", plan.now, "counted at the server"))
    rows.append((f"peak{at_server}", plan.servers_peak, str(plan.verdict)))
    rows.append((f"deployment{at_server}", plan.servers_deploy, str(plan.verdict_deploy)))
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
    line = (
        f"Redis: {redis.processes} processes × {redis.max_connections} = {redis.total} connections at most,"
        f" maxclients={redis.maxclients}"
    )
    if redis.total > redis.maxclients:
        line += f": too many, lower REDIS_MAX_CONNECTIONS to {max(1, redis.maxclients // redis.processes)}"
    return line


def _ways_out(plan: Plan) -> Iterator[str]:
    for number, way in enumerate(plan.ways_out(), 1):
        yield ""
        yield f"way out {number}: {way.name}: peak {way.plan.servers_peak}, {way.plan.supply.usable} usable"
        yield f"  costs: {way.costs}; {way.memory_mb} MB for connections"
        yield from (f"  {name}={value}" for name, value in way.env.items())
        yield f"  {way.command}"


def _way_as_json(way: WayOut) -> dict[str, object]:
    return {
        "name": way.name,
        "env": way.env,
        "command": way.command,
        "costs": way.costs,
        "memory_mb": way.memory_mb,
        "total_peak": way.plan.servers_peak,
        "usable": way.plan.supply.usable,
    }
