"""An arq worker from its first job to its last: how it runs, and how it stops without losing one."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from functools import partial
from typing import Any

from arq.worker import Worker
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fleet.errors import QueueLost, reason

logger = logging.getLogger(__name__)

# After the grace: the time for cancelled jobs to roll back, release their connections and return to the queue.
CANCELLED_S = 3.0
CANCEL_LOOK_S = 0.05
HEALTH_KEY_TIMEOUT_S = 1.0

LOST = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError)  # read-only: a master that was demoted


async def serve(worker: Worker, grace_s: float, address: str) -> None:
    """Run jobs until SIGTERM or SIGINT; then start none, and give those that run `grace_s` to finish.

    What still runs afterwards, or at a second signal, is cancelled and goes back to the queue. Raises QueueLost if
    Redis at `address` goes away before a signal came; the unfinished jobs are then cancelled, too.

    arq's own handlers are not used: they cancel its main loop wherever it is. In the middle of claiming a job, that
    leaves the job claimed by nobody for job timeout + 10 s.
    """
    stop, stop_now = asyncio.Event(), asyncio.Event()
    _on_signals(stop, stop_now, worker)
    running = asyncio.create_task(worker.async_run(), name="arq worker")
    try:
        await _first(running, stop.wait())
        _start_no_more_jobs(worker)
        if not running.done():
            await _first(running, stop_now.wait(), timeout_s=grace_s)
    finally:
        await _cancel_jobs(worker, running)
        await _delete_health_key(worker)
    error = running.exception() if running.done() and not running.cancelled() else None
    if isinstance(error, LOST):
        line = f"Redis at {address} was lost ({reason(error)})"
        if not stop.is_set():
            raise QueueLost(f"{line}: unfinished jobs stay on the queue; start Redis, then this worker") from None
        logger.warning("%s while the worker stopped: its unfinished jobs stay on the queue", line)
    elif error is not None:
        raise error


def _on_signals(stop: asyncio.Event, stop_now: asyncio.Event, worker: Worker) -> None:
    """The first SIGTERM or SIGINT sets `stop`, the next one `stop_now`. Replaces the handlers of fleet/entry.py."""

    def received(signum: signal.Signals) -> None:
        unfinished = sum(not task.done() for task in worker.tasks.values())
        if stop.is_set():
            logger.info("%s again: %d jobs are cancelled and go back to the queue", signum.name, unfinished)
            stop_now.set()
        else:
            logger.info("%s: no new jobs, %d jobs may finish", signum.name, unfinished)
            stop.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, partial(received, signum))


def _start_no_more_jobs(worker: Worker) -> None:
    """Let arq's main loop end by itself: as a burst of no jobs, after its present look at the queue.

    It then waits for the jobs that run, and returns.
    """
    worker.allow_pick_jobs = False
    worker.max_burst_jobs = 0
    worker.burst = True


async def _cancel_jobs(worker: Worker, running: asyncio.Task[None]) -> None:
    """Cancel each job that still runs, once; wait until all are back on the queue, for CANCELLED_S at most.

    `job_tasks` are the jobs themselves; the tasks around them, which tell Redis of their end, are not cancelled.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CANCELLED_S
    cancelled: set[asyncio.Task[Any]] = set()
    _start_no_more_jobs(worker)
    while (unfinished := _unfinished(worker, running)) and loop.time() < deadline:
        for task in set(worker.job_tasks.values()) - cancelled:
            task.cancel()
            cancelled.add(task)
        await asyncio.wait(unfinished, timeout=CANCEL_LOOK_S)
    if unfinished:
        jobs = [job_id for job_id, task in worker.tasks.items() if not task.done()]
        logger.error("still unfinished %g s after cancelling, closing all the same; jobs: %s", CANCELLED_S, jobs)
        # It goes on while the process closes its connections. One that swallows its cancellation keeps it from ending.
        running.add_done_callback(lambda task: task.cancelled() or task.exception())
    for job_id, task in worker.tasks.items():
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("the end of job %s was not recorded: %s", job_id, reason(error))


def _unfinished(worker: Worker, running: asyncio.Task[None]) -> set[asyncio.Task[Any]]:
    return {task for task in (running, *worker.tasks.values()) if not task.done()}


async def _delete_health_key(worker: Worker) -> None:
    try:
        async with asyncio.timeout(HEALTH_KEY_TIMEOUT_S):
            await worker.pool.delete(worker.health_check_key)
    except (RedisError, OSError) as error:
        logger.debug("arq's health key is left to expire: %s", reason(error))


async def _first(
    running: asyncio.Task[None], event: Coroutine[Any, Any, object], *, timeout_s: float | None = None
) -> None:
    """Wait until `running` ends, `event` comes, or `timeout_s` is over."""
    waiting = asyncio.create_task(event)
    try:
        await asyncio.wait({running, waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
