from __future__ import annotations

from dataclasses import replace

import pytest

from fleet.claims import Claim

FIRST = Claim(b"id", "worker@a:1/x 1", 1, 0, "", "", b"payload", aborted=False)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tries": 2}, True),  # its lease ran out
        ({"tries": 2, "payload": b"of a later moment"}, False),
        ({"tries": 1}, False),  # it died, and somebody tries it again: a count of its own
    ],
)
def test_another_try_of_a_job(changes: dict[str, object], expected: bool) -> None:
    """A claim on an id is another try of the job in hand, or on a later job of that id."""
    again = replace(FIRST, mark="worker@a:1/x 2", **changes)  # type: ignore[arg-type]
    assert again.repeats(FIRST) is expected
