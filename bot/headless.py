"""The transport without a chat: the bot runs, is seen in the fleet, and takes no commands."""

from __future__ import annotations

import asyncio
import logging

from bot.router import Router
from fleet.process import Process

logger = logging.getLogger(__name__)


class Headless:
    """Says once that it runs, then waits to be cancelled."""

    name = "log"

    async def run(self, router: Router, process: Process, /) -> None:
        """Never returns: the process ends by a signal."""
        logger.info(
            "the bot runs without a chat and takes no commands; BOT_TRANSPORT=console reads them from standard input,"
            " BOT_TOKEN makes it a telegram bot"
        )
        await asyncio.Event().wait()
