"""What can go wrong with servers and processes on this machine."""

from __future__ import annotations

from config.exit_codes import ExitCode


class LocalError(Exception):
    """Base of this package's errors; the text is one line (a server's last log lines may follow it)."""

    exit_code = ExitCode.NOT_READY


class BinariesMissing(LocalError):
    """No usable PostgreSQL or Redis binary was found, neither of the system nor of the extra `local`."""


class DirectoryInUse(LocalError):
    """Another `poolctl up`, or what is left of one, holds the data directory."""


class UnsafeDirectory(LocalError):
    """The data directory belongs to somebody else, or is not a folder."""


class ServerFailed(LocalError):
    """A server did not start, did not answer in time, or ended on its own."""


class ProcessRefused(LocalError):
    """A worker or bot ended with exit code 2: with the same settings it would do so again."""

    exit_code = ExitCode.USAGE
