"""What may make a query faster, from its plan. Pure.

All of it is estimated: EXPLAIN runs nothing, so nobody has seen a row, a sort or a disk. The bounds are rules of thumb.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from db.query_plan import PlanNode
from db.table_facts import TableFacts

MANY_ROWS = 10_000  # in a table that is read from end to end
SELECTIVE = 0.1  # a filter that keeps at most this part of a table's rows is worth an index
MANY_PAIRS = 100_000  # rows of the one side of a nested loop × those that it looks at on the other side for each
FAR_OFF = 10.0  # times more, or fewer, rows than the planner believes
FEW_ROWS = 1_000  # of fewer the planner may believe what it likes
ROW_OVERHEAD = 24  # bytes of a row in a sort beside its columns, as PostgreSQL's own estimate has it (costsize.c)

_LITERAL = re.compile(r"'(?:[^']|'')*'(?:::[\w \"\[\]]+)?")
_NAME = re.compile(r'"(?:[^"]|"")+"|(?<!::)\b[A-Za-z_][\w$]*\b(?!\s*\()')
_ALL_THEIR_INPUT = ("Sort", "Hash", "Aggregate", "Materialize", "SetOp")  # read before they give the first row


class Rule(StrEnum):
    """What may be slow."""

    SEQUENTIAL_SCAN = "sequential scan"
    MISSING_INDEX = "missing index"
    SORT_ON_DISK = "sort on disk"
    ESTIMATE_OFF = "estimate far off"
    NESTED_LOOP = "nested loop"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What a rule says of one node of the plan; `node` is its label."""

    rule: Rule
    node: str
    text: str

    def __str__(self) -> str:
        return f"{self.node}: {self.text}"


def suggestions(plan: PlanNode, tables: Mapping[str, TableFacts], work_mem: int) -> list[Suggestion]:
    """For all nodes, in the plan's order. `tables` are by the plan's names for them, `work_mem` is in bytes."""
    return [*_of_estimates(plan, tables), *_of_node(plan, None, 1.0, tables, work_mem)]


def _of_estimates(plan: PlanNode, tables: Mapping[str, TableFacts]) -> Iterator[Suggestion]:
    seen = set()
    for node in plan.walk():
        if node.relation is None or node.relation in seen or (table := tables.get(node.relation)) is None:
            continue
        seen.add(node.relation)
        if max(table.rows, node.rows) < FEW_ROWS:
            continue
        if table.planned_rows is None:
            believed = "was never analyzed"
        elif _far_off(table.planned_rows, table.live_rows):
            believed = f"had about {table.planned_rows:,.0f} rows at the last ANALYZE, now about {table.live_rows:,}"
        else:
            continue
        yield Suggestion(
            Rule.ESTIMATE_OFF,
            node.label,
            f"{table.name} {believed}, so the planner's estimates are guesses: ANALYZE {table.name}",
        )


def _far_off(planned_rows: float, live_rows: int) -> bool:
    if not live_rows:  # of a table that is not empty: the server lost its statistics
        return False
    return max(live_rows, planned_rows) >= FAR_OFF * max(1.0, min(live_rows, planned_rows))


def _of_node(
    node: PlanNode, parent: PlanNode | None, part: float, tables: Mapping[str, TableFacts], work_mem: int
) -> Iterator[Suggestion]:
    """`part` of its rows is asked for: a LIMIT above may end it early."""
    if node.kind.endswith("Seq Scan"):
        yield from _of_scan(node, part, tables.get(node.relation or ""))
    elif node.kind == "Sort":
        yield from _of_sort(node, parent, work_mem)
    elif node.kind == "Nested Loop" and len(node.children) == 2:
        yield from _of_nested_loop(node, part, tables)
    for child in node.children:
        wanted = part
        if node.kind == "Limit":
            wanted *= min(1.0, node.rows / max(child.rows, 1))
        elif node.kind in _ALL_THEIR_INPUT:
            wanted = 1.0
        yield from _of_node(child, node, wanted, tables, work_mem)


def _of_scan(node: PlanNode, part: float, table: TableFacts | None) -> Iterator[Suggestion]:
    rows = _size(node, table)
    condition = node.conditions.get("Filter")
    if rows * part < MANY_ROWS:
        return
    selective = condition is not None and node.rows <= rows * SELECTIVE
    remedy = (
        f"to keep about {node.rows:,.0f} of them"
        if selective
        else "which is right if most of them are needed; else add a condition, or a LIMIT"
    )
    yield Suggestion(Rule.SEQUENTIAL_SCAN, node.label, f"reads all of about {rows:,.0f} rows, {remedy}")
    if condition is None or not selective or table is None:
        return
    used = sorted(_columns(condition) & table.columns)
    if indexed := [column for column in used if column in table.indexed]:
        yield Suggestion(
            Rule.MISSING_INDEX,
            node.label,
            f"there is an index on {', '.join(indexed)}, but this filter does not use it, perhaps because of a function"
            f" or a cast around the column, an OR, or a pattern that begins with %: {condition}",
        )
    elif used:
        more = ", or on that of the columns which keeps the fewest rows" if len(used) > 1 else ""
        yield Suggestion(
            Rule.MISSING_INDEX,
            node.label,
            f"no index for {condition}: CREATE INDEX ON {table.name} ({', '.join(map(_quoted, used))}){more}",
        )


def _of_sort(node: PlanNode, parent: PlanNode | None, work_mem: int) -> Iterator[Suggestion]:
    rows = node.rows
    if parent is not None and parent.kind == "Limit":
        rows = min(rows, parent.rows)  # it keeps no more
    size = rows * (_aligned(node.width) + ROW_OVERHEAD)
    if size > work_mem:
        yield Suggestion(
            Rule.SORT_ON_DISK,
            node.label,
            f"sorts about {_megabytes(size)}, more than work_mem={_megabytes(work_mem)}, so probably on disk: an index"
            f" on {', '.join(node.sort_key)}, fewer columns or rows, or a larger work_mem for this query",
        )


def _of_nested_loop(node: PlanNode, part: float, tables: Mapping[str, TableFacts]) -> Iterator[Suggestion]:
    outer, inner = node.children
    runs = outer.rows * part
    pairs = runs * max(1.0, _looked_at(inner, tables))
    if pairs >= MANY_PAIRS:
        yield Suggestion(
            Rule.NESTED_LOOP,
            node.label,
            f"runs {inner.label} about {runs:,.0f} times and looks at about {pairs:,.0f} rows there: an index on the"
            " column that joins them, a stricter condition, or fresh statistics (ANALYZE) may spare that",
        )


def _looked_at(node: PlanNode, tables: Mapping[str, TableFacts]) -> float:
    """Rows that one run of a nested loop's inner side looks at."""
    while node.kind in ("Materialize", "Memoize") and node.children:
        node = node.children[0]
    return _size(node, tables.get(node.relation or "")) if node.kind.endswith("Seq Scan") else node.rows


def _size(node: PlanNode, table: TableFacts | None) -> float:
    """Rows of the table that a sequential scan reads; without facts those that it gives, which may be fewer."""
    return max(node.rows, table.rows if table is not None else 0.0)


def _columns(condition: str) -> set[str]:
    """Names in a condition that may be columns'."""
    names = _NAME.findall(_LITERAL.sub(" ", condition))
    return {name[1:-1].replace('""', '"') if name.startswith('"') else name for name in names}


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"{}"'.format(name.replace('"', '""'))


def _aligned(width: int) -> int:
    return -(-width // 8) * 8


def _megabytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MB"
