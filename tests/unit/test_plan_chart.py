"""The plan's chart: its geometry, the picture, and the text for a terminal."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.groups import LARGEST_POOL
from fleet.plan import LARGEST_INT, LARGEST_SERVER, Demand, Plan, PlanError, Pooler, Supply
from poolctl.plan_chart import ROWS, Line, box, chart_of, place, plot, spread, ticks
from poolctl.plan_picture import STYLES, draw

FITS = Plan(Demand(workers=5, pool_max=10), Supply())
OVER = Plan(Demand(workers=10, pool_max=10), Supply())
POOLED = Plan(Demand(workers=20, pool_max=5), Supply(), Pooler())
HUGE = Plan(Demand(workers=100, pool_max=5), Supply(max_connections=1000))
ONE = Plan(Demand(workers=1, pool_max=1), Supply())
TOO_MANY_CLIENTS = Plan(Demand(workers=300, pool_max=5), Supply(), Pooler())
EXAMPLES = {
    "fits": FITS,
    "over": OVER,
    "pooled": POOLED,
    "huge": HUGE,
    "one": ONE,
    "too many clients": TOO_MANY_CLIENTS,
}

servers = st.builds(
    Supply,
    max_connections=st.integers(60, 5000) | st.integers(60, LARGEST_SERVER),
    head_room_percent=st.integers(0, 99),
)
poolers = st.builds(
    Pooler,
    default_pool_size=st.integers(1, 200) | st.integers(1, LARGEST_INT),
    max_client_conn=st.integers(1, 5000) | st.integers(1, LARGEST_INT),
)


def demands(largest_pool: int) -> st.SearchStrategy[Demand]:
    """Of ordinary numbers, and up to their bounds."""
    return st.builds(
        Demand,
        workers=st.integers(1, 2000) | st.integers(1, LARGEST_POOL),
        pool_max=st.integers(1, 60) | st.integers(1, largest_pool),
        bots=st.integers(0, 3) | st.integers(0, LARGEST_POOL),
        overhead=st.integers(0, 200) | st.integers(0, LARGEST_POOL),
        surge=st.integers(1, 3) | st.integers(1, LARGEST_POOL),
    )


plans = st.builds(Plan, demands(60), servers) | st.builds(Plan, demands(LARGEST_POOL), servers, poolers)


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Plan:
    """Each of the plans whose charts were looked at."""
    return EXAMPLES[request.param]


def line(plan: Plan, sign: str) -> Line:
    """The only line with that sign."""
    (found,) = (line for line in chart_of(plan).lines if line.sign == sign)
    return found


@given(plan=plans)
@settings(max_examples=60, deadline=None)
def test_everything_lies_within(plan: Plan) -> None:
    """Every line runs to the right, rises or stays level within the axes, has a style, and only one leaves above."""
    chart = chart_of(plan)
    for each in chart.lines:
        assert all(0 <= x <= chart.workers and 0 <= y <= chart.connections * 1.000001 for x, y in each.points)
        assert all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(each.points))
        assert each.sign in STYLES
    assert all(mark.point[0] == plan.demand.workers and mark.point[1] < chart.connections for mark in chart.marks)
    assert [each.sign for each in chart.above()] in ([], ["."])


def test_axis_goes_half_as_far_again() -> None:
    """The axis of workers ends at 1.5 times the plan's workers, or those that fit if they are more."""
    assert chart_of(OVER).workers == 15  # 10 planned, 6 fit
    assert chart_of(HUGE).workers == 236  # 100 planned, 157 fit


def test_peak_is_the_plans(example: Plan) -> None:
    """The line of the peak goes through what the plan comes to, and the first mark lies there with its verdict."""
    (workers, peak), label = chart_of(example).marks[0].point, chart_of(example).marks[0].label
    assert (workers, peak) == (example.demand.workers, example.servers_peak)
    assert f"{example.servers_peak}, {example.supply.verdict(example.servers_peak)}" in label
    chart = chart_of(example)
    assert chart.cell((workers, peak), (400, 400)) in set(chart.cells(line(example, "*"), (400, 400)))


