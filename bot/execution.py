"""One run of a command: it shows that it works, it ends in time, and nobody waits for it longer than that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from bot.command import Command, Reply, Request
from bot.errors import TookTooLong

logger = logging.getLogger(__name__)

PATIENCE_S = 1.5  # people should see something within 2 s
ENDING_S = 2.0


class Execution:
    """Runs the command in a task of its own, so that it can be waited for with a limit, and left behind.

    A command that swallows its cancellation is left behind ENDING_S after its deadline; the log names it.
    """

    def __init__(self, command: Command, request: Request) -> None:
        self._command = command
        self._request = request
        self._mailbox: asyncio.Queue[Reply | Exception | None] = asyncio.Queue(maxsize=1)
        self._interrupted: asyncio.CancelledError | None = None

    async def replies(self) -> AsyncGenerator[Reply, None]:
        """The command's replies as they come; progress of our own where nothing was seen for PATIENCE_S.

        Raises what the command raises, and TookTooLong, of which the cause shows where the command was.
        """
        clock = asyncio.get_running_loop().time
        left_s = self._command.deadline_s
        shows_progress = False
        running = asyncio.create_task(self._run(), name=f"/{self._command.name}")
        arrival = asyncio.create_task(self._mailbox.get())
        try:
            while True:
                began = clock()
                await asyncio.wait({arrival}, timeout=left_s if shows_progress else min(left_s, PATIENCE_S))
                left_s -= clock() - began
                if arrival.done():
                    arrived = arrival.result()
                    if isinstance(arrived, Exception):
                        raise arrived
                    if arrived is None:
                        return
                    shows_progress = arrived.progress
                    yield arrived
                    arrival = asyncio.create_task(self._mailbox.get())
                elif left_s <= 0:
                    await self._end(running)
                    raise TookTooLong(
                        f"it took longer than {self._command.deadline_s:g} s and was ended"
                    ) from self._interrupted
                else:
                    shows_progress = True
                    yield Reply(f"/{self._command.name} is working …", progress=True)
        finally:
            arrival.cancel()
            await self._end(running)

    async def _run(self) -> None:
        outcome: Exception | None = None
        try:
            async with aclosing(self._command.run(self._request)) as replies:
                async for reply in replies:
                    await self._mailbox.put(reply)
        except asyncio.CancelledError as error:
            self._interrupted = error
            raise
        except Exception as error:
            outcome = error
        await self._mailbox.put(outcome)

    async def _end(self, running: asyncio.Task[None]) -> None:
        if running.done():
            return
        running.cancel()
        await asyncio.wait({running}, timeout=ENDING_S)
        if not running.done():
            logger.error("/%s does not end though it was cancelled: left behind, still running", self._command.name)
