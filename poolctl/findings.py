"""What is wrong with a database and a fleet, judged from what was read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from config import Settings
from config.exit_codes import ExitCode
from db.errors import SchemaBehind
from db.server import ServerReport
from fleet.errors import FleetError
from fleet.plan_check import supply_of, too_large
from fleet.registry import ProcessEntry


@dataclass(frozen=True, slots=True)
class Reading:
    """What `poolctl check` has read. `fleet` is the reason instead where Redis cannot be asked."""

    settings: Settings
    server: ServerReport
    fleet: Sequence[ProcessEntry] | FleetError
    schema: SchemaBehind | None
    direct_is_pooler: bool = False  # what was taken for the server itself, by DB_DIRECT_HOST or else DB_HOST
    unused_pooler: bool = False  # PgBouncer runs at PGBOUNCER_HOST, and DB_HOST leads past it

    @property
    def behind_pooler(self) -> bool:
        """Whether DB_HOST is not the server itself, so that pools do not hold the server's own slots."""
        return self.settings.db.has_pooler or self.direct_is_pooler


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should change, in one line; what the command exits with because of it."""

    text: str
    exit_code: ExitCode = ExitCode.FINDING


def find(reading: Reading) -> Iterator[Finding]:
    """All findings; none where everything is fine."""
    server, db = reading.server, reading.settings.db
    supply = supply_of(server)
    available = supply.available
    if reading.schema is not None:
        yield Finding(str(reading.schema), reading.schema.exit_code)
    if isinstance(reading.fleet, FleetError):
        yield Finding(str(reading.fleet), reading.fleet.exit_code)
    if server.total > supply.usable:
        yield Finding(
            f"{server.total} of {available} available connections are taken, above the head-room line {supply.usable}:"
            " close some, lower DB_POOL_MAX, or raise max_connections"
        )
    yield from _pooler_findings(reading)
    if reading.behind_pooler:
        return
    if db.pool_max > available:
        yield Finding(
            f"DB_POOL_MAX={db.pool_max} of one process is more than the {available} available connections of the"
            " server: lower DB_POOL_MAX, or raise max_connections"
        )
    if isinstance(reading.fleet, FleetError):
        return
    if (problem := too_large(reading.fleet, supply, legacy=reading.settings.legacy)) is not None:
        yield Finding(problem)


def _pooler_findings(reading: Reading) -> Iterator[Finding]:
    db, pgbouncer = reading.settings.db, reading.settings.pgbouncer
    given = "DATABASE_URL" if reading.settings.legacy else "DB_HOST"
    if reading.unused_pooler:
        if reading.settings.legacy:
            remedy = f"name {pgbouncer.address} in it"
        elif reading.settings.stack.pgbouncer:
            remedy = "unset DB_HOST and DB_PORT"
        else:
            remedy = (
                "set COMPOSE_PROFILES=pgbouncer in .env instead of --profile pgbouncer, or"
                f" DB_HOST={pgbouncer.host} and DB_PORT={pgbouncer.port}"
            )
        yield Finding(
            f"PgBouncer runs at {pgbouncer.address}, and nobody uses it: {given} leads to {db.addresses}: {remedy};"
            " or stop it: poolctl deploy --direct --apply"
        )
    if reading.direct_is_pooler:
        named = "DB_DIRECT_HOST" if db.has_pooler else given
        yield Finding(
            f"{named} leads to a pooler at {db.direct_addresses}, and migrations need the server itself: set"
            " DB_DIRECT_HOST (and DB_DIRECT_PORT) to the server"
        )


def may_open(fleet: Sequence[ProcessEntry]) -> int:
    """How many connections the pools of all processes may hold together."""
    return sum(entry.pool.limit for entry in fleet)
