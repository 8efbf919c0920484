"""What a process of the fleet, or a command, says with its exit code."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes are the same everywhere: worker, bot and poolctl."""

    OK = 0
    FINDING = 1  # a check found something, or a job failed
    USAGE = 2  # bad settings or bad command line: starting again does not help
    NOT_READY = 3  # database or Redis unreachable, or the schema is behind: starting again may help
