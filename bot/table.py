"""A table of plain text, for a console and for a chat that shows monospace."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[object]], header: Sequence[str] | None = None) -> str:
    """Columns two spaces apart; numbers to the right, text to the left; no line ends in a space."""
    lines = [header, *rows] if header is not None else list(rows)
    cells = [[str(cell) for cell in line] for line in lines]
    columns = range(max(map(len, cells), default=0))
    widths = [max(len(line[column]) for line in cells) for column in columns]
    right = [all(isinstance(row[column], int | float) for row in rows) for column in columns]
    return "\n".join(
        "  ".join(
            line[column].rjust(widths[column]) if right[column] else line[column].ljust(widths[column])
            for column in columns
        ).rstrip()
        for line in cells
    )
