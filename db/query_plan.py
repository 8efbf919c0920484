"""A query's plan, as `EXPLAIN (FORMAT JSON)` gives it: a tree of nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

DEEPEST = 100  # levels
_CONDITIONS = ("Index Cond", "Recheck Cond", "Hash Cond", "Merge Cond", "Join Filter", "Filter", "One-Time Filter")


class PlanTooDeep(Exception):
    """The plan has more than DEEPEST levels."""


@dataclass(frozen=True, slots=True)
class PlanNode:
    """One step of a plan. All numbers are the planner's estimates.

    `rows` is what one run of the step gives, `width` the bytes of one such row, `cost` in the planner's own unit.
    `conditions` are by PostgreSQL's names: `{"Filter": "(id = 1)"}`.
    """

    kind: str
    rows: float
    width: int
    cost: float
    relation: str | None
    alias: str | None
    index: str | None
    conditions: Mapping[str, str]
    sort_key: tuple[str, ...]
    children: tuple[PlanNode, ...]

    @classmethod
    def read(cls, raw: Mapping[str, Any], depth: int = 1) -> PlanNode:
        """The node that a "Plan" of the JSON is, with all below it. Raises PlanTooDeep."""
        if depth > DEEPEST:
            raise PlanTooDeep
        return cls(
            kind=f"{'Parallel ' if raw.get('Parallel Aware') else ''}{raw['Node Type']}",
            rows=raw["Plan Rows"],
            width=raw["Plan Width"],
            cost=raw["Total Cost"],
            relation=raw.get("Relation Name"),
            alias=raw.get("Alias"),
            index=raw.get("Index Name"),
            conditions={name: raw[name] for name in _CONDITIONS if name in raw},
            sort_key=tuple(raw.get("Sort Key", ())),
            children=tuple(cls.read(child, depth + 1) for child in raw.get("Plans", ())),
        )

    @property
    def label(self) -> str:
        """`Seq Scan on orders o`."""
        named = self.relation if self.alias in (None, self.relation) else f"{self.relation or ''} {self.alias}".strip()
        using = f" using {self.index}" if self.index is not None else ""
        return f"{self.kind}{using}" + (f" on {named}" if named else "")

    def walk(self) -> Iterator[PlanNode]:
        """This node and all below it, each before its children."""
        yield self
        for child in self.children:
            yield from child.walk()

    def lines(self, indent: str = "") -> Iterator[str]:
        """As people read it, in the manner of EXPLAIN's text format."""
        yield f"{indent}{self.label}  rows {self.rows:,.0f}, cost {self.cost:,.0f}"
        if self.sort_key:
            yield f"{indent}  key: {', '.join(self.sort_key)}"
        for name, condition in self.conditions.items():
            yield f"{indent}  {name.lower()}: {condition}"
        for child in self.children:
            yield from child.lines(indent + "  ")
