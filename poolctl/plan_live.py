"""What `poolctl plan --live` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arq.connections import ArqRedis
from redis.exceptions import RedisError

from config import Settings
from db.errors import DatabaseError, PoolerNotRead
from db.pooler import PoolerReport, is_pooler, read_pooler
from db.server import ServerReport, connect, read_server
from fleet.errors import QueueLost, reason
from fleet.queue import address, open_queue
from fleet.registry import ProcessEntry, read_fleet


@dataclass(frozen=True, slots=True)
class Live:
    """The server, the pooler before it, the processes, and how many clients Redis lets in.

    `pooler` is the reason instead where it cannot be asked, and None where there is none; `maxclients` is None where
    Redis does not say. `server` counts the connection that asks, too.
    """

    server: ServerReport
    pooler: PoolerReport | DatabaseError | None
    entries: Sequence[ProcessEntry]
    maxclients: int | None


async def read_live(settings: Settings, pgbouncer: bool | None) -> Live:
    """The server past a pooler, the pooler, the registry, and Redis' own limit. Raises DatabaseError or FleetError.

    `pgbouncer`: whether there is one; None to find out.
    """
    async with connect(settings, direct=True) as connection:
        server = await read_server(connection)
    pooler = await _read_pooler(settings, pgbouncer)
    async with open_queue(settings) as queue:
        try:
            entries = await read_fleet(queue)
        except (RedisError, OSError) as error:
            raise QueueLost(
                f"Redis at {address(settings.redis)} does not tell who is alive ({reason(error)}): let its user read"
                " the registry, or plan without --live"
            ) from error
        return Live(server, pooler, entries, await _read_maxclients(queue))


async def _read_maxclients(queue: ArqRedis) -> int | None:
    try:
        clients = await queue.info("clients")
    except (RedisError, OSError):  # not allowed; the plan of the database does not need it
        return None
    return int(clients["maxclients"]) if "maxclients" in clients else None


async def _read_pooler(settings: Settings, pgbouncer: bool | None) -> PoolerReport | DatabaseError | None:
    if pgbouncer is False:
        return None
    try:
        return await read_pooler(settings) if pgbouncer or await is_pooler(settings) else None
    except PoolerNotRead as error:
        return error
    except DatabaseError as error:
        # The server has been reached: past DB_HOST, so that is a pooler. Else it was DB_HOST that now fails, and
        # to take it for a pooler would make a fleet fit that does not.
        if not settings.db.has_pooler:
            raise
        return error
