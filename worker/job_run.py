"""One try of one job: from what lies in Redis to the verdict."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import ValidationError

from fleet.claims import Claim, Problem
from fleet.errors import first_fault, reason
from fleet.hooks import Hooks
from fleet.jobs import RESULT_KEPT_S, Job
from fleet.wire import dumps, loads
from worker.verdict import (
    Again,
    Done,
    Failed,
    JobAborted,
    JobExited,
    JobTimeout,
    JobUnreadable,
    Limits,
    Verdict,
    WorkersDied,
    verdict_on,
)

logger = logging.getLogger(__name__)

LONGEST_NAME = 100  # of what calls itself a job's name
STUBBORN_S = 5.0  # a job that was cancelled has ended by then; one that has not is told of

_PROBLEMS: dict[Problem, str] = {
    "expired": "there is nothing to be done for it: its payload expired, or was deleted",
    "wrong type": "its payload in Redis is no string",
    "too large": "its payload is larger than WORKER_MAX_PAYLOAD",
    "not UTF-8": "its id is not UTF-8",
}

Cancelled = Literal["timeout", "abort", "stop"]


@dataclass(frozen=True, slots=True)
class Handler:
    """A job's contract and its code in this process."""

    job: Job[Any, Any]
    code: Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Payload:
    """arq's record of a job, read."""

    function: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    enqueued_ms: int = 0


