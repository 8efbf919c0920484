"""Jobs that are due at certain times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from arq.cron import next_cron

from fleet.jobs import Job


@dataclass(frozen=True, slots=True)
class Times:
    """When a job is due, in UTC; None: at each."""

    second: frozenset[int] = frozenset({0})
    minute: frozenset[int] | None = None
    hour: frozenset[int] | None = None

    def after(self, moment: datetime) -> datetime:
        """The first time after `moment`."""
        return next_cron(moment, second=set(self.second), minute=_set(self.minute), hour=_set(self.hour), microsecond=0)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A job, its arguments, and its times. Those of one job have a `name` each, all but one."""

    job: Job[Any, Any]
    arguments: Any
    times: Times
    name: str = ""

    @property
    def key(self) -> str:
        """What Redis remembers its latest run by."""
        return f"{self.job.name}:{self.name}" if self.name else self.job.name


def _set(numbers: frozenset[int] | None) -> set[int] | None:
    return None if numbers is None else set(numbers)
