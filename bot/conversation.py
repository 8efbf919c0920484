"""One message of a chat of telegram, and all that is answered to it."""

from __future__ import annotations

import logging
from contextlib import aclosing

from bot.bot_api import BotApi
from bot.command import Message, Reply
from bot.delivery import deliver
from bot.errors import BotApiError, TokenRefused
from bot.progress import Progress
from bot.router import Router

logger = logging.getLogger(__name__)

INTERRUPTED = "The bot was ended meanwhile: send this again."


class Conversation:
    """Runs one message through the router, and shows the replies in its chat."""

    def __init__(self, api: BotApi, chat: int, message: Message) -> None:
        self._api = api
        self._chat = chat
        self._message = message
        self._progress = Progress(api, chat)

    async def hold(self, router: Router) -> None:
        """Answer. An answer that cannot be delivered is logged."""
        try:
            await self._answer(router)
        except (BotApiError, TokenRefused) as error:
            logger.warning("an answer was not delivered: %s", error, extra={"chat": self._message.chat})

    async def apologize(self) -> None:
        """Say that the bot ended before its answer, when `hold` was cancelled."""
        try:
            await deliver(self._api, self._chat, Reply(INTERRUPTED), instead_of=await self._progress.close())
        except (BotApiError, TokenRefused) as error:
            logger.info("chat was not told that the bot ends: %s", error, extra={"chat": self._message.chat})

    async def _answer(self, router: Router) -> None:
        last = None
        async with aclosing(router.answer(self._message)) as replies:
            async for reply in replies:
                last = reply
                if reply.progress:
                    self._progress.show(reply)
                else:
                    await self._deliver(reply)
        if last is not None and last.progress:
            await self._deliver(last)

    async def _deliver(self, reply: Reply) -> None:
        instead_of = await self._progress.close()
        self._progress = Progress(self._api, self._chat)
        await deliver(self._api, self._chat, reply, instead_of=instead_of)
