"""A plan as a chart, connections against workers: a picture, or text for a terminal."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.plan import Plan, PlanError, WayOut

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 500  # of a line; a picture shows no more
NARROWEST = 40  # columns
ROWS = 20  # of the plot in a terminal, without title and axis
SHORT_BELOW = 100  # columns; long labels would leave too little for the lines

# A picture's measures, in points. Labels are placed on a grid of cells by what their letters need at most.
PICTURE = (720.0, 400.0)
AXES = (48.0, 44.0, 400.0, 300.0)  # left, bottom, width, height
CELL = 4.0
LETTER = (5.6, 13.0)
FONT = 9.0

Point = tuple[float, float]  # workers, connections
Cell = tuple[int, int]  # column from the left, row from below


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the chart. Its sign draws it in a terminal and names its style in a picture."""

    sign: str
    label: str
    short: str  # the label where there is little room
    points: tuple[Point, ...]  # within the chart, from left to right


@dataclass(frozen=True, slots=True)
class Mark:
    """What the plan comes to at its number of workers."""

    sign: str
    label: str
    short: str
    point: Point


@dataclass(frozen=True, slots=True)
class Chart:
    """All that is drawn, in the plan's units: the axes begin at 0, later lines lie on top of earlier ones."""

    title: tuple[str, ...]
    workers: int  # the right end of the one axis
    connections: float  # the upper end of the other
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]

    def cell(self, point: Point, grid: Cell) -> Cell:
        """Where a point lies on a grid of (columns, rows) over the chart."""
        x, y = point
        return _nearest(x / self.workers * (grid[0] - 1)), _nearest(y / self.connections * (grid[1] - 1))

    def cells(self, line: Line, grid: Cell) -> Iterator[Cell]:
        """The cells of a grid that a line runs through."""
        for start, end in pairwise(line.points):
            (left, low), (right, high) = self.cell(start, grid), self.cell(end, grid)
            steps = max(1, 2 * (right - left), 2 * abs(high - low))
            for step in range(steps + 1):
                yield self.cell(_between(start, end, step / steps), grid)

    def at_right(self) -> tuple[Line, ...]:
        """The lines that reach the right edge, where their labels stand."""
        return tuple(line for line in self.lines if line.points[-1][0] == self.workers)

    def above(self) -> tuple[Line, ...]:
        """The lines that end at the upper edge, with their labels above it: at most that of the deployment."""
        return tuple(line for line in self.lines if line.points[-1][0] < self.workers)

    def corners(self, sizes: Sequence[Cell], grid: Cell, around: int) -> list[Cell]:
        """The lower left cells of the marks' labels, of such sizes; `around` cells beside a mark stay free."""
        lines = {cell for line in self.lines for cell in self.cells(line, grid)}
        centres = [self.cell(mark.point, grid) for mark in self.marks]
        side = 2 * around + 1
        taken = {cell for x, y in centres for cell in box((x - around, y - around), (side, side))}
        corners = []
        for size, centre in zip(sizes, centres, strict=True):
            corners.append(place(size, centre, grid, lines, taken))
            taken |= set(box(corners[-1], size))
        return corners


