"""The locks on a data directory: one process at a time opens it, and only when no server works on it any more."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.errors import DirectoryInUse

OWNER_FILE = "owner"  # held by the process that opened the directory, whose number is in it
SERVERS_FILE = "servers"  # held by its servers, too
OWNER_PATIENCE_S = 0.5  # for one that was killed just now
SERVERS_PATIENCE_S = 15.0  # for servers of a killed run, which are shutting down


@contextmanager
def locked(directory: Path, *, patience_s: float = SERVERS_PATIENCE_S) -> Iterator[int]:
    """Hold `directory`; yields the descriptor of the lock that servers are to inherit.

    The kernel lets go of a lock when the last process that has its descriptor ends. So whoever gets both locks
    knows that neither the process that opened the directory before nor a server of it still works on these files.

    Raises DirectoryInUse: nearly at once when a process has it open, after `patience_s` when only servers do.
    """
    owner = os.open(directory / OWNER_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _acquire(owner, OWNER_PATIENCE_S):
            raise DirectoryInUse(
                f"{directory} is in use by process {_read(owner)}: stop that `poolctl up` first, "
                "or start this one in another folder"
            )
        servers = os.open(directory / SERVERS_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _acquire(servers, patience_s):
                raise DirectoryInUse(
                    f"{directory} is still in use by servers of process {_read(owner)}, which has ended: they did "
                    f"not end within {patience_s:g} s; `fuser {directory / SERVERS_FILE}` shows them, end them"
                )
            os.truncate(owner, 0)
            os.pwrite(owner, f"{os.getpid()}\n".encode(), 0)
            yield servers
        finally:
            os.close(servers)
    finally:
        os.close(owner)


def _acquire(descriptor: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def _read(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode().strip() or "unknown"
