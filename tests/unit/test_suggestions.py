from __future__ import annotations

from typing import Any

import pytest

from db.query_plan import DEEPEST, PlanNode, PlanTooDeep
from db.suggestions import FEW_ROWS, MANY_PAIRS, MANY_ROWS, Rule, Suggestion, suggestions
from db.table_facts import TableFacts

WORK_MEM = 4 * 2**20
MANY = 1_000_000


def node(kind: str, *children: dict[str, Any], rows: float = 1, width: int = 8, **more: Any) -> dict[str, Any]:
    """A node as EXPLAIN gives it."""
    return {
        "Node Type": kind,
        "Plan Rows": rows,
        "Plan Width": width,
        "Total Cost": 1.0,
        "Plans": list(children),
    } | {name.replace("_", " "): value for name, value in more.items()}


def scan(relation: str = "orders", rows: float = 1, condition: str | None = None) -> dict[str, Any]:
    more = {} if condition is None else {"Filter": condition}
    return node("Seq Scan", rows=rows, **{"Relation Name": relation, "Alias": relation}, **more)


def facts(rows: float, *, live: int | None = None, planned: float | None = -1, indexed: str = "") -> TableFacts:
    return TableFacts(
        name="public.orders",
        planned_rows=rows if planned == -1 else planned,
        live_rows=int(rows) if live is None else live,
        columns=frozenset({"id", "customer", "email", "When", "text"}),
        indexed=frozenset(filter(None, [indexed])),
    )


def made(plan: dict[str, Any], table: TableFacts | None = None) -> list[Suggestion]:
    tables = {} if table is None else {"orders": table, "o": table}
    return suggestions(PlanNode.read(plan), tables, WORK_MEM)


def rules(plan: dict[str, Any], table: TableFacts | None = None) -> list[Rule]:
    return [each.rule for each in made(plan, table)]


# Sequential scans


def test_small_table() -> None:
    """To read a small table from end to end is fine."""
    assert rules(scan(rows=1, condition="(id = 1)"), facts(MANY_ROWS - 1)) == []


def test_large_table() -> None:
    """To read all of a large table is told, with the node."""
    (found,) = made(scan(rows=MANY_ROWS), facts(MANY_ROWS))
    assert (found.rule, found.node) == (Rule.SEQUENTIAL_SCAN, "Seq Scan on orders")
    assert "10,000 rows" in found.text


def test_table_without_facts() -> None:
    """Without facts a scan counts by the rows that it gives."""
    assert rules(scan(rows=MANY_ROWS)) == [Rule.SEQUENTIAL_SCAN]
    assert rules(scan(rows=1, condition="(id = 1)")) == []


def test_limit_ends_a_scan() -> None:
    """A scan that a LIMIT ends early reads few rows; not so below a sort, an aggregate or a hash."""
    table = facts(MANY)
    assert rules(node("Limit", scan(rows=MANY), rows=10), table) == []
    for blocking in ("Sort", "Aggregate", "Hash", "Materialize"):
        plan = node("Limit", node(blocking, scan(rows=MANY), rows=MANY), rows=10)
        assert Rule.SEQUENTIAL_SCAN in rules(plan, table), blocking


def test_parallel_scan() -> None:
    """A parallel scan is one, too."""
    plan = scan(rows=10, condition="(customer = 7)") | {"Parallel Aware": True}
    assert rules(plan, facts(MANY)) == [Rule.SEQUENTIAL_SCAN, Rule.MISSING_INDEX]


# Indexes


@pytest.mark.parametrize(
    ("condition", "columns"),
    [
        ("(customer = 7)", "(customer)"),
        ("(o.customer = 7)", "(customer)"),
        ("((customer = 7) AND (id > 3))", "(customer, id) or"),
        ("(\"When\" > '2026-01-01 00:00:00+00'::timestamp with time zone)", '("When")'),
        ("((email)::text = 'customer = id'::text)", "(email)"),
        ("(email = 'it''s customer'::text)", "(email)"),
        ("((text)::character varying = 'a'::character varying)", "(text)"),
    ],
)
def test_missing_index(condition: str, columns: str) -> None:
    """The columns of a filter that keeps few rows are named; words in literals, and types, are none."""
    found = made(scan(rows=5, condition=condition), facts(MANY))
    assert [each.rule for each in found] == [Rule.SEQUENTIAL_SCAN, Rule.MISSING_INDEX]
    assert f"CREATE INDEX ON public.orders {columns}".replace(" or", ", or") in found[1].text


def test_filter_that_keeps_most_rows() -> None:
    """An index would not help a filter that keeps most rows."""
    assert rules(scan(rows=MANY / 2, condition="(customer > 7)"), facts(MANY)) == [Rule.SEQUENTIAL_SCAN]


