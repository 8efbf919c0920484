"""What is called around each try of each job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is called around each try with the job's id, each for as long as the job may take.

    An exception of a hook, or one that is cancelled for its time is over, is logged, and changes nothing.
    """

    before: Callable[[str], Awaitable[None]] | None = None
    after: Callable[[str], Awaitable[None]] | None = None