def chart_of(plan: Plan) -> Chart:
    """The geometry of a plan's chart, shared by both outputs. Pure."""
    demand, supply, pooler = plan.demand, plan.supply, plan.pooler
    ways = tuple(enumerate(plan.ways_out(), 1))
    at_clients = pooler is not None and demand.peak > pooler.max_client_conn
    of_deployment = (
        _clients_deploy if pooler is not None and demand.deploy > pooler.max_client_conn else _servers_deploy
    )
    workers = _last_worker(plan)
    last = _with_workers(plan, workers)
    highest = [last.servers_peak, of_deployment(plan), supply.available, *(w.plan.supply.usable for _, w in ways)]
    if pooler is not None:
        highest.append(last.demand.peak)
    connections = 1.08 * max(highest)  # so that nothing lies on the upper edge

    def rising(sign: str, label: str, short: str, of: Callable[[Plan], int], on: Plan = plan) -> Line:
        numbers = {*range(1, workers, max(1, workers // SAMPLES)), demand.workers, workers}
        points = [(float(number), float(of(_with_workers(on, number)))) for number in sorted(numbers)]
        return Line(sign, label, short, _below(connections, _bends(points)))

    def level(sign: str, name: str, height: int, why: str) -> Line:
        return Line(sign, f"{name} {height}{why}", f"{name} {height}", ((0, height), (workers, height)))

    def way_out(number: int, way: WayOut) -> Line:
        sign, prefix, pools = str(number), f"way out {number}: ", f"pools of {way.plan.demand.pool_max}"
        if way.plan.supply != supply:
            most, usable = way.plan.supply.max_connections, way.plan.supply.usable
            line = level(sign, "usable", usable, f", max_connections={most}")
            return replace(line, label=prefix + line.label)
        if way.plan.pooler != pooler:
            return rising(sign, f"{prefix}{way.name}, {pools}", way.name, _servers_peak, way.plan)
        return rising(sign, prefix + pools, pools, _clients if at_clients else _servers_peak, way.plan)

    lines = [
        level("=", "available", supply.available, f" of max_connections={supply.max_connections}"),
        level("-", "usable", supply.usable, f", {supply.head_room_percent} % head room"),
    ]
    if pooler is not None and pooler.max_client_conn <= connections:
        most_clients = level("~", "max_client_conn", pooler.max_client_conn, "")
        lines.append(replace(most_clients, short=f"at most {pooler.max_client_conn}"))
    lines += [way_out(number, way) for number, way in ways]
    if demand.surge > 1:
        lines.append(rising(".", f"peak of a deployment (× {demand.surge})", "deployment", of_deployment))
    if pooler is None:
        lines.append(rising("*", f"peak, pools of {demand.pool_max}", "peak", _servers_peak))
    else:
        lines.append(rising("c", f"clients of PgBouncer, pools of {demand.pool_max}", "clients", _clients))
        lines.append(rising("*", "peak at the server", "server", _servers_peak))
    marks = _marks(plan, of_deployment(plan), near=connections / 20)
    return Chart(tuple(_title(plan)), workers, connections, tuple(lines), tuple(marks))


def _servers_peak(plan: Plan) -> int:
    return plan.servers_peak


def _servers_deploy(plan: Plan) -> int:
    return plan.servers_deploy


def _clients(plan: Plan) -> int:
    return plan.demand.peak


def _clients_deploy(plan: Plan) -> int:
    return plan.demand.deploy


def _with_workers(plan: Plan, workers: int) -> Plan:
    return replace(plan, demand=replace(plan.demand, workers=workers))


def _last_worker(plan: Plan) -> int:
    """Half as far again as the plan goes, and as workers fit; behind a pooler, as its server connections last."""
    edge = plan.max_workers
    if plan.pooler is not None:
        edge = min(edge, ceil(plan.pooler.servers / plan.demand.pool_max))
    return max(4, ceil(1.5 * max(plan.demand.workers, edge)))


def _title(plan: Plan) -> Iterator[str]:
    demand, usable = plan.demand, plan.supply.usable
    processes = f"{_counted(demand.workers)} × {demand.pool_max}"
    if demand.bots:
        processes += f" + {demand.bots} × {demand.bot_pool_max}"
    if plan.pooler is None:
        total = f"{processes} + {demand.overhead} = {plan.total_peak} connections"
    else:
        clients = f"{demand.peak} of {plan.pooler.max_client_conn} clients of PgBouncer"
        total = f"{processes} = {clients}, {plan.servers_peak} connections at the server"
    yield f"{total}, {usable} usable: {plan.verdict}"
    fits = []
    if plan.max_workers:
        fits.append(f"{_counted(plan.max_workers)} with pools of {demand.pool_max}")
    if plan.max_pool:
        fits.append(f"{_counted(demand.workers)} with pools of {plan.max_pool}")
    yield f"the most that fits: {' or '.join(fits) or 'nothing'}"


def _marks(plan: Plan, deployment: int, near: float) -> Iterator[Mark]:
    workers, servers, pooler = plan.demand.workers, plan.servers_peak, plan.pooler
    verdict = plan.supply.verdict(servers)
    label = f"{_counted(workers)}: {servers}, {verdict}"
    together = deployment - servers < near and plan.verdict_deploy is verdict
    if together and plan.demand.surge > 1:
        label += f" ({deployment} in a deployment)"
    yield Mark("@", label, f"{servers} {verdict}", (workers, servers))
    if not together:
        label = f"in a deployment: {deployment}, {plan.verdict_deploy}"
        yield Mark("O", label, f"{deployment} {plan.verdict_deploy}", (workers, deployment))
    if pooler is not None:
        clients = plan.demand.peak
        label = f"{clients} of {pooler.max_client_conn} clients" + (
            ": over" if clients > pooler.max_client_conn else ""
        )
        yield Mark("O", label, f"{clients} clients", (workers, clients))


def _counted(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def _bends(points: Sequence[Point]) -> tuple[Point, ...]:
    """The ends of a line, and the points where it changes direction."""
    inner = (
        b
        for a, b, c in zip(points, points[1:], points[2:], strict=False)
        if (b[1] - a[1]) * (c[0] - b[0]) != (c[1] - b[1]) * (b[0] - a[0])
    )
    return (points[0], *inner, points[-1])


def _below(top: float, points: Sequence[Point]) -> tuple[Point, ...]:
    """A rising line up to where it leaves the chart."""
    kept = [point for point in points if point[1] <= top]
    if 0 < len(kept) < len(points):
        start, end = kept[-1], points[len(kept)]
        kept.append(_between(start, end, (top - start[1]) / (end[1] - start[1])))
    return tuple(kept)


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _nearest(number: float) -> int:
    return floor(number + 0.5)  # round() would put both 0.5 and -0.5 on 0


def spread(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Heights as near to the wanted ones as leaves each `gap` from the next, within 0 to top.

    Those too close to each other become a group, centred on what its members wanted.
    """

    def lowest(group: list[int]) -> float:
        height = gap * (len(group) - 1)
        return max(0.0, min(top - height, sum(wanted[index] for index in group) / len(group) - height / 2))

    groups: list[list[int]] = []
    for index in sorted(range(len(wanted)), key=lambda index: wanted[index]):
        groups.append([index])
        while len(groups) > 1 and lowest(groups[-1]) < lowest(groups[-2]) + gap * len(groups[-2]):
            upper = groups.pop()
            groups[-1] += upper
    heights = {index: lowest(group) + gap * place for group in groups for place, index in enumerate(group)}
    return [heights[index] for index in range(len(wanted))]


def place(size: Cell, near: Cell, grid: Cell, lines: set[Cell], labels: set[Cell]) -> Cell:
    """The lower left cell of a label near a cell: clear of other labels, and of lines as far as may be."""
    (width, height), (column, row), (columns, rows) = size, near, grid

    def cost(corner: Cell) -> float:
        covered = set(box(corner, size))
        aside = abs(corner[0] + (width - 1) / 2 - column) - width / 2
        above = abs(corner[1] + (height - 1) / 2 - row)
        return 50 * len(covered & labels) + len(covered & lines) + max(0.0, aside) / 2 + above

    lefts = {max(0, min(columns - width, left)) for left in (column + 2, column - width - 1, column - width // 2)}
    lows = range(max(0, row - 6 * height), max(1, min(rows - height, row + 6 * height) + 1))
    return min(((left, low) for left in sorted(lefts, reverse=True) for low in lows), key=cost)


def box(corner: Cell, size: Cell) -> Iterator[Cell]:
    """The cells of a rectangle, from its lower left cell and its (columns, rows)."""
    return ((corner[0] + x, corner[1] + y) for x in range(size[0]) for y in range(size[1]))


def ticks(top: float, about: int) -> list[int]:
    """Round whole numbers from 0 up to top, at most one more than `about`."""
    least = max(1.0, top / about)
    power = 10 ** floor(log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
    return list(range(0, floor(top) + 1, step))


def plot(plan: Plan, width: int) -> str:
    """The chart as plain text, `width` columns wide (at least 40). Lines are told apart by their signs."""
    chart, width = chart_of(plan), max(NARROWEST, width)
    short = width < SHORT_BELOW

    def text(part: Line | Mark) -> str:
        label = part.short if short else part.label
        return f"{part.sign} {label}" if isinstance(part, Line) else label

    scale = {chart.cell((0, tick), (1, ROWS))[1]: str(tick) for tick in ticks(chart.connections, 5)}
    left = max(map(len, scale.values()))
    grid = (width - left - len(" | ") - max(len(text(line)) for line in chart.lines), ROWS)

    cells = {cell: line.sign for line in chart.lines for cell in chart.cells(line, grid)}
    cells |= {chart.cell(mark.point, grid): mark.sign for mark in reversed(chart.marks)}
    texts = [f" {text(mark)} " for mark in chart.marks]
    sizes = [(len(label), 1) for label in texts]
    for label, size, corner in zip(texts, sizes, chart.corners(sizes, grid, around=0), strict=True):
        cells |= dict(zip(box(corner, size), label, strict=True))
    rows = spread([chart.cell(line.points[-1], grid)[1] for line in chart.at_right()], 1, ROWS - 1)
    margin = {_nearest(row): text(line) for row, line in zip(rows, chart.at_right(), strict=True)}
    axis = [" "] * (grid[0] + left)
    for tick in ticks(chart.workers, max(1, grid[0] // 8)):
        column = chart.cell((tick, 0), grid)[0]
        axis[column : column + len(str(tick))] = str(tick)

    page = [line for title in chart.title for line in textwrap.wrap(title, width)]
    page.append("")
    for line in chart.above():
        column = left + len(" |") + chart.cell(line.points[-1], grid)[0]
        page.append(" " * min(column, width - len(text(line))) + text(line))
    for row in reversed(range(ROWS)):
        drawn = "".join(cells.get((column, row), " ") for column in range(grid[0]))
        page.append(f"{scale.get(row, ''):>{left}} |{drawn} {margin.get(row, '')}")
    page += [" " * left + " +" + "-" * grid[0], " " * left + "  " + "".join(axis).rstrip() + " workers"]
    if short and plan.ways_out():
        page.append("a line with a number is a way out")
    return "\n".join(line.rstrip() for line in page)


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
        figure = Figure(figsize=(PICTURE[0] / 72, PICTURE[1] / 72))
        _paint(chart_of(plan), figure)
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(picture, format=kind, dpi=150, metadata=metadata)
    try:
        file.write_bytes(picture.getvalue())
    except OSError as error:
        raise PlanError(f"{file} cannot be written: {error.strerror}") from error


def _paint(chart: Chart, figure: Figure) -> None:
    left, bottom, width, height = AXES
    axes = figure.add_axes((left / PICTURE[0], bottom / PICTURE[1], width / PICTURE[0], height / PICTURE[1]))
    axes.set(xlim=(0, chart.workers), ylim=(0, chart.connections), xlabel="workers", ylabel="connections")
    for set_ticks, top, about in ((axes.set_xticks, chart.workers, 10), (axes.set_yticks, chart.connections, 8)):
        set_ticks(ticks(top, about), [str(tick) for tick in ticks(top, about)])
    axes.spines[["top", "right"]].set_visible(False)
    for title, y, weight in zip(chart.title, (PICTURE[1] - 18, PICTURE[1] - 34), ("bold", "normal"), strict=True):
        figure.text(left / PICTURE[0], y / PICTURE[1], title, weight=weight, size=FONT + 1)

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
