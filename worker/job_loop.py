"""A worker's loop: claims jobs as slots come free, renews their leases, records their ends.

It speaks arq's wire format (its keys, its records) and is no subclass of arq's Worker, of which too little would be
left: that one claims a job in four round trips and loses a slot when one of them fails, ends with its Redis, polls,
takes job timeout + 10 s to notice a killed worker, and never retries a job that timed out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from arq.connections import ArqRedis

from fleet.claims import Claim, Claims, Look, Renewal
from fleet.hooks import Hooks
from fleet.registry import JobCounts
from fleet.wire import describe_error, dumps
from worker.job_run import Handler, JobRun
from worker.outage import BACKOFF, LOST, Outage
from worker.schedule import Schedule
from worker.verdict import Again, Done, Failed, Limits, Verdict

logger = logging.getLogger(__name__)

# A job of the same id as one in hand is put back for so long: that one's end is being recorded, or it goes on.
RECORDED_S = 0.05
RETURN_S = 1.0


class JobLoop:
    """Runs up to `max_jobs` jobs at once. An idle one looks at the queue when it is woken, or after `look_s`."""

    def __init__(
        self,
        redis: ArqRedis,
        claims: Claims,
        handlers: Mapping[str, Handler],
        schedule: Schedule,
        outage: Outage,
        limits: Limits,
        *,
        max_jobs: int,
        look_s: float,
        hooks: Hooks | None = None,
        burst: bool = False,
    ) -> None:
        self._queue_name = redis.default_queue_name
        self._claims = claims
        self._handlers = handlers
        self._schedule = schedule
        self._outage = outage
        self._limits = limits
        self._max_jobs = max_jobs
        self._look_s = look_s
        self._hooks = hooks or Hooks()
        self._burst = burst
        self._runs: dict[bytes, JobRun] = {}  # by id, until their end is recorded
        # By id, of those runs that go back to the queue: the claim by which this worker has got it again meanwhile.
        self._going_back: dict[bytes, Claim | None] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._busy = 0  # slots
        self._slot_free = asyncio.Event()
        self._settled = asyncio.Event()  # unless a claim is under way
        self._settled.set()
        self._stopping = asyncio.Event()
        self._renew_soon = asyncio.Event()
        self._complete = self._failed = self._retried = 0

    @property
    def counts(self) -> JobCounts:
        """Its jobs until now."""
        return JobCounts(running=self._busy, complete=self._complete, failed=self._failed, retried=self._retried)

    @property
    def unfinished(self) -> list[str]:
        """The names of the jobs that run, or whose end is not recorded."""
        return [run.name for run in self._runs.values()]

    def stop(self) -> None:
        """Claim no more; `run` then returns as soon as the jobs are over that run."""
        self._stopping.set()
        self._slot_free.set()

    def cancel_jobs(self) -> None:
        """Stop, and cancel the jobs that run: they go back to the queue."""
        self.stop()
        for run in self._runs.values():
            run.cancel("stop")

    async def ended(self) -> None:
        """Wait until no job runs and every end is recorded. Those of a loop that ended on an error go on without it."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def run(self) -> None:
        """Until `stop` (in a burst: until no job is due) and until the last job's end is recorded."""
        await self._until_stopped(self._outage.outlast(self._claims.meet))
        beside = {
            asyncio.create_task(self._renew_forever(), name="heartbeat of the jobs"),
            asyncio.create_task(self._keep_schedule(), name="schedule"),
        }
        working = asyncio.create_task(self._work(), name="claiming")
        try:
            await asyncio.wait({working, *beside}, return_when=asyncio.FIRST_COMPLETED)
            for task in beside:
                if task.done():
                    task.result()  # they never end by themselves
            await working
        finally:
            for task in (working, *beside):
                task.cancel()
            await asyncio.gather(working, *beside, return_exceptions=True)

    async def _work(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            free = self._max_jobs - self._busy
            if free <= 0:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            try:
                if failures:  # it may be another Redis by now
                    await self._claims.meet()
                look = await self._claim(free)
                if self._burst and not look.claims and not look.left and not self._runs:
                    break
                if len(look.claims) < free:
                    await self._wait_for_a_job(look.again_s)
            except LOST as error:
                failures += 1
                self._outage.failed(error)
                self._renew_soon.set()  # what was claimed without our hearing of it goes back
                await self._until_stopped(asyncio.sleep(BACKOFF.pause_s(failures)))
            else:
                failures = 0
                self._outage.answered()
        await self.ended()
        if self._claims.doubtful:
            with contextlib.suppress(*LOST):
                await self._claims.renew({})

    async def _claim(self, wanted: int) -> Look:
        self._settled.clear()
        try:
            look = await self._claims.claim(wanted)
            for claim in look.claims:
                self._start(claim)
            return look
        finally:
            self._settled.set()

    async def _wait_for_a_job(self, again_s: float | None) -> None:
        waiting: list[Coroutine[Any, Any, object]] = [
            self._claims.wait(self._look_s if again_s is None else min(again_s, self._look_s))
        ]
        if self._burst:  # it may be over with the last job that runs
            self._slot_free.clear()
            waiting.append(self._slot_free.wait())
        await self._until_stopped(*waiting)

    def _start(self, claim: Claim) -> None:
        mine = self._runs.get(claim.id)
        if mine is None:
            run = self._runs[claim.id] = JobRun(claim, self._handlers, self._limits, self._hooks)
            if self._stopping.is_set():
                run.cancel("stop")
            self._busy += 1
            self._spawn(self._run(run), f"job {claim.name}")
        elif claim.id in self._going_back:  # and may be there already
            mine.adopt(claim)
            self._busy += self._going_back[claim.id] is None
            self._going_back[claim.id] = claim
        elif mine.has(claim):  # its lease ran out while it went on here
            mine.adopt(claim)
        else:  # a later job of the same id: the one in hand has ended in Redis, by this worker or by another
            after_s = RECORDED_S if mine.over else RETURN_S
            back = self._outage.outlast(lambda: self._claims.put_back(claim, after_s=after_s))
            self._spawn(back, f"put back job {claim.name}")

    def _spawn(self, work: Coroutine[Any, Any, object], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, run: JobRun) -> None:
        try:
            try:
                verdict = await run.run()
            finally:
                self._busy -= 1
                self._slot_free.set()
            # The next jobs are claimed and started first: they are what takes time.
            await asyncio.sleep(0)
            await self._settled.wait()
            await self._record(run, verdict)
        finally:
            del self._runs[run.claim.id]
            self._slot_free.set()
        if (claim := self._going_back.pop(run.claim.id, None)) is not None:
            self._busy -= 1
            self._start(claim)

    async def _record(self, run: JobRun, verdict: Verdict) -> None:
        """Tell Redis, however long that takes: the lease is renewed meanwhile."""
        tell = self._put_back(run, verdict) if isinstance(verdict, Again) else self._finish(run, verdict)
        calls = 0

        async def call() -> bool:
            nonlocal calls
            calls += 1
            return await tell()

        kept, mark = False, ""
        while not kept and mark != run.claim.mark:  # which may have changed meanwhile
            mark = run.claim.mark
            kept = await self._outage.outlast(call)
        if not kept and calls == 1:  # else it was probably the first call's doing, and only the answer was lost
            logger.warning(
                "%s ended, but it was no longer this worker's: Redis lost it, or another one ran it", run.name
            )

    def _put_back(self, run: JobRun, verdict: Again) -> Callable[[], Awaitable[bool]]:
        self._retried += 1
        claim = run.claim  # that one, whichever it gets meanwhile: it may be there already
        self._going_back[claim.id] = None
        return lambda: self._claims.put_back(claim, after_s=verdict.after_s, counts=verdict.counts)

    def _finish(self, run: JobRun, verdict: Done | Failed) -> Callable[[], Awaitable[bool]]:
        failed = isinstance(verdict, Failed)
        self._complete += not failed
        self._failed += failed
        result = run.record(verdict, self._queue_name)
        reason = b""
        if isinstance(verdict, Failed) and verdict.buried:
            reason = dumps({**describe_error(verdict.error), "tries": run.claim.tries})
        return lambda: self._claims.finish(run.claim, result, kept_s=run.result_kept_s, failed=failed, reason=reason)

    async def _renew_forever(self) -> None:
        while True:
            renewal = await self._outage.outlast(
                lambda: self._claims.renew(
                    {job_id: run.claim.mark for job_id, run in self._runs.items()},
                    {job_id for job_id, run in self._runs.items() if run.over and not self._going_back.get(job_id)},
                )
            )
            self._heed(renewal)
            self._renew_soon.clear()
            await self._first_of(self._renew_soon.wait(), timeout_s=self._claims.heartbeat_s)

    def _heed(self, renewal: Renewal) -> None:
        for job_id in renewal.aborted:
            if (run := self._runs.get(job_id)) is not None:
                run.cancel("abort")
        if others := self._names(renewal.others):
            logger.warning(
                "started again elsewhere while they run here, for this worker did not renew their leases in time: %s",
                others,
            )
        lost = self._names(renewal.gone)
        if renewal.forgotten:
            logger.warning(
                "Redis forgot what this worker wrote a moment ago: it was emptied, failed over, or restarted without"
                " its data; jobs that waited there may be lost: enqueue them again. Of those that run here it forgot"
                " %s",
                lost or "none",
            )
        elif lost:
            logger.warning("no longer on the queue while they run here: %s", lost)
        if renewal.put_back:
            logger.info("%d jobs go back to the queue: the answer to their claim was lost", len(renewal.put_back))

    def _names(self, job_ids: tuple[bytes, ...]) -> str:
        """Of those that still run, and were not named yet; the end of the others may be recorded by now."""
        runs = [self._runs[job_id] for job_id in job_ids if job_id in self._runs]
        new = [run for run in runs if not run.over and not run.disowned]
        for run in new:
            run.disowned = True  # told of once
        return ", ".join(run.name for run in new)

    async def _keep_schedule(self) -> None:
        while True:
            if self._burst or self._stopping.is_set():
                await asyncio.Event().wait()
            await asyncio.sleep(await self._outage.outlast(self._schedule.enqueue_due))

    async def _until_stopped(self, *waiting: Coroutine[Any, Any, object]) -> None:
        """Wait for the first of `waiting`, or until `stop`. Raises what they raise."""
        await self._first_of(*waiting, self._stopping.wait())

    @staticmethod
    async def _first_of(*waiting: Coroutine[Any, Any, object], timeout_s: float | None = None) -> None:
        tasks = [asyncio.create_task(each) for each in waiting]
        try:
            await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                task.result()
