"""The run's chart: what each contender reaches, as bars beside each other. SVG, painted by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contender import DEDICATED, ENGINE
from benchmarks.measurements import Case, Measurements, Spread
from benchmarks.path import DELAYED, DIRECT
from benchmarks.work import TITLES, Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORKS = (Work.READ, Work.TRANSACTION)  # a row of panels for each
COLUMNS = ((DIRECT, 1), (DIRECT, 10), (DELAYED, 10))
WIDTH, ROW, MARGIN = 8.6, 2.3, 0.75  # inches: the whole, a row of panels, above all
FONT = 9.0

# The blue that Okabe and Ito chose; in print the bars differ by their brightness and their hatching.
BLUE, BLACK, GREY = "#0072B2", "#000000", "#D0D0D0"


def draw(measurements: Measurements, file: Path) -> None:
    """Writes the panels that were measured; no file where there is none."""
    cases = {Case(path, work, tasks) for work in WORKS for path, tasks in COLUMNS} & measurements.rates.keys()
    works = [work for work in WORKS if any(case.work == work for case in cases)]
    columns = [
        (path, tasks) for path, tasks in COLUMNS if any((case.path, case.tasks) == (path, tasks) for case in cases)
    ]
    if not cases:
        return
    from matplotlib import rc_context, rcdefaults, rcParams  # takes a second
    from matplotlib.figure import Figure

    picture = io.BytesIO()
    with rc_context():
        rcdefaults()  # whatever a matplotlibrc of this machine says
        rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "poolctl", "font.size": FONT, "hatch.linewidth": 0.6})
        height = MARGIN + ROW * len(works)
        figure = Figure(figsize=(WIDTH, height))
        panels = figure.subplots(len(works), len(columns), squeeze=False)
        for row, work in zip(panels, works, strict=True):
            for axes, (path, tasks) in zip(row, columns, strict=True):
                _panel(axes, work, path, tasks, measurements.spreads(Case(path, work, tasks)))
            for axes in row[1:]:
                axes.set_yticklabels([])
        title = "Operations per second on pools of ten: median of the rounds, a line from the lowest to the highest"
        figure.text(0.01, 1 - 0.2 / height, title, weight="bold", size=FONT + 1)
        figure.subplots_adjust(left=0.225, right=0.975, top=1 - MARGIN / height, bottom=0.06, wspace=0.12, hspace=0.3)
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture.getvalue())


def _panel(axes: Axes, work: Work, path: str, tasks: int, spreads: Mapping[str, Spread]) -> None:
    where = "direct" if path == DIRECT else "1 ms per round trip"
    axes.set_title(f"{TITLES[work]},\n{where}, {tasks} task{'s' * (tasks > 1)}", loc="left", size=FONT)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False, left=False)
    axes.set_yticks(range(len(spreads)), list(spreads))
    axes.invert_yaxis()
    most = max((spread.highest for spread in spreads.values()), default=1.0)
    axes.set_xlim(0, 1.3 * most)  # room for the numbers
    for y, (contender, spread) in enumerate(spreads.items()):
        face, hatch = {ENGINE: (BLUE, ""), DEDICATED: ("white", "////")}.get(contender, (GREY, ""))
        axes.barh(y, spread.median, height=0.7, color=face, hatch=hatch, edgecolor=BLACK, linewidth=0.6)
        axes.plot((spread.lowest, spread.highest), (y, y), color=BLACK, linewidth=1.2)
        weight = "bold" if contender == ENGINE else "normal"
        x = max(spread.highest, spread.median) + 0.02 * most
        axes.text(x, y, f"{spread.median:,.0f}", va="center_baseline", weight=weight)
