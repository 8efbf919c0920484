"""Waiting for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.02


def wait_until(
    condition: Callable[[], T], *, timeout_s: float = 20.0, what: str | None = None, poll_s: float = POLL_S
) -> T:
    """Call `condition` until it returns something true, and return that; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise _late(condition, what, timeout_s, value)
        time.sleep(poll_s)


async def until(
    condition: Callable[[], T | Awaitable[T]],
    *,
    timeout_s: float = 20.0,
    what: str | None = None,
    poll_s: float = POLL_S,
) -> T:
    """Like `wait_until` for an event loop; `condition` may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        value: T = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > deadline:
            raise _late(condition, what, timeout_s, value)
        await asyncio.sleep(poll_s)


def _late(condition: Callable[..., object], what: str | None, timeout_s: float, value: object) -> AssertionError:
    name = what or getattr(condition, "__name__", repr(condition))
    return AssertionError(f"not within {timeout_s:g} s: {name} (last: {value!r})")
