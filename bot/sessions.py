"""The server's client connections, by application and state."""

from __future__ import annotations

from typing import Any

# Like db.server's: walsenders and the server's own processes have no database.
_SESSIONS = """
    SELECT application_name, state, count(*)
    FROM pg_stat_activity
    WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
    GROUP BY application_name, state
    ORDER BY application_name, state
"""


_IDLE_IN_TRANSACTION = """
    SELECT count(*) FROM pg_stat_activity
    WHERE state LIKE 'idle in transaction%' AND state_change < now() - $1::float8 * interval '1 s'
"""


async def read_idle_in_transaction(connection: Any, for_s: float) -> int:
    """Sessions that have a transaction open and did nothing for `for_s`, as far as this role may see their states."""
    count: int = await connection.fetchval(_IDLE_IN_TRANSACTION, for_s)
    return count


async def read_sessions(connection: Any) -> list[tuple[str, str | None, int]]:
    """(application, state, connections), sorted; the state is None where this role may not see it."""
    return [tuple(row) for row in await connection.fetch(_SESSIONS)]
