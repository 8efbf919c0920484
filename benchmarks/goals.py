"""How fast this engine has to be, as ratios to others in the same run."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.contender import ASYNCPG, ENGINE, NO_RESET, PSYCOPG, SQLALCHEMY, STOCK
from benchmarks.measurements import Case, Measurements, Spread
from benchmarks.path import DELAYED, DIRECT
from benchmarks.work import Work


@dataclass(frozen=True, slots=True)
class Goal:
    """In a case, this engine does at least so many operations for each one of the other's."""

    case: Case
    other: str
    at_least: float

    def measured(self, measurements: Measurements) -> Spread | None:
        """The ratio, round by round; None where the run left it out."""
        return measurements.ratio(self.case, ENGINE, self.other)

    def met(self, ratio: Spread) -> bool:
        return ratio.median >= self.at_least


GOALS = (
    Goal(Case(DIRECT, Work.READ, 1), STOCK, 1.8),
    Goal(Case(DIRECT, Work.READ, 10), STOCK, 1.8),
    Goal(Case(DELAYED, Work.READ, 1), STOCK, 1.9),
    Goal(Case(DELAYED, Work.READ, 10), STOCK, 1.9),
    Goal(Case(DIRECT, Work.READ, 1), SQLALCHEMY, 5.0),
    Goal(Case(DIRECT, Work.READ, 10), SQLALCHEMY, 5.0),
    Goal(Case(DIRECT, Work.READ, 1), PSYCOPG, 1.3),
    Goal(Case(DIRECT, Work.READ, 10), PSYCOPG, 1.3),
    Goal(Case(DIRECT, Work.READ, 1), NO_RESET, 1.0),
    Goal(Case(DIRECT, Work.READ, 10), NO_RESET, 1.0),
    Goal(Case(DIRECT, Work.GET, 1), STOCK, 1.3),
    Goal(Case(DIRECT, Work.GET, 10), STOCK, 1.3),
    Goal(Case(DIRECT, Work.TRANSACTION, 1), STOCK, 1.15),
    Goal(Case(DIRECT, Work.TRANSACTION, 10), STOCK, 1.15),
    Goal(Case(DIRECT, Work.ACQUIRE, 1), ASYNCPG, 3.0),
    Goal(Case(DIRECT, Work.ACQUIRE, 10), ASYNCPG, 2.5),
)
