"""The file a server writes its log to."""

from __future__ import annotations

from pathlib import Path


def last_lines(path: Path, count: int = 6) -> str:
    """The last lines of a server's log, indented, to follow an error's own line."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines[-count:])


def contains(path: Path, *texts: str) -> bool:
    """Whether the log has any of `texts`."""
    log = path.read_text(errors="replace")
    return any(text in log for text in texts)
