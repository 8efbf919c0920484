"""What cannot work is not tried for ever."""

from __future__ import annotations

from tests.e2e.stack import Stack
from tests.waiting import wait_until

RESTARTS = 10  # also change: restart in docker-compose.yml


def test_restarts_are_bounded(refused: Stack) -> None:
    """After ten restarts a worker with refused settings is left alone, stopped, its exit code there to be seen."""
    wait_until(
        lambda: [(each.state, each.restarts) for each in refused.containers("worker")] == [("exited", RESTARTS)] * 2,
        timeout_s=240,
        what=f"{RESTARTS} restarts and no more",
        poll_s=1.0,
    )
    assert [each.exit_code for each in refused.containers("worker")] == [2, 2]