def test_index_that_is_not_used() -> None:
    """Where there is an index on the column, no other is suggested: the filter is what to look at."""
    (_, found) = made(scan(rows=5, condition="(lower(email) = 'a'::text)"), facts(MANY, indexed="email"))
    assert found.rule is Rule.MISSING_INDEX
    assert "CREATE INDEX" not in found.text


def test_filter_without_a_column() -> None:
    """A filter in which no column is found has no index to suggest."""
    assert rules(scan(rows=5, condition="(random() > 0.5)"), facts(MANY)) == [Rule.SEQUENTIAL_SCAN]


# Sorts


def test_sort_size() -> None:
    """A sort fits work_mem by PostgreSQL's own estimate: width to a multiple of 8, and 24 bytes, for each row."""
    fits = WORK_MEM // (104 + 24)
    assert rules(node("Sort", rows=fits, width=100, Sort_Key=["note"])) == []
    (found,) = made(node("Sort", rows=fits + 1, width=100, Sort_Key=["note"]))
    assert found.rule is Rule.SORT_ON_DISK
    assert "4.0 MB, more than work_mem=4.0 MB" in found.text


def test_sort_for_the_first_rows() -> None:
    """A sort right below a LIMIT keeps no more rows than that."""
    plan = node("Limit", node("Sort", rows=MANY, width=100, Sort_Key=["note"]), rows=10)
    assert rules(plan) == []


# Estimates


@pytest.mark.parametrize(
    ("table", "off"),
    [
        (facts(5_000), False),
        (facts(5_000, live=49_000), False),
        (facts(5_000, live=50_000), True),
        (facts(50_000, live=5_000), True),
        (facts(50_000, live=0), False),  # the server's counters were lost
        (facts(0, live=5_000, planned=0), True),
        (facts(0, live=5_000, planned=None), True),
        (facts(0, live=FEW_ROWS - 1, planned=None), False),
    ],
)
def test_estimates(table: TableFacts, off: bool) -> None:
    """Ten times more or fewer rows than at the last ANALYZE are far off, and so is none; small tables do not matter."""
    assert (Rule.ESTIMATE_OFF in rules(scan(rows=1), table)) is off


def test_estimates_are_told_once() -> None:
    """A table that is read twice is told once."""
    plan = node("Append", scan(rows=1), scan(rows=1))
    assert rules(plan, facts(0, live=5_000, planned=None)) == [Rule.ESTIMATE_OFF]


# Nested loops


def test_nested_loop() -> None:
    """The rows of one side times those looked at on the other side count, all of a table that is scanned for each."""
    index = node("Index Scan", rows=1, **{"Relation Name": "orders"})
    assert rules(node("Nested Loop", node("Function Scan", rows=MANY_PAIRS - 1), index)) == []
    assert rules(node("Nested Loop", node("Function Scan", rows=MANY_PAIRS), index)) == [Rule.NESTED_LOOP]
    filtered = node("Materialize", scan(rows=1, condition="(customer = 7)"))
    small = facts(MANY_ROWS / 2)
    assert rules(node("Nested Loop", node("Function Scan", rows=10), filtered), small) == []
    assert rules(node("Nested Loop", node("Function Scan", rows=20), filtered), small) == [Rule.NESTED_LOOP]


def test_nested_loop_below_a_limit() -> None:
    """A loop that a LIMIT ends early runs as often as it takes."""
    loop = node("Nested Loop", node("Function Scan", rows=MANY), node("Index Scan", rows=1), rows=MANY)
    assert rules(node("Limit", loop, rows=10)) == []


# Plans


def test_labels() -> None:
    """A node is called as EXPLAIN calls it, with relation, alias and index."""
    plan = node("Index Scan", **{"Relation Name": "orders", "Alias": "o", "Index Name": "orders_pkey"})
    assert PlanNode.read(plan).label == "Index Scan using orders_pkey on orders o"
    assert PlanNode.read(node("Function Scan", Alias="n")).label == "Function Scan on n"
    assert PlanNode.read(scan()).label == "Seq Scan on orders"


def test_lines() -> None:
    """A plan as text: each node below its parent, with its conditions."""
    plan = node("Sort", scan(rows=1234, condition="(id = 1)"), rows=5, Sort_Key=["a", "b"])
    assert list(PlanNode.read(plan).lines()) == [
        "Sort  rows 5, cost 1",
        "  key: a, b",
        "  Seq Scan on orders  rows 1,234, cost 1",
        "    filter: (id = 1)",
    ]


def test_deep_plan() -> None:
    """A plan of more than DEEPEST levels is refused, before anything recurses into it."""
    plan = node("Result")
    for _ in range(DEEPEST - 1):
        plan = node("Subquery Scan", plan)
    PlanNode.read(plan)
    with pytest.raises(PlanTooDeep):
        PlanNode.read(node("Subquery Scan", plan))
