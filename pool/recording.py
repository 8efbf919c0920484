"""What one task waits for and asks: measured only where somebody wants to know."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class Recording:
    """Durations in seconds, in the order in which they ended: waits for a connection, and queries.

    A query that failed counts too; BEGIN and COMMIT are queries.
    """

    waits: list[float] = field(default_factory=list)
    queries: list[float] = field(default_factory=list)


_recording: ContextVar[Recording | None] = ContextVar("pool_recording", default=None)


def current_recording() -> Recording | None:
    """The recording that the calling task belongs to."""
    return _recording.get()


@contextlib.contextmanager
def recording() -> Iterator[Recording]:
    """Records every wait and query of the calling task and of the tasks that it starts inside.

    An inner recording takes over from an outer one.
    """
    collected = Recording()
    token = _recording.set(collected)
    try:
        yield collected
    finally:
        _recording.reset(token)
