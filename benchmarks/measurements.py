"""What was measured: rates by case, contender and round, and what they are to each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.work import Work


class Case(NamedTuple):
    """One condition under which all contenders are measured."""

    path: str
    work: Work
    tasks: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of one number per round."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        return cls(statistics.median(numbers), min(numbers), max(numbers))


@dataclass(frozen=True, slots=True)
class Measurements:
    """Operations per second: of each case, of each contender, one number per round."""

    rates: dict[Case, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, case: Case, contender: str, rate: float) -> None:
        self.rates.setdefault(case, {}).setdefault(contender, []).append(rate)

    def spreads(self, case: Case) -> Mapping[str, Spread]:
        """By contender, in the order they were measured in first."""
        return {contender: Spread.of(rates) for contender, rates in self.rates.get(case, {}).items()}

    def ratio(self, case: Case, contender: str, other: str) -> Spread | None:
        """Of the rates of two contenders, round by round; None where one was not measured."""
        measured = self.rates.get(case, {})
        if contender not in measured or other not in measured:
            return None
        return Spread.of([a / b for a, b in zip(measured[contender], measured[other], strict=True)])

    def rows(self) -> Iterator[tuple[Case, str, Spread]]:
        for case in self.rates:
            for contender, spread in self.spreads(case).items():
                yield case, contender, spread
