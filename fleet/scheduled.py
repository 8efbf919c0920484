"""Jobs that are due at certain times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from arq.cron import next_cron

from fleet.jobs import Job

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Times:
    """When a job is due, in UTC; None: at each. Raises ValueError for what is never."""

    second: frozenset[int] | None = frozenset({0})
    minute: frozenset[int] | None = None
    hour: frozenset[int] | None = None

    def __post_init__(self) -> None:
        for unit, numbers, most in (("second", self.second, 59), ("minute", self.minute, 59), ("hour", self.hour, 23)):
            if numbers is not None and not (numbers and numbers <= set(range(most + 1))):
                raise ValueError(f"{unit}={set(numbers)} is at no time: give some of 0 to {most}")

    def after(self, moment: datetime) -> datetime:
        """The first time after `moment`."""
        second = set(range(60)) if self.second is None else set(self.second)  # arq takes none for 0
        return next_cron(moment, second=second, minute=_set(self.minute), hour=_set(self.hour), microsecond=0)


@dataclass(frozen=True, slots=True)
class Scheduled(Generic[A]):
    """A job, its arguments, and its times. Those of one job have a `name` each, all but one."""

    job: Job[A, Any]
    arguments: A
    times: Times
    name: str = ""

    @property
    def key(self) -> str:
        """What Redis remembers its latest run by."""
        return f"{self.job.name}:{self.name}" if self.name else self.job.name


def _set(numbers: frozenset[int] | None) -> set[int] | None:
    return None if numbers is None else set(numbers)
