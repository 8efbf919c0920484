"""Waiting for whichever of several coroutines ends first."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

CANCEL_LOOK_S = 0.2


async def first_ended(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> Any:
    """The result, or the error, of the first to end; the others are cancelled and have ended when this returns."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(coroutine) for coroutine in coroutines]
    left = set(tasks)
    try:
        done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()
    finally:
        # Again and again: a library may lose a cancellation, as asyncio.wait_for does before Python 3.12, and as a
        # Redis pipeline does when it makes an error of one that comes while it watches a key.
        while left:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=CANCEL_LOOK_S)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # looked at, or asyncio would log it
