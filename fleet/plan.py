"""How many connections a fleet takes, and what to do when they are too many. Pure arithmetic: no I/O, no clock.

    total_peak = workers × pool_max + bots × bot_pool_max + overhead
    available  = max_connections − superuser_reserved − reserved      what ordinary roles can get at all
    usable     = ⌊available × (100 − head_room) / 100⌋                the head-room line

A total `fits` up to usable, is `tight` up to available, and `over` above that. There is no other definition of these
lines in the project: plan, check at start, alerts and advice share this one. Behind a pooler the processes'
connections are its clients, and what the server sees are the pooler's own, and the overhead beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from config.exit_codes import ExitCode
from fleet.errors import FleetError

POOLER_FROM_WORKERS = 10  # below, a pooler is more to run than it saves
POOLED_POOL_MAX = 5  # each process's pool in front of a pooler: waiting there is cheaper than waiting in the server


class Verdict(StrEnum):
    """How a number of connections stands to what the server has."""

    FITS = "fits"
    TIGHT = "tight"
    OVER = "over"


class PlanError(FleetError):
    """An input that no plan can be made of. One line: its name, its value, its bound, what to do."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The processes and their pools. Raises PlanError when made of numbers that cannot be."""

    workers: int
    pool_max: int
    pool_min: int = 0
    bots: int = 0  # beside the one that is part of the overhead
    bot_pool_max: int = 10
    bot_pool_min: int = 0
    overhead: int = 10  # connections of the bot, an interface, migrations and an administrator together
    surge: int = 2  # during a deployment: old and new processes of a role side by side; 1 if the old stop first

    def __post_init__(self) -> None:
        _at_least(1, self, "workers", "pool_max", "bot_pool_max", "surge")
        _at_least(0, self, "bots", "overhead", "pool_min", "bot_pool_min")
        for low, high in (("pool_min", "pool_max"), ("bot_pool_min", "bot_pool_max")):
            if getattr(self, low) > getattr(self, high):
                raise PlanError(
                    f"{low}={getattr(self, low)} is greater than {high}={getattr(self, high)}: "
                    f"lower {low} or raise {high}"
                )

    @property
    def idle(self) -> int:
        """Connections of the processes when nothing is to be done: the floors."""
        return self.workers * self.pool_min + self.bots * self.bot_pool_min

    @property
    def peak(self) -> int:
        """Connections of the processes when all pools are full."""
        return self.workers * self.pool_max + self.bots * self.bot_pool_max

    @property
    def deploy(self) -> int:
        """Connections of the processes at the peak of a deployment of all roles."""
        return self.surge * self.peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What the server gives."""

    max_connections: int = 100
    superuser_reserved: int = 3  # superuser_reserved_connections
    reserved: int = 0  # reserved_connections (PostgreSQL 16+)
    head_room_percent: int = 20
    memory_per_connection_mb: int = 10  # a backend's own memory under ordinary work, without shared buffers

    def __post_init__(self) -> None:
        _at_least(1, self, "max_connections")
        _at_least(0, self, "superuser_reserved", "reserved", "head_room_percent", "memory_per_connection_mb")
        if self.head_room_percent > 99:
            raise PlanError(f"head_room_percent={self.head_room_percent} is greater than 99: give 0 to 99")
        if self.available < 1:
            raise PlanError(
                f"max_connections={self.max_connections} is not greater than the "
                f"{self.superuser_reserved + self.reserved} reserved ones: raise max_connections"
            )

    @property
    def available(self) -> int:
        """Connections that ordinary roles can get at all.

        PostgreSQL keeps the reserved number of slots free; it has no separate places for superusers. So each session
        of a superuser takes one of these, too (seen on 15 and 18), and belongs to the overhead.
        """
        return self.max_connections - self.superuser_reserved - self.reserved

    @property
    def usable(self) -> int:
        """The head-room line."""
        return self.available * (100 - self.head_room_percent) // 100

    @property
    def memory_mb(self) -> int:
        """What the server needs for its connections when all are in use."""
        return self.max_connections * self.memory_per_connection_mb

    def verdict(self, connections: int) -> Verdict:
        """How so many connections stand to what there is."""
        if connections > self.available:
            return Verdict.OVER
        return Verdict.TIGHT if connections > self.usable else Verdict.FITS

    def raised_for(self, connections: int) -> Supply:
        """The smallest supply, not smaller than this one, in which so many connections fit."""
        needed = -(-connections * 100 // (100 - self.head_room_percent))  # rounded up
        return replace(
            self, max_connections=max(self.max_connections, needed + self.superuser_reserved + self.reserved)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooler:
    """PgBouncer's settings, by its own names."""

    default_pool_size: int = 25
    reserve_pool_size: int = 5
    pairs: int = 1  # databases × users: PgBouncer has a pool for each
    max_client_conn: int = 1000
    max_db_connections: int = 0  # 0 = no limit; of all pairs together, for one database

    def __post_init__(self) -> None:
        _at_least(1, self, "default_pool_size", "pairs", "max_client_conn")
        _at_least(0, self, "reserve_pool_size", "max_db_connections")

    @property
    def servers(self) -> int:
        """Connections to the server at most."""
        pools = self.pairs * (self.default_pool_size + self.reserve_pool_size)
        return min(pools, self.max_db_connections) if self.max_db_connections else pools


