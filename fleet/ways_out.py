"""The ways out of a plan that does not fit, each as lines for `.env`. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from config.stack import ALL_PROFILES, LARGEST_INT, PROFILE
from fleet.plan import Plan, Pooler, Verdict

POOLER_FROM_WORKERS = 10  # below, a pooler is more to run than it saves
POOLED_POOL_MAX = 5  # each process's pool in front of a pooler: waiting there is cheaper than waiting in the server


@dataclass(frozen=True, slots=True)
class WayOut:
    """One change after which the plan fits, what it costs, and the lines that make it so whatever is set now."""

    name: str
    costs: str
    plan: Plan  # with the change applied
    changes: dict[str, str]  # of its lines those that the change is about

    @property
    def env(self) -> dict[str, str]:
        """Complete lines for `.env`."""
        return env_of(self.plan)

    @property
    def command(self) -> str:
        """What puts the lines in force."""
        return command_of(self.plan)


def env_of(plan: Plan) -> dict[str, str]:
    """A plan as lines for `.env`.

    The pools are named with their roles, as DB_POOL_MAX alone would change the bots' as well, and would not count where
    WORKER_DB_POOL_MAX is set. Beside DATABASE_URL, which fixes the pools, they must not be named at all. Profiles other
    than the pooler's stay on.
    """
    demand, pooler = plan.demand, plan.pooler
    env = {"WORKERS": demand.workers}
    if not demand.legacy:
        env |= {"WORKER_DB_POOL_MIN": demand.pool_min, "WORKER_DB_POOL_MAX": demand.pool_max}
        if demand.bots:
            env |= {"BOT_DB_POOL_MIN": demand.bot_pool_min, "BOT_DB_POOL_MAX": demand.bot_pool_max}
    env["POSTGRES_MAX_CONNECTIONS"] = plan.supply.max_connections
    lines = {name: str(value) for name, value in env.items()}
    others = [profile for profile in plan.profiles if profile not in (PROFILE, ALL_PROFILES)]
    if pooler is not None:
        with_pooler = plan.profiles if ALL_PROFILES in plan.profiles else (*others, PROFILE)
        lines["COMPOSE_PROFILES"] = ",".join(with_pooler)
        for name in ("default_pool_size", "reserve_pool_size", "max_client_conn", "max_db_connections"):
            lines[f"PGBOUNCER_{name.upper()}"] = str(getattr(pooler, name))
    elif len(others) < len(plan.profiles):
        lines["COMPOSE_PROFILES"] = ",".join(others)
    return lines


def command_of(plan: Plan) -> str:
    """What starts the plan's processes; it also restarts whatever has other settings now, PostgreSQL among them."""
    bots = f" --scale bot={plan.demand.bots + 1}" if plan.demand.bots else ""
    return f"docker compose up -d --scale worker={plan.demand.workers}{bots}"


def ways_out(plan: Plan) -> tuple[WayOut, ...]:
    """The changes of one kind after which the peak fits; none if it does already."""
    if plan.verdict is Verdict.FITS:
        return ()
    ways = (_smaller_pools(plan), _larger_server(plan), _with_pooler(plan), _another_pooler(plan))
    return tuple(way for way in ways if way is not None)


def _way(plan: Plan, name: str, costs: str, changed: Plan) -> WayOut:
    before = env_of(plan)
    changes = {name: value for name, value in env_of(changed).items() if before.get(name) != value}
    return WayOut(name, costs, changed, changes)


def _smaller_pools(plan: Plan) -> WayOut | None:
    pool_max = plan.max_pool
    if pool_max < 1 or plan.demand.legacy:
        return None
    demand = replace(plan.demand, pool_max=pool_max, pool_min=min(plan.demand.pool_min, pool_max))
    costs = f"fewer jobs at once in each worker: {pool_max} instead of {plan.demand.pool_max}"
    return _way(plan, "smaller pools", costs, replace(plan, demand=demand))


def _larger_server(plan: Plan) -> WayOut | None:
    if plan.pooler is not None and plan.pooler.verdict(plan.total_peak) is Verdict.OVER:
        return None  # the pooler is what is too small
    supply = plan.supply.raised_for(plan.servers_peak)
    if supply is None:
        return None
    more_mb = supply.memory_mb - plan.supply.memory_mb
    costs = f"a restart of PostgreSQL (a reload is not enough) and up to {more_mb} MB more memory there"
    return _way(plan, "a larger max_connections", costs, replace(plan, supply=supply))


def _with_pooler(plan: Plan) -> WayOut | None:
    room = plan.supply.usable - plan.demand.overhead
    if plan.pooler is not None or plan.demand.workers < POOLER_FROM_WORKERS or room < 1 or plan.demand.legacy:
        return None
    default = Pooler()
    pool_max = min(plan.demand.pool_max, POOLED_POOL_MAX)
    demand = replace(plan.demand, pool_max=pool_max, pool_min=min(plan.demand.pool_min, pool_max))
    clients = demand.deploy + demand.overhead
    if clients > LARGEST_INT:
        return None
    reserve = default.reserve_pool_size if room > default.reserve_pool_size else 0
    pooler = Pooler(
        default_pool_size=min(default.default_pool_size, room - reserve),
        reserve_pool_size=reserve,
        max_client_conn=max(default.max_client_conn, clients),
    )
    changed = replace(plan, demand=demand, pooler=pooler)
    costs = f"one more service; {changed.total_peak} clients share {pooler.servers} connections of the server"
    return _way(plan, "PgBouncer", costs, changed)


def _another_pooler(plan: Plan) -> WayOut | None:
    """Other settings of the pooler that there is: more clients, fewer connections to the server, or both."""
    if plan.pooler is None or plan.total_deploy > LARGEST_INT:
        return None
    pooler, costs = plan.pooler, []
    if pooler.verdict(plan.total_peak) is Verdict.OVER:
        pooler = replace(pooler, max_client_conn=plan.total_deploy)
        costs.append(f"up to {plan.total_deploy} open files in PgBouncer")
    if plan.supply.verdict(plan.servers_peak) is not Verdict.FITS:

        def with_size(size: int) -> Plan:
            return replace(plan, pooler=replace(pooler, default_pool_size=size))

        sizes = range(1, pooler.default_pool_size + 1)
        most = bisect_left(sizes, True, key=lambda size: with_size(size).verdict is not Verdict.FITS)
        if most < 1:
            return None
        smaller = replace(pooler, default_pool_size=most)
        costs.append(f"longer waits in PgBouncer: {smaller.servers} connections of the server, not {pooler.servers}")
        pooler = smaller
    return _way(plan, "other settings of PgBouncer", "; ".join(costs), replace(plan, pooler=pooler))
