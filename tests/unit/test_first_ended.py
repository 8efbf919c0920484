"""How `poolctl up` waits for whichever of its tasks ends first."""

from __future__ import annotations

import asyncio

import pytest

from poolctl.first_ended import first_ended


async def forever() -> None:
    await asyncio.Event().wait()


async def result() -> str:
    return "result"


async def failure() -> None:
    raise LookupError("failure")


async def test_the_first_result_counts() -> None:
    """The result of the first to end is handed on."""
    assert await first_ended([forever(), result(), forever()]) == "result"


async def test_the_first_error_counts() -> None:
    """The error of the first to end is raised."""
    with pytest.raises(LookupError, match="failure"):
        await first_ended([forever(), failure()])


async def test_the_others_have_ended() -> None:
    """Whoever waits for the first finds none of the others still at work."""
    ended = []

    async def clean_up() -> None:
        try:
            await forever()
        finally:
            ended.append("cleaned up")

    await first_ended([clean_up(), result()])
    assert ended == ["cleaned up"]


async def test_a_lost_cancellation_is_sent_again() -> None:
    """A task that swallows a cancellation, as redis-py's may, does not hold up the end."""
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await forever()
            except asyncio.CancelledError:
                swallowed += 1
        await forever()

    async with asyncio.timeout(5):
        assert await first_ended([deaf(), result()]) == "result"
    assert swallowed == 2


async def test_an_error_while_others_are_cancelled_is_not_reported_twice() -> None:
    """An error with which a cancelled task ends is dropped without a word."""

    async def fail_at_the_end() -> None:
        try:
            await forever()
        finally:
            raise LookupError("late")

    assert await first_ended([fail_at_the_end(), result()]) == "result"
