"""A plan as a chart, connections against workers: what is drawn where, with which words. Pure.

A terminal shows it as text, by `plot`; plan_picture.py paints it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, floor, inf, log10

from config.groups import LARGEST_POOL
from fleet.plan import Plan, Verdict
from fleet.ways_out import WayOut, ways_out

SAMPLES = 500  # of a line; a picture shows no more
NARROWEST = 40  # columns
ROWS = 20  # of the plot in a terminal, without title and axis
SHORT_BELOW = 100  # columns; long labels would leave too little for the lines

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
    """The geometry of a plan's chart, shared by both outputs."""
    demand, supply, pooler = plan.demand, plan.supply, plan.pooler
    ways = tuple(enumerate(ways_out(plan), 1))
    most_clients = inf if pooler is None else pooler.max_client_conn
    of_peak = _clients if plan.total_peak > most_clients else _servers_peak
    of_deployment = _clients_deploy if plan.total_deploy > most_clients else _servers_deploy
    workers = _last_worker(plan)
    last = _with_workers(plan, workers)
    highest = [last.servers_peak, of_deployment(plan), supply.available, *(w.plan.supply.usable for _, w in ways)]
    if pooler is not None:
        highest += [last.total_peak, *(_most_clients(w) for _, w in ways if _most_clients(w) > most_clients)]
    connections = 1.08 * max(highest)  # so that nothing lies on the upper edge

    def rising(sign: str, label: str, short: str, of: Callable[[Plan], int], on: Plan = plan) -> Line:
        numbers = {*range(1, workers, max(1, workers // SAMPLES)), demand.workers, workers}
        points = [(float(number), float(of(_with_workers(on, number)))) for number in sorted(numbers)]
        return Line(sign, label, short, _below(connections, _bends(points)))

    def level(sign: str, label: str, short: str, height: int) -> Line:
        return Line(sign, label, short, ((0, height), (workers, height)))

    def way_out(number: int, way: WayOut) -> Line:
        sign, prefix, pools = str(number), f"way out {number}: ", f"pools of {way.plan.demand.pool_max}"
        if way.plan.supply != supply:
            raised = way.plan.supply
            label = f"{prefix}usable {raised.usable}, max_connections={raised.max_connections}"
            return level(sign, label, f"usable {raised.usable}", raised.usable)
        if _most_clients(way) > most_clients:
            label = f"max_client_conn {_most_clients(way)}"
            return level(sign, prefix + label, f"at most {_most_clients(way)}", _most_clients(way))
        if way.plan.pooler != pooler:
            return rising(sign, f"{prefix}{way.name}, {pools}", way.name, _servers_peak, way.plan)
        return rising(sign, prefix + pools, pools, of_peak, way.plan)

    available, usable = f"available {supply.available}", f"usable {supply.usable}"
    lines = [
        level("=", f"{available} of max_connections={supply.max_connections}", available, supply.available),
        level("-", f"{usable}, {supply.head_room_percent} % head room", usable, supply.usable),
    ]
    if pooler is not None and pooler.max_client_conn <= connections:
        most = pooler.max_client_conn
        lines.append(level("~", f"max_client_conn {most}", f"at most {most}", most))
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
    return plan.total_peak


def _clients_deploy(plan: Plan) -> int:
    return plan.total_deploy


def _most_clients(way: WayOut) -> int:
    return 0 if way.plan.pooler is None else way.plan.pooler.max_client_conn


def _with_workers(plan: Plan, workers: int) -> Plan:
    return replace(plan, demand=replace(plan.demand, workers=workers))


def _last_worker(plan: Plan) -> int:
    """Half as far again as the plan goes, and as workers fit; behind a pooler, as its server connections last."""
    edge = plan.max_workers
    if plan.pooler is not None:
        edge = min(edge, ceil(plan.pooler.servers / plan.demand.pool_max))
    return min(LARGEST_POOL, max(4, ceil(1.5 * max(plan.demand.workers, edge))))


def _title(plan: Plan) -> Iterator[str]:
    demand, usable = plan.demand, plan.supply.usable
    processes = f"{_counted(demand.workers)} × {demand.pool_max}"
    if demand.bots:
        processes += f" + {demand.bots} × {demand.bot_pool_max}"
    processes += f" + {demand.overhead} = {plan.total_peak}"
    if plan.pooler is None:
        total = f"{processes} connections"
    else:
        total = f"{processes} of {plan.pooler.max_client_conn} clients, {plan.servers_peak} connections at the server"
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
        clients = plan.total_peak
        over = ": over" if pooler.verdict(clients) is Verdict.OVER else ""
        label = f"{clients} of {pooler.max_client_conn} clients{over}"
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
    heights = {index: lowest(group) + gap * rank for group in groups for rank, index in enumerate(group)}
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
    if short and ways_out(plan):
        page.append("a line with a number is a way out")
    return "\n".join(line.rstrip() for line in page)