def test_limits_are_level_lines() -> None:
    """The head-room line and what the server has available are level, and named with their values."""
    assert line(OVER, "-").points == ((0, 77), (15, 77))
    assert line(OVER, "=").points == ((0, 97), (15, 97))
    assert line(OVER, "-").label == "usable 77, 20 % head room"
    assert line(OVER, "=").label == "available 97 of max_connections=100"


def test_deployment_leaves_above() -> None:
    """A line that is too steep ends at the upper edge, where its own straight goes through it."""
    chart = chart_of(FITS)
    (steep,) = chart.above()
    x, y = steep.points[-1]
    assert y == pytest.approx(chart.connections)
    assert y == pytest.approx(2 * 10 * x + 10)


def test_no_line_for_a_deployment_without_surge() -> None:
    """When the old processes stop first, a deployment has no line and no mark of its own."""
    chart = chart_of(replace(FITS, demand=replace(FITS.demand, surge=1)))
    assert "." not in [each.sign for each in chart.lines]
    assert [mark.label for mark in chart.marks] == ["5 workers: 60, fits"]


def test_ways_out_are_drawn() -> None:
    """Each way out is a line with its number: smaller pools, a higher usable line, and the pooler's servers."""
    assert line(OVER, "1").label == "way out 1: pools of 6"
    assert line(OVER, "1").points[-1] == (15, 15 * 6 + 10)
    assert line(OVER, "2").label == "way out 2: usable 110, max_connections=141"
    assert line(OVER, "2").points == ((0, 110), (15, 110))
    assert line(OVER, "3").label == "way out 3: PgBouncer, pools of 5"
    assert line(OVER, "3").points == ((1, 15), (6, 40), (15, 40))


def test_no_way_out_where_it_fits() -> None:
    """A plan that fits has no lines of ways out."""
    assert {each.sign for each in chart_of(FITS).lines} == {"=", "-", ".", "*"}


def test_both_sides_of_a_pooler() -> None:
    """Behind a pooler the clients rise on while the connections at the server end at the pooler's."""
    assert line(POOLED, "c").points == ((1, 15), (30, 160))
    assert line(POOLED, "*").points == ((1, 15), (6, 40), (30, 40))
    assert [mark.label for mark in chart_of(POOLED).marks] == [
        "20 workers: 40, fits (40 in a deployment)",
        "110 of 1000 clients",
    ]


def test_too_many_clients() -> None:
    """Where a pooler takes fewer clients than there are, that limit is drawn, and the way out is one of clients."""
    assert line(TOO_MANY_CLIENTS, "~").points == ((0, 1000), (450, 1000))
    assert line(TOO_MANY_CLIENTS, "1").points[-1] == (450, 3 * 450 + 10)
    assert line(TOO_MANY_CLIENTS, "2").label == "way out 2: max_client_conn 3010"
    assert line(TOO_MANY_CLIENTS, "2").points == ((0, 3010), (450, 3010))
    assert chart_of(TOO_MANY_CLIENTS).marks[-1].label == "1510 of 1000 clients: over"
    assert chart_of(POOLED).connections < 1000
    assert "~" not in [each.sign for each in chart_of(POOLED).lines]


