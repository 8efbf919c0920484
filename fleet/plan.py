"""How many connections a fleet takes, against what the server has. Pure arithmetic: no I/O, no clock.

    total_peak = workers × pool_max + bots × bot_pool_max + overhead
    available  = max_connections − superuser_reserved − reserved      what ordinary roles can get at all
    usable     = ⌊available × (100 − head_room) / 100⌋                the head-room line

A total `fits` up to usable, is `tight` up to available, and `over` above that. There is no other definition of these
lines in the project: plan, check at start, alerts and advice share this one. Behind a pooler the total is of its
clients, and what the server sees are the pooler's own connections. The overhead is counted on both sides: bot and
interface go through the pooler, migrations and administrators past it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from config.exit_codes import ExitCode
from config.groups import LARGEST_POOL
from config.stack import LARGEST_INT, LARGEST_SERVER
from fleet.errors import FleetError

OVERHEAD = 10  # connections


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
    overhead: int = OVERHEAD  # connections of the bot, an interface, migrations and an administrator together
    surge: int = 2  # during a deployment: old and new processes of a role side by side; 1 if the old stop first
    legacy: bool = False  # DATABASE_URL fixes the pools: no setting of a pool may stand beside it

    def __post_init__(self) -> None:
        _within(1, LARGEST_POOL, self, "workers", "pool_max", "bot_pool_max", "surge")
        _within(0, LARGEST_POOL, self, "bots", "overhead", "pool_min", "bot_pool_min")
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
        _within(1, LARGEST_SERVER, self, "max_connections")
        _within(0, LARGEST_SERVER, self, "superuser_reserved", "reserved", "memory_per_connection_mb")
        _within(0, 99, self, "head_room_percent")
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

    def raised_for(self, connections: int) -> Supply | None:
        """The smallest supply, not smaller than this one, in which so many connections fit; None if there is none."""
        needed = -(-connections * 100 // (100 - self.head_room_percent))  # rounded up
        needed += self.superuser_reserved + self.reserved
        return None if needed > LARGEST_SERVER else replace(self, max_connections=max(self.max_connections, needed))


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledDatabase:
    """One database of PgBouncer's, with its own settings; None = as for all. PgBouncer has a pool for each user."""

    name: str = ""
    users: int = 1
    pool_size: int | None = None
    reserve_pool_size: int | None = None
    max_db_connections: int | None = None

    def __post_init__(self) -> None:
        _within(1, LARGEST_INT, self, "users")
        for name, least in (("pool_size", 1), ("reserve_pool_size", 0), ("max_db_connections", 0)):
            if getattr(self, name) is not None:
                _within(least, LARGEST_INT, self, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooler:
    """PgBouncer's settings, by its own names."""

    default_pool_size: int = 25
    reserve_pool_size: int = 5
    max_client_conn: int = 1000
    max_db_connections: int = 0  # 0 = no limit; of each database, all its users together
    databases: tuple[PooledDatabase, ...] = field(default_factory=lambda: (PooledDatabase(),))

    def __post_init__(self) -> None:
        _within(1, LARGEST_INT, self, "default_pool_size", "max_client_conn")
        _within(0, LARGEST_INT, self, "reserve_pool_size", "max_db_connections")

    @property
    def pools(self) -> int:
        """Pairs of a database and a user."""
        return sum(database.users for database in self.databases)

    @property
    def servers(self) -> int:
        """Connections to the server at most."""
        return sum(self._servers(database) for database in self.databases)

    def _servers(self, database: PooledDatabase) -> int:
        size = self.default_pool_size if database.pool_size is None else database.pool_size
        reserve = self.reserve_pool_size if database.reserve_pool_size is None else database.reserve_pool_size
        limit = self.max_db_connections if database.max_db_connections is None else database.max_db_connections
        pools = database.users * (size + reserve)
        return min(pools, limit) if limit else pools

    def verdict(self, clients: int) -> Verdict:
        """How so many clients stand to those that it lets in; they need no head room."""
        return Verdict.OVER if clients > self.max_client_conn else Verdict.FITS


@dataclass(frozen=True, slots=True)
class Plan:
    """A fleet against a server, perhaps behind a pooler. `now` is what the server has at this moment, if known.

    `profiles` are compose's that are on now: one of them may be the pooler's, and a way out leaves the others as they
    are. Raises PlanError for a pool that alone is larger than the server, which is a slip of the keyboard.
    """

    demand: Demand
    supply: Supply
    pooler: Pooler | None = None
    now: int | None = None
    profiles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        most = self.supply.max_connections
        for name in ("pool_max", "bot_pool_max") if self.demand.bots else ("pool_max",):
            if self.pooler is None and getattr(self.demand, name) > most:
                raise PlanError(
                    f"{name}={getattr(self.demand, name)} is greater than max_connections={most}: "
                    f"lower {name} or raise max_connections"
                )

    @property
    def total_idle(self) -> int:
        """Connections of the processes at rest."""
        return self.demand.idle

    @property
    def total_peak(self) -> int:
        """Connections of the whole fleet with all pools full, and the overhead; behind a pooler, its clients."""
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
        """Of the peak: the server's, or `over` if a pooler lets in fewer clients."""
        return self._verdict(self.total_peak, self.servers_peak)

    @property
    def verdict_deploy(self) -> Verdict:
        """Of the peak of a deployment."""
        return self._verdict(self.total_deploy, self.servers_deploy)

    @property
    def max_workers(self) -> int:
        """The most workers of this pool that still fit; 0 if none does."""
        return self._most_of(self.demand.pool_max)

    @property
    def max_pool(self) -> int:
        """The largest pool of so many workers that still fits; 0 if none does."""
        return self._most_of(self.demand.workers)

    def _servers(self, connections: int) -> int:
        if self.pooler is not None:
            connections = min(connections, self.pooler.servers)
        return connections + self.demand.overhead

    def _verdict(self, clients: int, servers: int) -> Verdict:
        if self.pooler is not None and self.pooler.verdict(clients) is Verdict.OVER:
            return Verdict.OVER
        return self.supply.verdict(servers)

    def _most_of(self, each: int) -> int:
        """How many times so many connections of workers fit, as far as there may be so many."""
        room = self._most_connections() - self.demand.bots * self.demand.bot_pool_max
        return max(0, min(LARGEST_POOL, room // each))

    def _most_connections(self) -> int:
        """The most connections of the processes that fit; negative if the overhead alone does not."""
        room = self.supply.usable - self.demand.overhead
        if self.pooler is None:
            return room
        clients = self.pooler.max_client_conn - self.demand.overhead
        return clients if self.pooler.servers <= room else min(room, clients)


def overhead_with(bot_pool_max: int) -> int:
    """The usual overhead; its bot's pool alone if that is larger."""
    return max(OVERHEAD, bot_pool_max)


def _within(least: int, most: int, numbers: object, *names: str) -> None:
    for name in names:
        value = getattr(numbers, name)
        if value < least:
            raise PlanError(f"{name}={value} is less than {least}: give {least} or more")
        if value > most:
            raise PlanError(f"{name}={value} is greater than {most}: give {most} or less")
