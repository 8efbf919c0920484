"""A fleet's servers and processes on this machine, for `poolctl up` and for the tests.

with open_tether() as tether, open_servers(directory, tether) as servers:
    servers.environ()  # what Settings.load needs to reach them
"""

from __future__ import annotations

from local.child import Child, Tether, TetherKind, open_tether
from local.directory import data_directory
from local.errors import BinariesMissing, DirectoryInUse, LocalError, ProcessRefused, ServerFailed, UnsafeDirectory
from local.servers import LocalServers, open_servers
from local.supervisor import LocalProcess, Supervisor, open_supervisor

__all__ = [
    "BinariesMissing",
    "Child",
    "DirectoryInUse",
    "LocalError",
    "LocalProcess",
    "LocalServers",
    "ProcessRefused",
    "ServerFailed",
    "Supervisor",
    "Tether",
    "TetherKind",
    "UnsafeDirectory",
    "data_directory",
    "open_servers",
    "open_supervisor",
    "open_tether",
]
