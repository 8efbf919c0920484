"""A worker from its first job to its last: how it runs, and how it stops without losing one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from types import FrameType

from worker.deadline import Deadline
from worker.job_loop import JobLoop

logger = logging.getLogger(__name__)

# After the grace, for the whole rest: jobs roll back and return to the queue (CANCELLED_S), everything is closed.
REST_S = 4.5
CANCELLED_S = 2.5


async def serve(jobs: JobLoop, grace_s: float) -> None:
    """Run jobs until SIGTERM or SIGINT; then start none, and give those that run `grace_s` to finish.

    What still runs afterwards, or at a second signal, is cancelled and goes back to the queue. In any case the process
    ends within `grace_s` + REST_S, hard if need be; where the loop ends by itself or on an error, within REST_S.
    """
    stop, stop_now = asyncio.Event(), asyncio.Event()
    left: list[str] = []  # jobs that did not end; once everything is cancelled the loop does not know them any more
    deadline = Deadline(lambda: left or jobs.unfinished)
    _on_signals(stop, stop_now, jobs, grace_s, deadline)
    running = asyncio.create_task(jobs.run(), name="jobs")
    try:
        await _first(running, stop)
        jobs.stop()
        await _first(running, stop_now, timeout_s=grace_s)
    finally:
        if not stop.is_set():  # by itself, or on an error: then jobs may still run
            deadline.within(REST_S)
        jobs.cancel_jobs()
        ended = asyncio.create_task(jobs.ended())
        await asyncio.wait({running, ended}, timeout=CANCELLED_S)
        if not (running.done() and ended.done()):
            left += jobs.unfinished
            logger.error(
                "%g s after cancelling there are still: %s; closing all the same", CANCELLED_S, ", ".join(left)
            )
            running.cancel()
            ended.cancel()
    if running.done():
        running.result()


def _on_signals(
    stop: asyncio.Event, stop_now: asyncio.Event, jobs: JobLoop, grace_s: float, deadline: Deadline
) -> None:
    """The first SIGTERM or SIGINT sets `stop`, the next one `stop_now`. Replaces the handlers of fleet/entry.py.

    By `signal.signal` and not by the event loop, which may be blocked by a job: the deadline runs all the same.
    """
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def received(signum: int, frame: FrameType | None) -> None:
        deadline.within(REST_S if seen else grace_s + REST_S)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
            loop.call_soon_threadsafe(heed, signal.Signals(signum).name, bool(seen))
        seen.append(signum)

    def heed(name: str, again: bool) -> None:
        if again:
            logger.info("%s again: %d jobs are cancelled and go back to the queue", name, jobs.counts.running)
            stop_now.set()
        else:
            logger.info("%s: no new jobs, %d jobs may finish", name, jobs.counts.running)
            stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, received)


async def _first(running: asyncio.Task[None], event: asyncio.Event, *, timeout_s: float | None = None) -> None:
    """Wait until `running` ends, `event` comes, or `timeout_s` is over."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({running, waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