@given(wanted=st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_spread_keeps_labels_apart(wanted: list[float]) -> None:
    """Heights are a gap apart, in the order of the wanted ones, within the range; those with room are not moved."""
    heights = spread(wanted, 10, 100)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    assert all(heights[b] - heights[a] >= 10 - 1e-6 for a, b in pairwise(order))
    assert all(-1e-6 <= height <= 100 + 1e-6 for height in heights)
    if all(abs(a - b) >= 10 for a, b in combinations(wanted, 2)):
        assert heights == pytest.approx(wanted)


def test_labels_avoid_each_other_and_lines() -> None:
    """A label goes where neither another label nor a line is, as long as there is such a place."""
    lines, labels = {(x, 10) for x in range(60)}, set(box((30, 11), (30, 3)))
    corner = place((12, 2), (30, 10), (60, 20), lines, labels)
    assert not set(box(corner, (12, 2))) & (lines | labels)


@given(top=st.floats(1, 1e6), about=st.integers(1, 10))
def test_ticks_are_round_and_few(top: float, about: int) -> None:
    """Ticks begin at 0, are whole and equally far apart, and no more than asked for beside the 0."""
    found = ticks(top, about)
    assert found[0] == 0
    assert found[-1] <= top
    assert len(found) <= about + 1
    assert len({b - a for a, b in pairwise(found)}) <= 1


@pytest.mark.parametrize("width", range(40, 201))
def test_text_fits_the_width(width: int) -> None:
    """From 40 to 200 columns no line of the text is wider than the terminal, and none ends in blanks."""
    for plan in EXAMPLES.values():
        rows = plot(plan, width).splitlines()
        assert all(len(row) <= width and row == row.rstrip() for row in rows)
        assert len(rows) <= ROWS + 12


@given(plan=plans, width=st.integers(40, 200))
@settings(max_examples=60, deadline=None)
def test_text_of_any_plan_fits(plan: Plan, width: int) -> None:
    """The text of any plan is as narrow as asked for."""
    assert max(map(len, plot(plan, width).splitlines())) <= width


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_text_names_every_line_and_mark(example: Plan, width: int) -> None:
    """Each line's label stands in the text with the sign that draws it, and each mark's label whole."""
    chart, text = chart_of(example), plot(example, width)
    for each in chart.lines:
        assert f"{each.sign} {each.short if width < 100 else each.label}" in text
    for mark in chart.marks:
        assert (mark.short if width < 100 else mark.label) in text


def test_text_is_plain() -> None:
    """The text has no colours and no drawing characters, only what any terminal and any font has."""
    text = plot(OVER, 100)
    assert text.replace("×", "x").isascii()
    assert "\x1b" not in text


def test_svg_has_its_labels(example: Plan, tmp_path: Path) -> None:
    """The SVG is well-formed, and its labels are text that can be searched and read aloud."""
    draw(example, tmp_path / "plan.svg")
    texts = ["".join(node.itertext()) for node in ElementTree.parse(tmp_path / "plan.svg").iter() if "text" in node.tag]
    chart = chart_of(example)
    expected = {*chart.title, *(part.label for part in (*chart.lines, *chart.marks)), "workers", "connections"}
    assert expected <= set(texts)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_same_plan_gives_same_bytes(ending: str, tmp_path: Path) -> None:
    """A picture depends on nothing but the plan, so that a committed one can be compared."""
    for name in ("a", "b"):
        draw(OVER, tmp_path / f"{name}.{ending}")
    drawn = (tmp_path / f"a.{ending}").read_bytes()
    assert drawn == (tmp_path / f"b.{ending}").read_bytes()
    assert b"<dc:date>" not in drawn


def test_png_is_one(tmp_path: Path) -> None:
    """An ending counts in capitals too, and a .PNG is a PNG."""
    draw(FITS, tmp_path / "plan.PNG")
    assert (tmp_path / "plan.PNG").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("name", ["plan.pdf", "plan.jpg", "plan", ".svg"])
def test_other_endings_are_refused(name: str, tmp_path: Path) -> None:
    """Any other ending is one line that names the two, and nothing is written."""
    with pytest.raises(PlanError, match=r"^[^\n]*give a file that ends in \.svg or \.png$"):
        draw(FITS, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_file_is_one_line(tmp_path: Path) -> None:
    """A file that cannot be written is one line with the file's name and the reason."""
    with pytest.raises(PlanError, match=r"^[^\n]*none/plan\.svg cannot be written: No such file or directory$"):
        draw(FITS, tmp_path / "none" / "plan.svg")


def test_without_matplotlib(tmp_path: Path) -> None:
    """Without the extra the text is still there, and a picture is refused with the line that installs it."""
    program = f"""
import sys
sys.modules["matplotlib"] = None  # as if it were not installed
from pathlib import Path
from fleet.plan import Demand, Plan, PlanError, Supply
from poolctl.plan_chart import plot
from poolctl.plan_picture import draw
plan = Plan(Demand(workers=5, pool_max=10), Supply())
assert "usable 77" in plot(plan, 80)
try:
    draw(plan, Path({str(tmp_path / "plan.svg")!r}))
except PlanError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "a picture needs matplotlib, which is missing: pip install 'poolctl[chart]'\n"
