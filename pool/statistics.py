"""Counting what a pool does: plain integers while it runs, one immutable snapshot when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# OpenTelemetry's advice for db.client.connection.wait_time, use_time and create_time, in seconds.
BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

CloseReason = Literal["idle", "age", "queries", "error", "shrink", "pre-ping", "expired", "no pool", "closing"]


@dataclass(slots=True)
class Histogram:
    """Durations: a count for each bucket, the last for all that is longer."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0
    longest_s: float = 0.0

    def observe(self, duration_s: float) -> None:
        self.counts[bisect_left(BUCKETS_S, duration_s)] += 1
        self.sum_s += duration_s
        if duration_s > self.longest_s:
            self.longest_s = duration_s

    def quantile(self, share: float) -> float:
        """The duration in seconds that `share` (0 to 1) of all did not exceed; 0 if there was none yet.

        Linear within a bucket, as Prometheus' histogram_quantile; never more than the longest.
        """
        rank = share * sum(self.counts)
        below, lower_s = 0, 0.0
        for count, upper_s in zip(self.counts, (*BUCKETS_S, self.longest_s), strict=True):
            if count and below + count >= rank:
                estimate_s = lower_s + (upper_s - lower_s) * (rank - below) / count
                return min(estimate_s, upper_s, self.longest_s)  # rounding may go beyond upper_s
            below, lower_s = below + count, upper_s
        return 0.0

    def snapshot(self) -> HistogramSnapshot:
        """The histogram now."""
        return HistogramSnapshot(tuple(self.counts), self.sum_s)


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """A count for each of BUCKETS_S and one for what is longer, each by itself; and the sum in seconds."""

    counts: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    sum_s: float = 0.0


@dataclass(slots=True)
class PoolStatistics:
    """Counters of one pool; all but the peaks only grow."""

    acquires: int = 0  # connections checked out
    releases: int = 0  # connections that came back
    waits: int = 0  # callers that found no place free, and stood in line
    timeouts: int = 0  # callers that gave up after DB_POOL_TIMEOUT
    shed: int = 0  # callers refused, as DB_POOL_MAX_WAITING were in line already
    created: int = 0  # connections opened
    connect_failures: int = 0  # connections that could not be opened
    resets: int = 0  # sessions reset at release
    resets_skipped: int = 0  # … and those that did not need it
    handovers: int = 0  # check-ins that stayed with the engine, without asyncpg's release
    retries: int = 0  # ORM reads that were run once more
    leaks: int = 0  # checkouts that were held longer than DB_LEAK_THRESHOLD
    queries: int = 0  # statements sent by callers, BEGIN and COMMIT included
    peak: int = 0  # the most connections that were in use at once
    peak_waiting: int = 0  # the longest line
    closed: Counter[CloseReason] = field(default_factory=Counter)
    wait_s: Histogram = field(default_factory=Histogram)  # a checkout: in line, checking, connecting
    use_s: Histogram = field(default_factory=Histogram)  # from check-out to check-in
    create_s: Histogram = field(default_factory=Histogram)  # opening a connection


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool at one moment. Counters are totals since it was opened; see PoolStatistics."""

    name: str  # the application_name of its connections
    floor: int  # connections that it keeps open (DB_POOL_MIN)
    limit: int  # connections that it may open now
    size: int  # connections that are open
    idle: int  # open and not in use
    in_use: int  # handed out
    waiting: int  # callers waiting for one
    peak: int  # the most that were in use at once
    acquires: int
    timeouts: int
    queries: int
    wait_p95_s: float  # 95 of 100 callers waited no longer, in seconds
    ceiling: int = 0  # connections that it may ever open (DB_POOL_MAX)
    peak_waiting: int = 0
    releases: int = 0
    waits: int = 0
    shed: int = 0
    created: int = 0
    connect_failures: int = 0
    closed: Mapping[CloseReason, int] = field(default_factory=dict)
    resets: int = 0
    resets_skipped: int = 0
    handovers: int = 0
    retries: int = 0
    leaks: int = 0
    wait_s: HistogramSnapshot = HistogramSnapshot()
    use_s: HistogramSnapshot = HistogramSnapshot()
    create_s: HistogramSnapshot = HistogramSnapshot()
