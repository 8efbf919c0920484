"""Where commands print: columns, colours on a terminal only, and nothing cut off elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

UNCUT_WIDTH = 100_000  # columns; without a terminal there is no width to fit into


def open_screen() -> Console:
    """Standard output that shows values as they are: no markup is read from them, no numbers are coloured."""
    terminal = sys.stdout.isatty()
    return Console(
        force_terminal=terminal,  # rich would also listen to FORCE_COLOR
        color_system="auto" if terminal else None,
        width=None if terminal else UNCUT_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
    )


def plain_table(*columns: str) -> Table:
    """A table without frames, which a person reads and `awk` can split; values that do not fit are folded."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=False)
    return table
