from __future__ import annotations

from datetime import UTC, datetime

from fleet.dead_letters import DeadJob
from fleet.queue_view import QueueView
from poolctl.jobs_command import dead_lines, queue_lines

AT = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_queue_in_words() -> None:
    """The queue is counts, and who runs what."""
    view = QueueView(due=2, oldest_s=3.25, deferred=1, running={"b": "worker@x:2", "a": "worker@x:1"}, dead=4)
    assert queue_lines("arq:queue", view).splitlines() == [
        "queue arq:queue",
        "due       2, the first one for 3.2 s",
        "deferred  1",
        "running   2",
        "  a  worker@x:1",
        "  b  worker@x:2",
        "dead      4: poolctl jobs --dead",
    ]
    assert "dead      0" in queue_lines("q", QueueView(0, 0.0, 0, {}, 0)).splitlines()


def test_a_dead_job_in_words() -> None:
    """A dead job is two lines: what it was, and why it died; a traceback only where it is asked for."""
    job = DeadJob("a", AT, "exercise_pool", {"text": "x" * 400}, "ValueError", "first\nsecond", "Traceback …", 3)
    first, second = dead_lines(job).splitlines()
    assert first.startswith('a  2030-01-02 03:04:05 UTC, try 3  exercise_pool {"text": "xxx')
    assert (len(first) < 400, first[-1], second) == (True, "…", "    ValueError: first")
    assert dead_lines(job, traceback=True).endswith("\nTraceback …")
    unreadable = DeadJob("b", AT, None, None, "JobUnreadable", "", None, 0)
    assert dead_lines(unreadable).splitlines() == [
        "b  2030-01-02 03:04:05 UTC  payload that cannot be read",
        "    JobUnreadable: ",
    ]
