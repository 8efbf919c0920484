"""What becomes of a job after a try: over, or another try, and when. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arq.worker import Retry

from fleet.backoff import Backoff
from fleet.claims import Counts
from fleet.jobs import Job
from worker.excuses import excuse

# With this, 20 excused tries take about 10 minutes.
EXCUSED_BACKOFF = Backoff(first_s=1.0, longest_s=40.0)


class JobTimeout(Exception):
    """A job's try took longer than its contract, or WORKER_JOB_TIMEOUT, allows."""


class JobAborted(Exception):
    """Somebody asked for the end of this job."""


class JobExited(Exception):
    """A job tried to end the whole process, as by sys.exit()."""


class JobUnreadable(Exception):
    """What lies in Redis is not a job of this worker's; the text says why."""


class WorkersDied(Exception):
    """Each worker that ran the job died of it, or with it, at each of its tries."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job gets where its contract is silent, and how many excused tries every job gets."""

    timeout_s: float
    tries: int
    excused: int


@dataclass(frozen=True, slots=True)
class Done:
    """Over, well."""

    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """Over, not well. `buried`: it goes to the dead jobs."""

    error: BaseException
    buried: bool = True


@dataclass(frozen=True, slots=True)
class Again:
    """Back to the queue, due in `after_s`; `why` is None where only the worker ends."""

    after_s: float
    counts: Counts
    why: str | None


Verdict = Done | Failed | Again


def verdict_on(error: Exception, job: Job[Any, Any], limits: Limits, *, tries: int, excused: int) -> Failed | Again:
    """What becomes of `job` after try number `tries`, and after so many `excused` ones before, ended with `error`."""
    # A try that took too long is the job's own, whatever its clean-up met.
    why = None if isinstance(error, JobTimeout) else excuse(error)
    if why is not None and excused < limits.excused:
        return Again(EXCUSED_BACKOFF.pause_s(excused + 1), "excused", why)
    if tries >= (limits.tries if job.tries is None else job.tries):
        return Failed(error, job.dead_kept)
    pause_s = job.backoff.pause_s(tries)
    if isinstance(error, Retry):
        return Again(pause_s if error.defer_score is None else error.defer_score / 1000, "counted", "it asked for it")
    if isinstance(error, JobTimeout) and job.retry_on_timeout:
        return Again(pause_s, "counted", str(error))
    if isinstance(error, job.retry_on):
        return Again(pause_s, "counted", type(error).__name__)
    return Failed(error, job.dead_kept)
