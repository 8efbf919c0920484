"""What `poolctl up` shows while it runs: log lines, and below them a live table where there is a terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

OWN_NAME = "up"
NAME_WIDTH = 9  # "worker-99"
COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
PROGRESS_STEPS = 10  # lines about the progress where no bar can be drawn


class FleetScreen:
    """A console with a live part; see `open_fleet_screen`."""

    def __init__(self, console: Console, live: Live | None) -> None:
        self._console = console
        self._live = live
        self._colours: dict[str, str] = {OWN_NAME: "bold"}
        self._table: RenderableType = ""
        self._reported = 0  # jobs, in the last line about the progress
        self._bar = Progress(
            TextColumn("exercise"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), auto_refresh=False
        )

    @property
    def live(self) -> bool:
        """Whether there is a terminal, so that a table is seen while it changes."""
        return self._live is not None

    def line(self, name: str, text: str) -> None:
        """A line of the process `name`."""
        colour = self._colours.setdefault(name, COLOURS[(len(self._colours) - 1) % len(COLOURS)])
        self._console.print(Text.assemble((f"{name:<{NAME_WIDTH}} | ", colour), text))

    def say(self, text: str) -> None:
        """A line of our own."""
        self.line(OWN_NAME, text)

    def part(self, part: RenderableType) -> None:
        """A part of a report."""
        self._console.print(part)

    def table(self, table: RenderableType) -> None:
        """Put `table` in the place of the one before."""
        self._table = table
        self._draw()

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` jobs."""
        if self._live is None:
            step = max(1, total // PROGRESS_STEPS)
            if done // step > self._reported // step or done == total:
                self.say(f"exercise: {done} of {total} jobs")
                self._reported = done
            return
        if not self._bar.tasks:
            self._bar.add_task("exercise", total=total)
        self._bar.update(self._bar.tasks[0].id, completed=done)
        self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(Group(self._table, self._bar) if self._bar.tasks else self._table, refresh=True)


class _ScreenHandler(logging.Handler):
    """Warnings of our own process, between the lines of the others."""

    def __init__(self, screen: FleetScreen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """One line; tracebacks have no place in a table."""
        self._screen.say(f"{record.levelname} {record.getMessage()}")


@contextmanager
def open_fleet_screen(console: Console) -> Iterator[FleetScreen]:
    """Draw on `console` while inside; the live part is gone afterwards."""
    # Drawn by our own loop: a thread of rich's would be one more thread at each fork.
    live = (
        Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
        if console.is_terminal
        else None
    )
    screen = FleetScreen(console, live)
    handler = _ScreenHandler(screen)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        if live is None:
            yield screen
        else:
            with live:
                yield screen
    finally:
        root.removeHandler(handler)
