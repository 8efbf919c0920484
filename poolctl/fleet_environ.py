"""The environment that `poolctl up` hands to the processes of its fleet. Pure, but for the current folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from config.environment import ROLES
from config.variables import VARIABLES

# Settings of groups that name a server which say nothing about the server, and so hold for one of our own, too.
_OF_ANY_SERVER = {
    "DB_ECHO",
    "DB_ENGINE",
    "DB_READ_RETRY",
    "DB_CONNECT_TIMEOUT",
    "DB_COMMAND_TIMEOUT",
    "DB_APPLICATION_NAME",
    "REDIS_MAX_CONNECTIONS",
    "REDIS_CONNECT_TIMEOUT",
    "REDIS_SOCKET_TIMEOUT",
    "REDIS_HEALTH_CHECK_INTERVAL",
}
# A bot with its real token would take the chats' messages from the one in production.
_OF_THE_REAL_BOT = {"BOT_TOKEN", "BOT_API_URL", "BOT_TRANSPORT"}
# All others, those yet to be added included, are taken to lead to somebody's server.
FOREIGN = _OF_THE_REAL_BOT | {
    variable.name
    for variable in VARIABLES
    if variable.group in ("DB", "REDIS", "PGBOUNCER")
    and not variable.is_pool_setting
    and variable.name not in _OF_ANY_SERVER
}
_LIBPQ = re.compile(r"PG[A-Z]+")  # PGHOST, PGSSLMODE, PGPASSFILE, …: the driver reads them
_ROLE_PREFIX = re.compile(rf"({'|'.join(role.upper() for role in ROLES)})_(?=DB_|DATABASE_URL|REDIS_)")
_PACKAGES = Path(__file__).resolve().parents[1]


def own_servers_environ(values: Mapping[str, str], servers: Mapping[str, str]) -> dict[str, str]:
    """`values` with nothing left that leads to a configured server, and with `servers` instead.

    Pool settings stay, since they are what a fleet on one's own machine is there to try.
    """
    kept = {name: text for name, text in values.items() if not is_foreign(name)}
    return configured_environ(kept) | dict(servers)


def configured_environ(values: Mapping[str, str]) -> dict[str, str]:
    """`values` and what a process of the fleet needs to be found and to be read in this command's output.

    The current folder, where the module that APP names may be, is not the folder of those processes.
    """
    environ = dict(values)
    environ["PYTHONPATH"] = ":".join(filter(None, [str(_PACKAGES), str(Path.cwd()), values.get("PYTHONPATH")]))
    environ["PYTHONUNBUFFERED"] = "1"
    if environ.get("LOG_FORMAT", "auto") == "auto":
        environ["LOG_FORMAT"] = "text"  # a person reads it here, although the processes see no terminal
    return environ


def is_foreign(name: str) -> bool:
    """Whether the variable says where somebody's server is, or how to get in."""
    plain = _ROLE_PREFIX.sub("", name, count=1).removesuffix("_FILE")
    return plain in FOREIGN or _LIBPQ.fullmatch(name) is not None
