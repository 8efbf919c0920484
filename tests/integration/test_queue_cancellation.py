"""Cancelling whoever talks to Redis."""

from __future__ import annotations

import asyncio

import pytest

from config import Settings
from fleet.queue import open_queue


@pytest.mark.parametrize("steps", range(1, 30))
async def test_cancelled_command_stays_cancelled(environ: dict[str, str], steps: int) -> None:
    """A task that is cancelled at any step of a command ends, and the queue is as good as before."""
    async with open_queue(Settings.load("worker", environ)) as queue:

        async def ask_for_ever() -> None:
            while True:
                await queue.ping()

        asking = asyncio.create_task(ask_for_ever())
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        done, _ = await asyncio.wait({asking}, timeout=1)
        while not asking.done():  # so that a failing test ends
            asking.cancel()
            await asyncio.sleep(0)
        assert done
        assert await queue.ping()
