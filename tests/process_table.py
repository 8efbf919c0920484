"""The processes of this machine: who descends from whom, who still runs, and as which user."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessRow:
    """A process that runs; one that ended and that nobody has asked about (a zombie) is none."""

    pid: int
    parent: int
    uid: int
    command: str


def running() -> dict[int, ProcessRow]:
    """All processes that run, by id."""
    rows = _from_proc() if sys.platform == "linux" else _from_ps()
    return {row.pid: row for row in rows}


def descendants(pid: int) -> dict[int, ProcessRow]:
    """The children of `pid`, their children, and so on."""
    table = running()
    found: dict[int, ProcessRow] = {}
    parents = {pid}
    while parents:
        children = {row.pid: row for row in table.values() if row.parent in parents}
        found |= children
        parents = set(children)
    return found


def _from_proc() -> Iterator[ProcessRow]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in parentheses, may hold anything, a ")" included.
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            uid = folder.stat().st_uid
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            yield ProcessRow(int(folder.name), int(parent), uid, command)


def _from_ps() -> Iterator[ProcessRow]:
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,uid=,stat=,command="], capture_output=True, text=True, check=True
    )
    for line in listing.stdout.splitlines():
        pid, parent, uid, state, *command = line.split(maxsplit=4)
        if not state.startswith("Z"):
            yield ProcessRow(int(pid), int(parent), int(uid), "".join(command))
