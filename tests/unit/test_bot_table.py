from __future__ import annotations

from bot.table import table


def test_columns_are_aligned() -> None:
    """Text is aligned to the left, a column of numbers to the right, and no line ends in a space."""
    assert table([("worker", 7, "a"), ("bot", 12, "")], header=("role", "pid", "note")).splitlines() == [
        "role    pid  note",
        "worker    7  a",
        "bot      12",
    ]


def test_column_with_a_word_is_text() -> None:
    """A column that is not numbers throughout is aligned to the left."""
    assert table([("a", 1), ("b", "-")]).splitlines() == ["a  1", "b  -"]


def test_empty_table() -> None:
    """Without rows there is the header, or nothing."""
    assert table([]) == ""
    assert table([], header=("role", "pid")) == "role  pid"
