"""What people are alerted of, and whether it holds: rules on one look at the fleet. Pure.

A rule answers "it holds", "it is over", or nothing at all: what is not known is neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from db.server import ServerReport
from fleet.plan import Supply, Verdict
from fleet.plan_check import supply_of
from fleet.queue_view import QueueView
from fleet.registry import LIVE_S, REMEMBERED_S, ProcessEntry

LARGEST_GAP = timedelta(seconds=90)  # between two observations; in a longer one nobody knows what was


class Kind(StrEnum):
    """What an alert is about; its subject says of whom, or is empty where there is only one."""

    CONNECTIONS = "connections"
    IDLE_IN_TRANSACTION = "idle in transaction"
    MISSING_PROCESS = "missing process"
    OLD_QUEUE = "old queue"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on something is worth an alert."""

    crowded_s: float = 5 * 60.0  # connections above the head-room line for so long
    idle_in_transaction: int = 5  # more sessions than that,
    idle_s: float = 5.0  # each of them idle for longer than it takes a program to send its next statement
    queue_s: float = 60.0  # the first job that is due waits for longer
    # After an outage of Redis every process seems silent, and running jobs seem due, until all have renewed what they
    # keep there. So it is believed when a bot has seen its own heartbeat there for as long as a process lives on one.
    trust_s: float = LIVE_S


THRESHOLDS = Thresholds()


@dataclass(frozen=True, slots=True)
class Observed:
    """How many connections the server had at one moment."""

    at: datetime
    connections: int


@dataclass(frozen=True, slots=True)
class Look:
    """The fleet at one moment. `registry` and `queue` are None where what Redis says is not to be relied on.

    `at` is by the database's clock. `history` is of the connections before, `idle_in_transaction` counts sessions that
    were so for Thresholds.idle_s; of other roles' sessions only with the privilege to see their states.
    """

    at: datetime
    server: ServerReport
    history: Sequence[Observed]
    idle_in_transaction: int
    registry: Sequence[ProcessEntry] | None
    queue: QueueView | None


@dataclass(frozen=True, slots=True)
class Finding:
    """Of one kind and subject: whether it `holds` or is over, the number that says so, and a line for people."""

    kind: Kind
    subject: str
    holds: bool
    value: float
    text: str


Open = Mapping[tuple[Kind, str], datetime]  # when each of the open alerts was opened, by kind and subject


def findings(look: Look, open_alerts: Open, thresholds: Thresholds = THRESHOLDS) -> list[Finding]:
    """All that is known."""
    found = [*_connections(look, thresholds), _idle_in_transaction(look, thresholds)]
    if look.registry is not None:
        found += _missing(look.registry, look.at, open_alerts)
    if look.queue is not None:
        found.append(_old_queue(look.queue, thresholds))
    return found


def _connections(look: Look, thresholds: Thresholds) -> Iterator[Finding]:
    supply, total = supply_of(look.server), look.server.total
    line = f"{total} of {supply.available} connections are in use, the head-room line is {supply.usable}"
    if not _crowded(supply, total):
        yield Finding(Kind.CONNECTIONS, "", holds=False, value=total, text=line)
    elif _crowded_throughout(look, supply, timedelta(seconds=thresholds.crowded_s)):
        text = f"{line}, and they were above it for {_duration(thresholds.crowded_s)}: /connections says whose they are"
        yield Finding(Kind.CONNECTIONS, "", holds=True, value=total, text=text)


def _crowded(supply: Supply, connections: int) -> bool:
    return supply.verdict(connections) is not Verdict.FITS


def _crowded_throughout(look: Look, supply: Supply, period: timedelta) -> bool:
    """Whether each observation of the period was above the line, and none is missing."""
    later = look.at
    for seen in sorted(look.history, key=lambda observed: observed.at, reverse=True):
        if seen.at > later:  # by a clock that is ahead
            continue
        if later - seen.at > LARGEST_GAP or not _crowded(supply, seen.connections):
            return False
        if look.at - seen.at >= period:
            return True
        later = seen.at
    return False


def _idle_in_transaction(look: Look, thresholds: Thresholds) -> Finding:
    count = look.idle_in_transaction
    text = (
        f"{count} sessions are idle in transaction for more than {thresholds.idle_s:g} s, the bound is"
        f" {thresholds.idle_in_transaction}: they keep locks and connections"
    )
    return Finding(Kind.IDLE_IN_TRANSACTION, "", count > thresholds.idle_in_transaction, count, text)


def _missing(registry: Sequence[ProcessEntry], at: datetime, open_alerts: Open) -> Iterator[Finding]:
    """A process that says goodbye after it was missing, unheard in between, is one of which nothing is known."""
    for entry in registry:
        if entry.live:
            text = f"{entry.id} is alive"
        else:
            text = f"{entry.id} is silent for {_duration(entry.silent_s)}, and did not say goodbye: look at its log"
        yield Finding(Kind.MISSING_PROCESS, entry.id, not entry.live, entry.silent_s, text)
    known = {entry.id for entry in registry}
    for (kind, subject), opened in open_alerts.items():
        unheard_s = (at - opened).total_seconds()
        if kind is Kind.MISSING_PROCESS and subject not in known and unheard_s >= REMEMBERED_S:
            text = f"{subject} was not heard of for {_duration(unheard_s)}, and is not waited for any more"
            yield Finding(kind, subject, holds=False, value=unheard_s, text=text)


def _old_queue(queue: QueueView, thresholds: Thresholds) -> Finding:
    text = f"{queue.due} jobs are due" + (f", the first one for {_duration(queue.oldest_s)}" if queue.due else "")
    holds = queue.oldest_s > thresholds.queue_s
    if holds:
        text += f", the bound is {_duration(thresholds.queue_s)}: /jobs and /status say what the workers do"
    return Finding(Kind.OLD_QUEUE, "", holds, queue.oldest_s, text)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
