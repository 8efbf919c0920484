from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from fleet.claims import Claim
from fleet.hooks import Hooks
from fleet.jobs import Job, NoArguments
from worker.job_run import Handler, JobRun
from worker.verdict import Again, Done, Failed, Limits


class Mute(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@dataclass
class Picky:
    """Refuses by an error that pydantic passes on."""

    def __post_init__(self) -> None:
        raise KeyError("check")


@dataclass
class Leaves:
    """Ends the process."""

    def __post_init__(self) -> None:
        sys.exit(7)


@dataclass
class Unsent:
    """A result that fails when it is written."""

    number: int = field(default=0)

    def __getattribute__(self, name: str) -> Any:
        if name == "number":
            raise KeyError(name)
        return super().__getattribute__(name)


async def mute(_: Any) -> int:
    """Raise what has no text."""
    raise Mute


async def ring(_: Any) -> int:
    """Raise an error that is the cause of its cause."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    raise one


async def unsent(_: Any) -> Any:
    """Return what cannot be written."""
    return Unsent()


async def well(_: Any) -> int:
    """Return."""
    return 1


CODE: dict[str, tuple[type, Callable[[Any], Awaitable[Any]]]] = {
    "mute": (NoArguments, mute),
    "ring": (NoArguments, ring),
    "unsent": (NoArguments, unsent),
    "picky": (Picky, well),
    "leaves": (Leaves, well),
    "well": (NoArguments, well),
}


@pytest.mark.parametrize(
    ("payload", "type_", "text"),
    [
        (b'{"f":"mute","a":[],"k":{},"et":1}', "Mute", "(its text cannot be made)"),
        (b'{"f":"ring","a":[],"k":{},"et":1}', "ValueError", "one"),
        (b'{"f":"unsent","a":[],"k":{},"et":1}', None, ""),
        (b'{"f":"picky","a":[],"k":{},"et":1}', "JobUnreadable", "KeyError: 'check'"),
        (b'{"f":"leaves","a":[],"k":{},"et":1}', "SystemExit", "7"),
        (b'{"f":"well","a":[],"k":{"x":1e999},"et":1}', "JobUnreadable", "is not the JSON of a job"),
        (b'{"f":"well","a":[],"k":{},"et":1e999}', "JobUnreadable", "is not the JSON of a job"),
        (b'{"f":"none","a":' + b"[" * 900 + b"]" * 900 + b',"k":{},"et":1}', "JobUnreadable", "is called 'none'"),
    ],
    ids=lambda value: value[:20].decode() if isinstance(value, bytes) else None,
)
async def test_nothing_escapes(payload: bytes, type_: str | None, text: str) -> None:
    """Whatever a payload or a job does, its run ends with a failure that goes to the dead, and can be recorded."""
    run = _run(payload)
    verdict = await run.run()
    assert isinstance(verdict, Failed)
    assert verdict.buried
    record = json.loads(run.record(verdict, "arq:queue"))
    assert record["s"] is False
    if type_ is not None:
        assert record["r"]["type"] == type_
    assert text in record["r"]["message"]


async def test_a_record_of_arguments_that_are_nested_deep() -> None:
    """There is one, though they could just be read, and cannot be written where that is done."""
    depth = next(depth for depth in range(5_000, 0, -5) if _readable(_nested(depth)))
    run = _run(_nested(depth))
    verdict = await run.run()
    record = json.loads(_deeper(30, lambda: run.record(verdict, "arq:queue")))  # type: ignore[arg-type] # it failed
    assert record["r"]["type"] == "JobUnreadable"


async def test_a_run_that_ends_well() -> None:
    """The payload of a job gives its result."""
    assert await _run(b'{"f":"well","a":[],"k":{},"et":1}').run() == Done(1)


async def _hangs(_: str) -> None:
    await asyncio.Event().wait()


async def _exits(_: str) -> None:
    sys.exit(7)


@pytest.mark.parametrize("hook", [_hangs, _exits])
async def test_a_hook_that_hangs_or_exits(hook: Callable[[str], Awaitable[None]]) -> None:
    """It is ended with the time of a job, and the job's verdict is its own."""
    run = _run(b'{"f":"well","a":[],"k":{},"et":1}', Hooks(hook, hook), timeout_s=0.05)
    async with asyncio.timeout(5):
        assert await run.run() == Done(1)


async def test_a_hook_that_hangs_while_the_worker_ends() -> None:
    """It is cancelled with its job."""
    reached = asyncio.Event()

    async def hangs(_: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    run = _run(b'{"f":"well","a":[],"k":{},"et":1}', Hooks(before=hangs), timeout_s=60)
    running = asyncio.create_task(run.run())
    async with asyncio.timeout(5):
        await reached.wait()
        run.cancel("stop")
        assert await running == Again(0.0, "uncounted", None)


def _nested(depth: int) -> bytes:
    return b'{"f":"none","a":' + b"[" * depth + b"]" * depth + b',"k":{},"et":1}'


def _deeper(frames: int, call: Callable[[], bytes]) -> bytes:
    return call() if frames == 0 else _deeper(frames - 1, call)


def _readable(payload: bytes) -> bool:
    try:
        json.loads(payload)
    except RecursionError:
        return False
    return True


def _run(payload: bytes, hooks: Hooks | None = None, *, timeout_s: float = 5.0) -> JobRun:
    handlers = {name: Handler(Job(name, arguments, int), code) for name, (arguments, code) in CODE.items()}
    claim = Claim(b"j", "o 1", 1, 0, "", "", payload, False)
    return JobRun(claim, handlers, Limits(timeout_s, 5, 20), hooks or Hooks())


FIRST = Claim(b"id", "worker@a:1/x 1", 2, 0, "", "", b"payload", aborted=False)


@pytest.mark.parametrize(
    ("changes", "over", "expected"),
    [
        ({"tries": 3}, False, True),  # its lease ran out
        ({"tries": 3}, True, True),
        ({"tries": 1}, False, True),  # a failover lost the count of its tries
        ({"tries": 1}, True, False),  # it died, and somebody tries it again
        ({"tries": 3, "problem": "expired", "payload": b""}, False, True),
        ({"tries": 3, "payload": b"of a later moment"}, False, False),
        ({"tries": 3, "payload": b"of a later moment"}, True, False),
    ],
)
def test_a_claim_on_the_job_in_hand(changes: dict[str, Any], over: bool, expected: bool) -> None:
    """A claim on an id is on the job that runs, or on a later one of that id."""
    run = JobRun(FIRST, {}, Limits(timeout_s=1, tries=5, excused=20), Hooks())
    run.over = over
    assert run.has(replace(FIRST, mark="worker@a:1/x 2", **changes)) is expected


def test_an_abort_that_comes_with_a_claim() -> None:
    """A job that is claimed again while it runs, to be aborted, is."""
    run = JobRun(FIRST, {}, Limits(timeout_s=1, tries=5, excused=20), Hooks())
    run.adopt(replace(FIRST, mark="worker@a:1/x 2", aborted=True))
    assert run._cancelled == "abort"
