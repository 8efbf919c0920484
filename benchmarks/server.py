"""A server of the benchmark's own, as fast as it can be: what it writes is not kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local import LocalServers, Tether, open_servers, open_tether

MAX_CONNECTIONS = 250  # all contenders together, with pools of ten each


@contextmanager
def open_server() -> Iterator[tuple[LocalServers, Tether]]:
    """The server, in a folder that is gone afterwards, and what else is to end with this process."""
    # As root the server runs under another account, which may not enter root's own folder for temporary files.
    parent = "/var/tmp" if os.geteuid() == 0 else None  # noqa: S108 - a folder of its own is made there
    with tempfile.TemporaryDirectory(prefix="poolctl-bench-", dir=parent) as folder, open_tether() as tether:
        Path(folder).chmod(0o711)
        directory = Path(folder) / "servers"
        with open_servers(directory, tether, max_connections=MAX_CONNECTIONS, durable=False) as servers:
            yield servers, tether
