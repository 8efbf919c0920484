from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bot.conditions import LARGEST_GAP, THRESHOLDS, Finding, Kind, Look, Observed, findings
from db.server import ServerReport
from fleet.plan import Supply
from fleet.queue_view import QueueView
from fleet.registry import LIVE_S, REMEMBERED_S, JobCounts, ProcessEntry
from pool import PoolSnapshot

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LINE = Supply(max_connections=100).usable
SERVER = ServerReport("17.0", 100, 3, 0, total=10, active=1, idle=9, idle_in_transaction=0, by_application={})
QUEUE = QueueView(due=3, oldest_s=1.0, deferred=0, running={}, dead=0)
CALM = Look(NOW, SERVER, history=[], idle_in_transaction=0, registry=[], queue=QUEUE)


def crowded(connections: int, *history: tuple[float, int]) -> Look:
    """A look at so many connections; `history` is of (seconds before, connections)."""
    seen = [Observed(NOW - timedelta(seconds=before_s), count) for before_s, count in history]
    return replace(CALM, server=replace(SERVER, total=connections), history=seen)


def entry(pid: int, silent_s: float) -> ProcessEntry:
    pool = PoolSnapshot("worker", 2, 10, 5, 2, 3, 0, 4, 0, 0, 0, 0.0)
    return ProcessEntry("worker", "host", pid, NOW, 1.0, 0.0, pool, JobCounts(), silent_s=silent_s)


def of(kind: Kind, look: Look, open_alerts: dict[tuple[Kind, str], datetime] | None = None) -> list[Finding]:
    return [finding for finding in findings(look, open_alerts or {}) if finding.kind is kind]


def holds(kind: Kind, look: Look, open_alerts: dict[tuple[Kind, str], datetime] | None = None) -> list[bool]:
    return [finding.holds for finding in of(kind, look, open_alerts)]


EVERY_30_S = [30.0 * n for n in range(1, 11)]


def test_all_is_calm() -> None:
    """Of a calm fleet all is known, and nothing holds."""
    assert [finding.holds for finding in findings(CALM, {})] == [False, False, False]


def test_head_room_line() -> None:
    """The line is the plan's: exactly as many connections are still fine, one more is not."""
    assert LINE == 77
    assert holds(Kind.CONNECTIONS, crowded(LINE)) == [False]
    assert holds(Kind.CONNECTIONS, crowded(LINE + 1)) == []
    above = [(before_s, LINE + 1) for before_s in EVERY_30_S]
    assert holds(Kind.CONNECTIONS, crowded(LINE + 1, *above)) == [True]
    assert holds(Kind.CONNECTIONS, crowded(LINE, *above)) == [False]


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ([], "nothing was seen before"),
        ([(before_s, 90) for before_s in EVERY_30_S if before_s < 300], "the last 5 minutes are not all seen"),
        ([(before_s, 90 if before_s != 150 else LINE) for before_s in EVERY_30_S], "they were below once"),
        ([(10, 90), (10 + LARGEST_GAP.total_seconds() + 1, 90), (200, 90), (280, 90), (310, 90)], "a gap"),
        ([(-60, 90), (-10, 90)], "a clock that is ahead"),
        ([(301, 90)], "one long ago"),
    ],
)
def test_crowded_but_not_known_for_how_long(history: list[tuple[float, int]], why: str) -> None:
    """Above the line, but not at each moment of the last 5 minutes, is neither an alert nor the end of one."""
    assert holds(Kind.CONNECTIONS, crowded(90, *history)) == [], why


def test_history_in_any_order() -> None:
    """Observations of several processes come in any order, and those before the last 5 minutes do not count."""
    history = [(before_s, 90) for before_s in reversed(EVERY_30_S)] + [(330.0, 1), (15.0, 90), (-20.0, 1)]
    assert holds(Kind.CONNECTIONS, crowded(90, *history)) == [True]


def test_reserved_connections_count() -> None:
    """Of a server that reserves more, less is usable."""
    look = crowded(75, *((before_s, 75) for before_s in EVERY_30_S))
    assert holds(Kind.CONNECTIONS, look) == [False]
    assert holds(Kind.CONNECTIONS, replace(look, server=replace(look.server, reserved=5))) == [True]


def test_idle_in_transaction() -> None:
    """Five are fine, six are not."""
    assert holds(Kind.IDLE_IN_TRANSACTION, replace(CALM, idle_in_transaction=5)) == [False]
    assert holds(Kind.IDLE_IN_TRANSACTION, replace(CALM, idle_in_transaction=6)) == [True]


def test_old_queue() -> None:
    """A job that is due for a minute is fine, for longer it is not; an empty queue is fine."""
    assert holds(Kind.OLD_QUEUE, replace(CALM, queue=replace(QUEUE, oldest_s=60.0))) == [False]
    (finding,) = of(Kind.OLD_QUEUE, replace(CALM, queue=replace(QUEUE, oldest_s=61.0)))
    assert finding.holds
    assert finding.text.startswith("3 jobs are due, the first one for 61 s, the bound is 60 s")
    assert holds(Kind.OLD_QUEUE, replace(CALM, queue=replace(QUEUE, due=0, oldest_s=0.0))) == [False]


def test_missing_process() -> None:
    """A process that is silent is missing, one that is heard is not; each is a subject of its own."""
    look = replace(CALM, registry=[entry(1, 0.0), entry(2, LIVE_S), entry(3, LIVE_S - 0.1)])
    found = of(Kind.MISSING_PROCESS, look)
    assert {finding.subject: finding.holds for finding in found} == {
        "worker@host:1": False,
        "worker@host:2": True,
        "worker@host:3": False,
    }


def test_missing_process_of_which_nothing_is_known() -> None:
    """One that is in the registry no more is not "fine": its alert stays, until it would have been forgotten anyhow."""
    key = (Kind.MISSING_PROCESS, "worker@host:9")
    assert holds(Kind.MISSING_PROCESS, CALM, {key: NOW - timedelta(seconds=REMEMBERED_S - 1)}) == []
    assert holds(Kind.MISSING_PROCESS, CALM, {key: NOW - timedelta(seconds=REMEMBERED_S)}) == [False]
    assert holds(Kind.MISSING_PROCESS, CALM, {(Kind.CONNECTIONS, ""): NOW - timedelta(days=1)}) == []


def test_redis_that_says_nothing() -> None:
    """While Redis is not to be relied on, there is nothing to say of processes and jobs, for open alerts neither."""
    look = replace(CALM, registry=None, queue=None)
    opened = {(Kind.MISSING_PROCESS, "worker@host:9"): NOW - timedelta(days=1), (Kind.OLD_QUEUE, ""): NOW}
    assert {finding.kind for finding in findings(look, opened)} == {Kind.CONNECTIONS, Kind.IDLE_IN_TRANSACTION}


def test_thresholds() -> None:
    """The thresholds are those that are documented, in seconds and sessions."""
    assert (THRESHOLDS.crowded_s, THRESHOLDS.idle_in_transaction, THRESHOLDS.queue_s) == (300.0, 5, 60.0)
