from __future__ import annotations

import pytest

from fleet.backoff import JITTER, Backoff
from worker.verdict import EXCUSED_BACKOFF


@pytest.mark.parametrize(("tries", "expected_s"), [(1, 2.0), (2, 4.0), (3, 8.0), (4, 10.0), (100_000, 10.0)])
def test_a_pause_doubles_up_to_the_longest(tries: int, expected_s: float) -> None:
    """After each try the pause is twice the one before, never above the longest, but for the jitter."""
    pauses_s = [Backoff(first_s=2.0, longest_s=10.0).pause_s(tries) for _ in range(200)]
    assert expected_s * (1 - JITTER) <= min(pauses_s) <= max(pauses_s) <= expected_s * (1 + JITTER)
    assert max(pauses_s) - min(pauses_s) > expected_s * JITTER / 2


def test_excused_tries_take_about_ten_minutes() -> None:
    """The default of 20 excused tries gives a database 10 minutes to come back."""
    sum_s = sum(EXCUSED_BACKOFF.pause_s(tries) for tries in range(1, 21))
    assert 8 * 60 < sum_s < 12.5 * 60
