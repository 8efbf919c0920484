"""Is a process of this host alive? Answered from outside, for `--health` of worker and bot."""

from __future__ import annotations

from redis.exceptions import RedisError

from config import Settings
from config.exit_codes import ExitCode
from config.settings import Role
from fleet.errors import QueueLost, reason
from fleet.queue import address, open_queue
from fleet.registry import HEARTBEAT_S, REMEMBERED_S, Identity, ProcessEntry, pid_exists, read_registry


async def check_health(settings: Settings, role: Role, pid: int | None = None) -> tuple[ExitCode, str]:
    """OK or FINDING, and one line that says why, for the process `pid` of this host.

    Without `pid`: all processes of `role` on this host must be healthy, and there must be one. A process that
    died without goodbye counts until it is no longer live in the registry; one that is stopped, or whose event loop
    is blocked, as long as it exists. Raises FleetError if Redis cannot be asked.
    """
    own = Identity.own(role)
    try:
        async with open_queue(settings) as queue:
            registry = await read_registry(queue)
    except (RedisError, OSError) as error:
        where = address(settings.redis)
        raise QueueLost(f"Redis at {where} was lost while it was asked ({reason(error)}): is it up?") from None
    entries = [entry for entry in registry if (entry.role, entry.host) == (role, own.host)]
    if pid is not None:
        entries = [entry for entry in entries if entry.pid == pid]
        if not entries:
            wanted = Identity(role, own.host, pid).id
            return (
                ExitCode.FINDING,
                f"{wanted} is not in the registry: it never was, or left, or is silent for {REMEMBERED_S / 60:g} min",
            )
    else:
        entries = [entry for entry in entries if entry.live or pid_exists(entry.pid)]
        if not entries:
            return ExitCode.FINDING, f"no {role} of {own.host} is in the registry"
    if faults := [fault for entry in entries if (fault := _fault(entry)) is not None]:
        return ExitCode.FINDING, "; ".join(faults)
    return ExitCode.OK, "healthy: " + ", ".join(entry.id for entry in entries)


def _fault(entry: ProcessEntry) -> str | None:
    if not pid_exists(entry.pid):
        return f"{entry.id} is dead: there is no such process, and it left without goodbye"
    if not entry.live:
        return (
            f"{entry.id} is stuck: no heartbeat for {entry.silent_s:.0f} s, due every {HEARTBEAT_S:g} s; "
            "it is stopped, its event loop is blocked, or it does not reach Redis"
        )
    return None
