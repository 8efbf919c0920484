"""Where a task is, and where it asked for a connection: one line for each frame, "app/jobs.py:41 in send"."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from functools import lru_cache
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

# Every way to a connection leads through these packages, so their lines do not say who took it.
_PASSED_THROUGH = frozenset({"asyncio", "asyncpg", "contextlib", "pool", "tortoise"})
_WITH_FRAMES = (CoroutineType, GeneratorType, AsyncGeneratorType)


def stack_of(task: asyncio.Task[Any]) -> list[str]:
    """Where a waiting task is now, outermost first: as far as coroutines await each other.

    Empty for a task that has ended; only the outermost frame for the one that is running.
    """
    lines = []
    waits_for: object = task.get_coro()
    while waits_for is not None:
        frame, next_one = _frame_and_next(waits_for)
        if frame is not None:
            lines.append(_line(frame))
        waits_for = next_one
    return lines


def call_site() -> str:
    """The line of the calling task that led here: its innermost frame that is neither ours nor a library's.

    For a task that is a library's coroutine and nothing else, as in `gather(Model.get())`, its outermost frame.
    """
    task = asyncio.current_task()
    outermost = None if task is None else _frame_and_next(task.get_coro())[0]
    # At every checkout, so it must be cheap: inspect.stack() and traceback read source files. CPython documents
    # sys._getframe(), and the inspect.currentframe() of every implementation is made of it.
    frame = sys._getframe(1)
    while _package(frame) in _PASSED_THROUGH:
        if frame is outermost or frame.f_back is None:  # beyond it is whoever runs the event loop
            break
        frame = frame.f_back
    return _line(frame)


def _frame_and_next(awaitable: object) -> tuple[FrameType | None, object]:
    """The frame of a coroutine or generator, None if it has none; and what it awaits or drives, None for the last."""
    match awaitable:
        case CoroutineType():
            return awaitable.cr_frame, awaitable.cr_await
        case GeneratorType():
            return awaitable.gi_frame, awaitable.gi_yieldfrom
        case AsyncGeneratorType():
            return awaitable.ag_frame, awaitable.ag_await
        case _:
            # Two wrappers of CPython hide what they drive from all but the garbage collector: the one that
            # `coroutine.__await__()` returns (Tortoise's queries, asyncpg's acquire), and a step of an async generator.
            driven = [o for o in gc.get_referents(awaitable) if isinstance(o, _WITH_FRAMES)]
            return None, driven[0] if len(driven) == 1 else None


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _line(frame: FrameType) -> str:
    return f"{_shown(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_qualname}"


@lru_cache(maxsize=1024)
def _shown(path: str) -> str:
    """`path`, relative to the working directory when it is below it."""
    try:
        return path.removeprefix(os.getcwd() + os.sep)
    except OSError:  # the working directory is gone
        return path
