from __future__ import annotations

import pytest

from bot.explain_command import LONGEST_LINE, MOST_LINES, NO_SUGGESTIONS, plan_text, suggestions_text
from db.explain import LONGEST, ExplainRefused, first_word, one_query
from db.query_plan import PlanNode
from db.suggestions import Rule, Suggestion


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("SELECT 1", "SELECT"),
        ("select*from t", "select"),
        (" \t\n ((SELECT 1))", "SELECT"),
        ("-- a\n--b\nWITH", "WITH"),
        ("/* a /* b */ SELECT */ TABLE t", "TABLE"),
        ("/**/SELECT", "SELECT"),
        ("/*/ SELECT */ DROP", "DROP"),
        ("--", ""),
        ("/* /* */ SELECT 1", ""),
        ("'SELECT'", ""),
        ("selection", "selection"),
        ("SELECT$1", "SELECT$1"),
        ("", ""),
    ],
)
def test_first_word(sql: str, word: str) -> None:
    """Blanks, brackets and comments are skipped as PostgreSQL does it, nested ones too."""
    assert first_word(sql) == word


def test_one_query() -> None:
    """Blanks and semicolons at the end are left out; the longest query has LONGEST bytes."""
    assert one_query(" SELECT 1 ;; \n") == "SELECT 1"
    longest = "SELECT 1" + "1" * (LONGEST - 8)
    assert one_query(longest) == longest
    with pytest.raises(ExplainRefused, match="shorten it"):
        one_query(longest + "1")


def plan(children: int, relation: str = "t") -> PlanNode:
    raw = {"Node Type": "Seq Scan", "Plan Rows": 1, "Plan Width": 1, "Total Cost": 1.0, "Relation Name": relation}
    return PlanNode.read(raw | {"Node Type": "Append", "Plans": [raw] * children})


def test_plan_is_shortened() -> None:
    """A chat is shown so many lines of a plan, each of a bounded length, and how many more there are."""
    assert len(plan_text(plan(MOST_LINES - 1)).splitlines()) == MOST_LINES
    assert plan_text(plan(MOST_LINES + 4)).splitlines()[-1] == "… and 5 more lines"
    (line,) = plan_text(plan(0, "x" * 500)).splitlines()
    assert len(line) == LONGEST_LINE


def test_suggestions_are_one_line_each() -> None:
    """Suggestions are lines with their node; where there is none, that is said."""
    suggestion = Suggestion(Rule.SORT_ON_DISK, "Sort", "sorts\nmuch")
    assert suggestions_text([suggestion]) == "• Sort: sorts much"
    assert suggestions_text([suggestion] * 12).splitlines()[-1] == "… and 2 more suggestions"
    assert suggestions_text([]) == NO_SUGGESTIONS
