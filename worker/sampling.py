"""The scheduled jobs: who holds how many connections of the server, kept for a week."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from db.models import ConnectionSample
from db.server import read_server
from fleet.jobs import NoArguments
from fleet.process import Process

SAMPLE_SECONDS = frozenset({0, 30})  # of each minute
KEPT = timedelta(days=7)


async def sample_connections(process: Process, _: NoArguments) -> int:
    """Store how many connections the server has now; their number.

    Asked through this process's pool, so that a sample needs no connection beyond it.
    """
    async with process.database.client.acquire_connection() as connection:
        server = await read_server(connection)
    await ConnectionSample.create(
        max_connections=server.max_connections,
        total=server.total,
        active=server.active,
        idle=server.idle,
        idle_in_transaction=server.idle_in_transaction,
        by_application=server.by_application,
    )
    return server.total


async def prune_samples(_: Process, __: NoArguments) -> int:
    """Delete the samples that are older than KEPT; their number."""
    return await ConnectionSample.filter(at__lt=datetime.now(UTC) - KEPT).delete()
