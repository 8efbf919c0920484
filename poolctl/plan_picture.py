"""A plan's chart as a picture, SVG or PNG, painted by matplotlib."""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.plan import Plan, PlanError
from poolctl.plan_chart import Chart, chart_of, spread, ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In points. Marks' labels are placed on a grid of cells, by what their letters need at most.
WIDTH, HEIGHT = 720.0, 400.0
AXES = (48.0, 44.0, 400.0, 300.0)  # left, bottom, width, height
CELL = 4.0
LETTER = (5.6, 13.0)
FONT = 9.0


@dataclass(frozen=True, slots=True)
class Style:
    """How a picture shows a line: told apart by its dashes in print, and by colours that Okabe and Ito chose."""

    color: str
    width: float  # points
    dashes: tuple[float, ...] = ()  # drawn and left out in turn, in widths of the line; () = drawn through


BLACK, ORANGE, GREEN, BLUE, VERMILION, PURPLE = "#000000", "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
STYLES = {  # of the lines' signs
    "=": Style(VERMILION, 1.4),
    "-": Style(GREEN, 1.4, (9, 3)),
    "~": Style(VERMILION, 1.4, (9, 3, 1, 3)),
    "1": Style(ORANGE, 2.0, (1, 1)),
    "2": Style(PURPLE, 1.8, (5, 2, 1, 2)),
    "3": Style(BLACK, 1.8, (4, 1.5, 1, 1.5, 1, 1.5)),
    ".": Style(BLUE, 1.0, (4, 3)),
    "c": Style(BLACK, 1.4, (2, 2)),
    "*": Style(BLUE, 2.8),
}


def draw(plan: Plan, file: Path) -> None:
    """Writes the chart as SVG or PNG, by the file's ending; the same plan gives the same bytes.

    Raises PlanError for another ending, a file that cannot be written, or if the extra `chart` is not installed.
    """
    kind = file.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise PlanError(f"{file} is no picture that can be drawn: give a file that ends in .svg or .png")
    try:
        from matplotlib import rc_context, rcdefaults, rcParams
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlanError("a picture needs matplotlib, which is missing: pip install 'poolctl[chart]'") from error

    picture = io.BytesIO()
    with rc_context():
        rcdefaults()  # whatever a matplotlibrc of this machine says
        rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "poolctl", "font.size": FONT})
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        _paint(chart_of(plan), figure)
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(picture, format=kind, dpi=150, metadata=metadata)
    try:
        file.write_bytes(picture.getvalue())
    except OSError as error:
        raise PlanError(f"{file} cannot be written: {error.strerror}") from error


def _paint(chart: Chart, figure: Figure) -> None:
    left, bottom, width, height = AXES
    axes = figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))
    axes.set(xlim=(0, chart.workers), ylim=(0, chart.connections), xlabel="workers", ylabel="connections")
    for axis, numbers in ((axes.xaxis, ticks(chart.workers, 10)), (axes.yaxis, ticks(chart.connections, 8))):
        axis.set_ticks(numbers, [str(number) for number in numbers])
    axes.spines[["top", "right"]].set_visible(False)
    for title, below_top, weight in zip(chart.title, (18, 34), ("bold", "normal"), strict=True):
        figure.text(left / WIDTH, 1 - below_top / HEIGHT, title, weight=weight, size=FONT + 1)

    for line in chart.lines:
        style = STYLES[line.sign]
        dashes = (0, style.dashes) if style.dashes else "solid"
        axes.plot(*zip(*line.points, strict=True), color=style.color, linewidth=style.width, linestyle=dashes)
    workers, highest = chart.marks[0].point[0], max(mark.point[1] for mark in chart.marks)
    axes.plot((workers, workers), (0, highest), color="#888888", linewidth=0.6, zorder=1)
    for mark in reversed(chart.marks):  # the peak on top
        face = BLUE if mark.sign == "@" else "white"
        axes.plot(*mark.point, "o", markersize=7, color=BLUE, markerfacecolor=face, zorder=4)

    grid = (int(width / CELL), int(height / CELL))
    sizes = [(ceil(len(mark.label) * LETTER[0] / CELL), ceil(LETTER[1] / CELL)) for mark in chart.marks]
    halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
    for mark, (column, row) in zip(chart.marks, chart.corners(sizes, grid, around=1), strict=True):
        x, y = column / grid[0], (row + 0.8) / grid[1]
        axes.text(x, y, mark.label, transform=axes.transAxes, weight="bold", bbox=halo, zorder=3)
    for line in chart.above():
        x = line.points[-1][0] / chart.workers
        axes.text(x, 1 + 4 / height, line.label, transform=axes.transAxes)
    ends = [line.points[-1][1] / chart.connections * height for line in chart.at_right()]
    for line, end, y in zip(chart.at_right(), ends, spread(ends, LETTER[1], height), strict=True):
        leader = (1, 1 + 14 / width), (end / height, y / height)
        color = STYLES[line.sign].color
        axes.plot(*leader, transform=axes.transAxes, color=color, linewidth=0.8, clip_on=False)
        axes.text(1 + 18 / width, y / height, line.label, transform=axes.transAxes, va="center_baseline")
