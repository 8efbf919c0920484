"""A message in a chat of telegram that shows how far something is, and is edited as it goes on."""

from __future__ import annotations

import asyncio
import logging

from bot.bot_api import BotApi
from bot.command import Reply
from bot.errors import BotApiError, TokenRefused
from bot.markup import messages

logger = logging.getLogger(__name__)

EVERY_S = 3.0  # telegram allows a group 20 messages a minute, edits among them


class Progress:
    """Shows the latest of the replies it is given, not more often than every EVERY_S; those between are left out.

    Progress that cannot be shown is not worth an error: the next is tried instead.
    """

    def __init__(self, api: BotApi, chat: int) -> None:
        self._api = api
        self._chat = chat
        self._wanted: str | None = None
        self._shown: str | None = None
        self._message: int | None = None
        self._closing = asyncio.Event()
        self._keeping_up: asyncio.Task[None] | None = None

    def show(self, reply: Reply) -> None:
        """Show it soon. A reply that is too long for one message is cut."""
        self._wanted = messages(reply)[0]
        if self._keeping_up is None or self._keeping_up.done():
            self._keeping_up = asyncio.create_task(self._keep_up(), name=f"progress in chat {self._chat}")

    async def close(self) -> int | None:
        """Show nothing more; the message that the result is to replace, None where nothing was shown."""
        self._closing.set()
        if self._keeping_up is not None:
            await asyncio.wait({self._keeping_up})
        return self._message

    async def _keep_up(self) -> None:
        closing = asyncio.create_task(self._closing.wait())
        while self._wanted is not None and self._wanted != self._shown and not self._closing.is_set():
            text = self._wanted
            try:
                if self._message is None:
                    self._message = await self._api.send(self._chat, text)
                else:
                    await self._api.edit(self._chat, self._message, text)
                self._shown = text
            except (BotApiError, TokenRefused) as error:
                logger.debug("progress is not shown in chat %d: %s", self._chat, error)
            await asyncio.wait({closing}, timeout=EVERY_S)
        closing.cancel()
