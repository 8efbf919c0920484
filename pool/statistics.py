"""Counting what a pool does: plain integers while it runs, one immutable snapshot when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

# OpenTelemetry's advice for db.client.connection.wait_time, in seconds.
WAIT_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


@dataclass(slots=True)
class WaitHistogram:
    """How long callers waited for a connection: a count for each bucket, the last for all that is longer."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(WAIT_BUCKETS_S) + 1))
    longest_s: float = 0.0

    def observe(self, wait_s: float) -> None:
        self.counts[bisect_left(WAIT_BUCKETS_S, wait_s)] += 1
        self.longest_s = max(self.longest_s, wait_s)

    def quantile(self, share: float) -> float:
        """The wait in seconds that `share` (0 to 1) of the callers did not exceed; 0 if nobody asked yet.

        Linear within a bucket, as Prometheus' histogram_quantile; never more than the longest wait.
        """
        rank = share * sum(self.counts)
        below, lower_s = 0, 0.0
        for count, upper_s in zip(self.counts, (*WAIT_BUCKETS_S, self.longest_s), strict=True):
            if count and below + count >= rank:
                estimate_s = lower_s + (upper_s - lower_s) * (rank - below) / count
                return min(estimate_s, upper_s, self.longest_s)  # rounding may go beyond upper_s
            below, lower_s = below + count, upper_s
        return 0.0


@dataclass(slots=True)
class PoolStatistics:
    """Counters of one pool. All but `waiting` and `peak` only grow."""

    acquires: int = 0  # connections handed out
    waits: int = 0  # callers that found all connections in use
    timeouts: int = 0  # callers that gave up after DB_POOL_TIMEOUT
    queries: int = 0  # statements sent by callers, BEGIN and COMMIT included
    waiting: int = 0  # callers that are waiting now
    peak: int = 0  # the most connections that were in use at once
    wait_s: WaitHistogram = field(default_factory=WaitHistogram)

    def wait_quantile(self, share: float) -> float:
        """See WaitHistogram.quantile."""
        return self.wait_s.quantile(share)


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool at one moment. `acquires`, `timeouts` and `queries` are totals since it opened."""

    name: str  # the application_name of its connections
    floor: int  # connections that it keeps open (DB_POOL_MIN)
    limit: int  # connections that it may open (DB_POOL_MAX)
    size: int  # connections that are open
    idle: int  # open and not in use
    in_use: int  # handed out
    waiting: int  # callers waiting for one
    peak: int  # the most that were in use at once
    acquires: int
    timeouts: int
    queries: int
    wait_p95_s: float  # 95 of 100 callers waited no longer, in seconds
