"""How the benchmark judges what it measured."""

from __future__ import annotations

import socket
import time

import pytest

from benchmarks.contender import ENGINE, STOCK
from benchmarks.engine import chosen
from benchmarks.goals import GOALS
from benchmarks.measurements import Case, Measurements, Spread
from benchmarks.path import DELAY_S, DELAYED, DIRECT, PATHS, open_path
from benchmarks.report import goals_table, rates_table
from benchmarks.work import Work
from local import Tether

READ = Case(DIRECT, Work.READ, 1)


def measured(ours: list[float], stock: list[float]) -> Measurements:
    measurements = Measurements()
    for rate, other in zip(ours, stock, strict=True):
        measurements.add(READ, ENGINE, rate)
        measurements.add(READ, STOCK, other)
    return measurements


def test_ratio_is_of_the_same_round() -> None:
    """A machine that was slow in one round was so for both."""
    ratio = measured([200.0, 20.0, 210.0], [100.0, 10.0, 100.0]).ratio(READ, ENGINE, STOCK)
    assert ratio == Spread(2.0, 2.0, 2.1)


def test_what_was_not_measured_has_no_ratio() -> None:
    """Neither a contender nor a case that the run left out."""
    measurements = measured([1.0], [1.0])
    assert measurements.ratio(READ, ENGINE, "nobody") is None
    assert measurements.ratio(Case(DELAYED, Work.READ, 1), ENGINE, STOCK) is None


@pytest.mark.parametrize(("ours", "verdict"), [(180.0, True), (179.0, False)])
def test_goal(ours: float, verdict: bool) -> None:
    """A goal is met from its own number on, and the tables say so; others have no row."""
    measurements = measured([ours], [100.0])
    (goal,) = [goal for goal in GOALS if goal.measured(measurements)]
    ratio = goal.measured(measurements)
    assert ratio is not None
    assert goal.met(ratio) is verdict
    assert goals_table(measurements).row_count == 1
    assert rates_table(measurements).row_count == 2


def test_only() -> None:
    """Values of one dimension are alternatives; a dimension without any is whole."""
    assert list(chosen({DIRECT, "read", "10"})) == [(DIRECT, [Case(DIRECT, Work.READ, 10)])]
    assert [len(cases) for _, cases in chosen({"1", "10"})] == [2 * len(Work)] * len(PATHS)


def test_delayed_path(tether: Tether) -> None:
    """What comes back is late by the delay, and a hang-up reaches the other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        with open_path(DELAYED, {"DB_HOST": host, "DB_PORT": str(port)}, tether) as environ:
            with socket.create_connection((host, int(environ["DB_PORT"])), timeout=10.0) as client:
                behind, _ = server.accept()
                behind.settimeout(10.0)
                client.sendall(b"ping")
                assert behind.recv(10) == b"ping"
                started = time.perf_counter()
                behind.sendall(b"pong")
                assert client.recv(10) == b"pong"
                assert time.perf_counter() - started >= DELAY_S
            with behind:
                assert behind.recv(10) == b""
