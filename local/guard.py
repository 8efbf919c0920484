"""A process that outlives its parent for a moment, to end the parent's children.

Run as a script with the number of a pipe's read end. Lines on the pipe: `+PID SIGNAL` guards a process,
`-PID` lets it go. When the pipe closes, because the parent ended in whatever way, each process still guarded
gets its signal, the youngest first, and SIGKILL if that was not enough. Standard library only, no imports of
the project: it must start fast and have nothing to fail on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

PATIENCE_S = 15.0


def watch(pipe: int) -> dict[int, int]:
    """Follow the pipe to its end; the processes that are then still guarded, with their signals."""
    guarded: dict[int, int] = {}
    with open(pipe, encoding="ascii") as lines:
        for line in lines:
            if line.startswith("+"):
                pid, signum = line[1:].split()
                guarded[int(pid)] = int(signum)
            else:
                guarded.pop(int(line[1:]), None)
    return guarded


def end(guarded: dict[int, int], patience_s: float = PATIENCE_S) -> None:
    """Signal all, wait for their end, then kill."""
    left = [pid for pid in reversed(guarded) if _send(pid, guarded[pid])]
    deadline = time.monotonic() + patience_s
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [pid for pid in left if _send(pid, 0)]
    for pid in left:
        _send(pid, signal.SIGKILL)


def _send(pid: int, signum: int) -> bool:
    """Signal the process, unless it has ended and the number is somebody else's: ours lead a session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getsid(pid) == pid:
            os.kill(pid, signum)
            return True
    return False


def main() -> None:
    # Only the end of the pipe counts; a signal to everybody must not end the guard first.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    end(watch(int(sys.argv[1])))


if __name__ == "__main__":
    main()
