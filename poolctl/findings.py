"""What is wrong with a database and a fleet, judged from what was read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from config import Settings
from config.exit_codes import ExitCode
from db.errors import SchemaBehind
from db.server import ServerReport
from fleet.errors import FleetError
from fleet.registry import ProcessEntry

HEAD_ROOM = 0.8  # of the available connections; above it one more process, or a burst, may find none


@dataclass(frozen=True, slots=True)
class Reading:
    """What `poolctl check` has read. `fleet` is the reason instead where Redis cannot be asked."""

    settings: Settings
    server: ServerReport
    fleet: Sequence[ProcessEntry] | FleetError
    schema: SchemaBehind | None

    @property
    def behind_pooler(self) -> bool:
        """Whether DB_HOST is not the server itself, so that pools do not hold the server's own slots."""
        db = self.settings.db
        return db.addresses != db.direct_addresses


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should change, in one line; what the command exits with because of it."""

    text: str
    exit_code: ExitCode = ExitCode.FINDING


def find(reading: Reading) -> Iterator[Finding]:
    """All findings; none where everything is fine."""
    server, db = reading.server, reading.settings.db
    available = server.available
    if reading.schema is not None:
        yield Finding(str(reading.schema))
    if isinstance(reading.fleet, FleetError):
        wrong_settings = reading.fleet.exit_code is ExitCode.USAGE
        yield Finding(str(reading.fleet), ExitCode.USAGE if wrong_settings else ExitCode.FINDING)
    if server.total > HEAD_ROOM * available:
        yield Finding(
            f"{server.total} of {available} available connections are taken, more than {HEAD_ROOM:.0%}:"
            " close some, lower DB_POOL_MAX, or raise max_connections"
        )
    if reading.behind_pooler:
        return
    if db.pool_max > available:
        yield Finding(
            f"DB_POOL_MAX={db.pool_max} of one process is more than the {available} available connections of the"
            " server: lower DB_POOL_MAX, or raise max_connections"
        )
    if not isinstance(reading.fleet, FleetError) and (wanted := may_open(reading.fleet)) > available:
        processes = len(reading.fleet)
        remedy = f"lower DB_POOL_MAX to {available // processes}, " if available >= processes else ""
        raised = wanted + server.max_connections - available
        yield Finding(
            f"the pools of all live processes ({processes}) may open {wanted} connections, and the server has"
            f" {available}: {remedy}run fewer processes, or raise max_connections to {raised}"
        )


def may_open(fleet: Sequence[ProcessEntry]) -> int:
    """How many connections the pools of all processes may hold together."""
    return sum(entry.pool.limit for entry in fleet)