class JobRun:
    """Runs the job of `claim` once."""

    def __init__(self, claim: Claim, handlers: Mapping[str, Handler], limits: Limits, hooks: Hooks) -> None:
        self.claim = claim
        self.name = claim.name  # for messages: the id, and the job's name once that is known
        self.result_kept_s = RESULT_KEPT_S
        self._handlers = handlers
        self._limits = limits
        self._hooks = hooks
        self.over = False  # not: recorded
        self.disowned = False  # its claim was found to be gone, or another's
        self._payload = _Payload()
        self._code: asyncio.Task[Any] | None = None
        self._hook: asyncio.Task[Any] | None = None  # that runs
        self._cancelled: Cancelled | None = None
        self._started_ms = self._ended_ms = _now_ms()

    def has(self, claim: Claim) -> bool:
        """Whether `claim` is on this very job, and not on a later one with the same id."""
        # A job that is enqueued anew has another payload, with its moment; a dead one that is tried again counts anew.
        same = claim.problem == "expired" or claim.payload == self.claim.payload
        return same and (not self.over or claim.tries > self.claim.tries)

    def adopt(self, claim: Claim) -> None:
        """This worker has claimed the job again while it runs."""
        self.claim = replace(self.claim, mark=claim.mark)
        self.disowned = False
        if claim.aborted:
            self.cancel("abort")

    def cancel(self, why: Cancelled) -> None:
        """End the try; once is enough. A hook that runs is cancelled in any case."""
        if self._hook is not None:
            self._hook.cancel()
        if self._cancelled is None:
            self._cancelled = why
            if self._code is not None:
                self._code.cancel()

    async def run(self) -> Verdict:
        """Never raises, and is not to be cancelled: `cancel` is for that."""
        try:
            return await self._run()
        except asyncio.CancelledError:  # by the end of the process
            raise
        except BaseException as error:  # what escaped would leave the job claimed, and run again without an end
            logger.exception("job %s is dead: this worker could not run it", self.name)
            return Failed(error)
        finally:
            self.over = True

    async def _run(self) -> Verdict:
        self._started_ms = _now_ms()
        started = time.monotonic()
        try:
            handler, arguments = self._read()
        except JobUnreadable as error:
            # What is too large is not kept: a thousand of them might fill Redis.
            kept = self.claim.problem not in ("expired", "too large")
            logger.error("job %s is %s: %s", self.name, "dead" if kept else "dropped", reason(error))
            return Failed(error, buried=kept)
        if self.claim.orphan_of:
            logger.warning("job %s is run again: %s, which ran it, is silent", self.name, self.claim.orphan_of)
        if self._cancelled == "stop":
            return Again(0.0, "uncounted", None)
        if self.claim.aborted:
            return self._aborted()
        most = self._limits.tries if handler.job.tries is None else handler.job.tries
        if self.claim.tries > most:
            logger.error("job %s is dead: its worker died at each of %d tries", self.name, most)
            return Failed(WorkersDied(f"its worker died, or was killed, at try {most} of {most}"))
        logger.info("%s starts, try %d", self.name, self.claim.tries)
        timeout_s = self._limits.timeout_s if handler.job.timeout_s is None else handler.job.timeout_s
        await self._call(self._hooks.before, timeout_s)
        verdict = await self._try(handler, arguments, timeout_s)
        await self._call(self._hooks.after, timeout_s)
        self._ended_ms = _now_ms()
        self._log(verdict, time.monotonic() - started)
        return verdict

    def record(self, verdict: Done | Failed, queue_name: str) -> bytes:
        """arq's record of a result; without the job's arguments where they cannot be written."""
        result = verdict.result if isinstance(verdict, Done) else verdict.error
        known: dict[str, Any] = {
            "t": self.claim.tries,
            "f": self._payload.function,
            "a": (),
            "k": {},
            "et": self._payload.enqueued_ms,
            "s": isinstance(verdict, Done),
            "r": result,
            "st": self._started_ms,
            "ft": self._ended_ms,
            "q": queue_name,
            "id": self.claim.name,
        }
        try:
            return dumps(known | {"a": self._payload.args, "k": self._payload.kwargs or {}})
        except (TypeError, ValueError, RecursionError):
            return dumps(known)

    def _read(self) -> tuple[Handler, Any]:
        if self.claim.problem:
            raise JobUnreadable(_PROBLEMS[self.claim.problem])
        try:
            raw = loads(self.claim.payload)
            self._payload = _Payload(str(raw["f"]), tuple(raw["a"]), dict(raw["k"]), int(raw["et"]))
        except (ValueError, TypeError, KeyError, OverflowError):
            raise JobUnreadable(
                "its payload is not the JSON of a job: was it enqueued with another serializer?"
            ) from None
        function, args, kwargs = self._payload.function, self._payload.args, self._payload.kwargs or {}
        self.name = f"{self.claim.name}:{function[:LONGEST_NAME]}"
        handler = self._handlers.get(function)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise JobUnreadable(f"no job of this worker is called {function[:LONGEST_NAME]!r}; it knows {known}")
        self.result_kept_s = handler.job.result_kept_s
        try:
            if args:
                raise JobUnreadable("its arguments have no names: enqueue it with fleet.enqueue")
            return handler, handler.job.read_arguments(dict(kwargs))
        except ValidationError as error:
            raise JobUnreadable(f"its arguments are not its contract's: {first_fault(error)}") from None
        except JobUnreadable:
            raise
        except Exception as error:  # of the contract's own checks; pydantic passes most of them on as they are
            what = f"{type(error).__name__}: {reason(error)}"
            raise JobUnreadable(f"its arguments cannot be read by its contract: {what}") from error

    async def _try(self, handler: Handler, arguments: Any, timeout_s: float) -> Verdict:
        self._code = asyncio.create_task(_called(handler.code, arguments), name=f"job {self.name}")
        if self._cancelled is not None:  # while the hook ran
            self._code.cancel()
        await asyncio.wait({self._code}, timeout=timeout_s)
        if not self._code.done():
            self.cancel("timeout")
            while not (await asyncio.wait({self._code}, timeout=STUBBORN_S))[0]:
                logger.error(
                    "job %s goes on though it was cancelled (%s): it keeps its slot", self.name, self._cancelled
                )
        error = asyncio.CancelledError() if self._code.cancelled() else self._code.exception()
        if error is None:
            return self._done(self._code.result())
        if self._cancelled == "stop":
            return Again(0.0, "uncounted", None)
        if self._cancelled == "abort":
            return self._aborted()
        if self._cancelled == "timeout":
            late = JobTimeout(f"took longer than {timeout_s:g} s")
            late.__cause__ = None if isinstance(error, asyncio.CancelledError) else error
            error = late
        if not isinstance(error, Exception):  # a job that cancels itself
            return Failed(error)
        return verdict_on(error, handler.job, self._limits, tries=self.claim.tries, excused=self.claim.excused)

    def _done(self, result: Any) -> Verdict:
        try:
            dumps({"r": result})  # as deep as in its record
        except Exception as error:
            return Failed(error)
        return Done(result)

    def _aborted(self) -> Failed:
        logger.info("%s is aborted", self.name)
        return Failed(JobAborted("somebody asked for its end"), buried=False)

    async def _call(self, hook: Callable[[str], Awaitable[None]] | None, timeout_s: float) -> None:
        if hook is None:
            return
        self._hook = asyncio.create_task(_called(hook, self.claim.name), name=f"hook of job {self.name}")
        if not (await asyncio.wait({self._hook}, timeout=timeout_s))[0]:
            self._hook.cancel()
            await asyncio.wait({self._hook})
        if self._hook.cancelled():
            why = self._cancelled or "timeout"
            logger.error("a hook of job %s was cancelled (%s); the job is recorded all the same", self.name, why)
        elif (error := self._hook.exception()) is not None:
            logger.error("a hook of job %s failed; the job goes on", self.name, exc_info=error)
        self._hook = None

    def _log(self, verdict: Verdict, took_s: float) -> None:
        match verdict:
            case Done():
                logger.info("%s is done, %.2f s", self.name, took_s)
            case Failed(JobAborted()):
                pass  # that was said when it was
            case Failed(error, buried):
                # Its whole traceback is with its result, and with the dead job.
                what = "is dead" if buried else "failed"
                logger.error("%s %s, %.2f s: %s: %s", self.name, what, took_s, type(error).__name__, reason(error))
            case Again(_, _, None):
                logger.info("%s goes back to the queue, this worker ends", self.name)
            case Again(after_s, counts, why):
                logger.warning(
                    "%s is tried again in %.1f s (%s%s)",
                    self.name,
                    after_s,
                    why,
                    ", not counted" * (counts == "excused"),
                )


async def _called(code: Callable[[Any], Awaitable[Any]], argument: Any) -> Any:
    try:
        return await code(argument)
    except (SystemExit, KeyboardInterrupt) as error:  # asyncio would end the worker on them
        raise JobExited(f"it called for the end of the process: {error!r}") from error


def _now_ms() -> int:
    return round(time.time() * 1000)