@dataclass(frozen=True, slots=True)
class WayOut:
    """One change after which the plan fits: settings to write into `.env`, and what it costs."""

    name: str
    env: dict[str, str]
    command: str
    costs: str
    memory_mb: int  # of the server, with all its connections in use
    plan: Plan  # with the change applied


@dataclass(frozen=True, slots=True)
class Plan:
    """A fleet against a server, perhaps behind a pooler. `now` is what the server has at this moment, if known."""

    demand: Demand
    supply: Supply
    pooler: Pooler | None = None
    now: int | None = None

    @property
    def total_idle(self) -> int:
        """Connections of the processes at rest."""
        return self.demand.idle

    @property
    def total_peak(self) -> int:
        """Connections of the whole fleet with all pools full, and the overhead."""
        return self.demand.peak + self.demand.overhead

    @property
    def total_deploy(self) -> int:
        """The same during a deployment."""
        return self.demand.deploy + self.demand.overhead

    @property
    def servers_peak(self) -> int:
        """Connections that the server sees at the peak: without a pooler all of them."""
        return self._servers(self.demand.peak)

    @property
    def servers_deploy(self) -> int:
        """The same during a deployment."""
        return self._servers(self.demand.deploy)

    @property
    def verdict(self) -> Verdict:
        """Of the peak."""
        return self._verdict(self.demand.peak)

    @property
    def verdict_deploy(self) -> Verdict:
        """Of the peak of a deployment."""
        return self._verdict(self.demand.deploy)

    @property
    def max_workers(self) -> int:
        """The most workers of this pool that still fit; 0 if none does."""
        room = self._most_connections() - self.demand.bots * self.demand.bot_pool_max
        return max(0, room // self.demand.pool_max)

    @property
    def max_pool(self) -> int:
        """The largest pool of so many workers that still fits; 0 if none does."""
        room = self._most_connections() - self.demand.bots * self.demand.bot_pool_max
        return max(0, room // self.demand.workers)

    def ways_out(self) -> tuple[WayOut, ...]:
        """The changes of one kind after which the peak fits; none if it does already."""
        if self.verdict is Verdict.FITS:
            return ()
        ways = (self._smaller_pools(), self._larger_server(), self._with_pooler())
        return tuple(way for way in ways if way is not None)

    def _servers(self, connections: int) -> int:
        if self.pooler is not None:
            connections = min(connections, self.pooler.servers)
        return connections + self.demand.overhead

    def _verdict(self, connections: int) -> Verdict:
        if self.pooler is not None and connections > self.pooler.max_client_conn:
            return Verdict.OVER
        return self.supply.verdict(self._servers(connections))

    def _most_connections(self) -> int:
        """The most connections of the processes that fit; negative if the overhead alone does not."""
        room = self.supply.usable - self.demand.overhead
        if self.pooler is None:
            return room
        if self.pooler.servers <= room:
            return self.pooler.max_client_conn
        return min(room, self.pooler.max_client_conn)

    def _smaller_pools(self) -> WayOut | None:
        if self.max_pool < 1:
            return None
        pool_max = self.max_pool
        pool_min = min(self.demand.pool_min, pool_max)
        prefix = "WORKER_" if self.demand.bots else ""
        env = {f"{prefix}DB_POOL_MAX": str(pool_max)}
        if pool_min < self.demand.pool_min:
            env[f"{prefix}DB_POOL_MIN"] = str(pool_min)
        return WayOut(
            name="smaller pools",
            env=env,
            command=f"docker compose up -d --scale worker={self.demand.workers}",
            costs=f"fewer jobs at once in each worker: {pool_max} instead of {self.demand.pool_max}",
            memory_mb=self.supply.memory_mb,
            plan=replace(self, demand=replace(self.demand, pool_max=pool_max, pool_min=pool_min)),
        )

    def _larger_server(self) -> WayOut | None:
        if self.pooler is not None and self.demand.peak > self.pooler.max_client_conn:
            return None  # the pooler is what is too small
        supply = self.supply.raised_for(self.servers_peak)
        more_mb = supply.memory_mb - self.supply.memory_mb
        return WayOut(
            name="a larger max_connections",
            env={"POSTGRES_MAX_CONNECTIONS": str(supply.max_connections)},
            command="docker compose up -d postgres",
            costs=f"a restart of PostgreSQL (a reload is not enough) and up to {more_mb} MB more memory there",
            memory_mb=supply.memory_mb,
            plan=replace(self, supply=supply),
        )

    def _with_pooler(self) -> WayOut | None:
        room = self.supply.usable - self.demand.overhead
        if self.pooler is not None or self.demand.workers < POOLER_FROM_WORKERS or room < 1:
            return None
        default = Pooler()
        reserve = default.reserve_pool_size if room > default.reserve_pool_size else 0
        pool_max = min(self.demand.pool_max, POOLED_POOL_MAX)
        demand = replace(self.demand, pool_max=pool_max, pool_min=min(self.demand.pool_min, pool_max))
        pooler = Pooler(
            default_pool_size=min(default.default_pool_size, room - reserve),
            reserve_pool_size=reserve,
            max_client_conn=max(default.max_client_conn, demand.deploy),
        )
        env = {
            "COMPOSE_PROFILES": "pgbouncer",
            "DB_POOL_MAX": str(pool_max),
            "PGBOUNCER_DEFAULT_POOL_SIZE": str(pooler.default_pool_size),
            "PGBOUNCER_RESERVE_POOL_SIZE": str(pooler.reserve_pool_size),
            "PGBOUNCER_MAX_CLIENT_CONN": str(pooler.max_client_conn),
        }
        if demand.pool_min < self.demand.pool_min:
            env["DB_POOL_MIN"] = str(demand.pool_min)
        return WayOut(
            name="PgBouncer",
            env=env,
            command=f"docker compose up -d --scale worker={self.demand.workers}",
            costs=f"one more service; {demand.peak} connections of the processes share {pooler.servers} of the server",
            memory_mb=self.supply.memory_mb,
            plan=replace(self, demand=demand, pooler=pooler),
        )


def _at_least(bound: int, numbers: object, *names: str) -> None:
    for name in names:
        value = getattr(numbers, name)
        if value < bound:
            raise PlanError(f"{name}={value} is less than {bound}: give {bound} or more")
