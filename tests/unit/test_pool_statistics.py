from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool import PoolSnapshot, Recording, recording
from pool.recording import current_recording
from pool.statistics import BUCKETS_S, Histogram, PoolStatistics


def test_a_wait_is_counted_in_the_first_bucket_that_holds_it() -> None:
    """A bucket's upper bound belongs to it, and what is longer than all bounds goes to the last."""
    histogram = Histogram()
    for wait_s in (0.0, 0.001, 0.0011, 10.0, 11.0):
        histogram.observe(wait_s)
    assert histogram.counts == [2, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert histogram.longest_s == 11.0


def test_no_waits_have_no_quantile() -> None:
    """A pool that nobody asked reports a wait of zero."""
    assert PoolStatistics().wait_s.quantile(0.95) == 0.0


@given(st.lists(st.floats(0, 100), min_size=1), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_in_the_bucket_of_the_true_one(waits_s: list[float], share: float) -> None:
    """The estimate never exceeds the longest wait, and lies in the same bucket as the exact quantile."""
    histogram = Histogram()
    for wait_s in waits_s:
        histogram.observe(wait_s)
    exact_s = sorted(waits_s)[max(0, -int(-share * len(waits_s) // 1) - 1)]
    estimate_s = histogram.quantile(share)
    below = max((bound for bound in BUCKETS_S if bound < exact_s), default=0.0)
    above = min((bound for bound in BUCKETS_S if bound >= exact_s), default=histogram.longest_s)
    assert below <= estimate_s <= min(above, histogram.longest_s)


def test_a_snapshot_cannot_be_changed() -> None:
    """What telemetry got stays what it was."""
    snapshot = PoolSnapshot("p", 1, 2, 1, 1, 0, 0, 1, 5, 0, 5, 0.01)
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.limit = 3  # type: ignore[misc]


async def test_a_recording_belongs_to_a_task_and_its_children() -> None:
    """A task that was started elsewhere records nothing, one that was started inside records to the same."""

    async def seen() -> Recording | None:
        return current_recording()

    started = asyncio.Event()

    async def elsewhere() -> Recording | None:
        await started.wait()
        return current_recording()

    other = asyncio.create_task(elsewhere())
    with recording() as mine:
        started.set()
        assert await asyncio.create_task(seen()) is mine
        assert await other is None
    assert current_recording() is None


def test_an_inner_recording_takes_over() -> None:
    """The outer recording goes on where the inner one ends."""
    with recording() as outer:
        with recording() as inner:
            assert current_recording() is inner
        assert current_recording() is outer
