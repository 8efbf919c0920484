"""Replies on their way into one chat of telegram, each until it is there."""

from __future__ import annotations

import asyncio
import logging

from bot.bot_api import LONGEST_FLOOD_S, BotApi
from bot.command import Reply
from bot.errors import BotApiAway, BotApiRefused, ChatMoved, Flooded
from bot.markup import messages
from fleet.backoff import Backoff

logger = logging.getLogger(__name__)

BACKOFF = Backoff(first_s=1.0, longest_s=15.0)
TRIES = 8  # about a minute; waits that the server asks for do not count


async def deliver(api: BotApi, chat: int, reply: Reply, *, instead_of: int | None = None) -> int:
    """Send the reply, the first of its messages in place of message `instead_of` where there is one.

    Where the chat is a group that was upgraded, the reply goes to the chat that it is now; returns where it went.
    Waits as long as the server asks, up to LONGEST_FLOOD_S, and tries again when it is away. What arrived there while
    its answer was lost is sent twice. Raises BotApiAway or BotApiRefused when it is given up.
    """
    for text in messages(reply):
        try:
            await _deliver(api, chat, text, instead_of)
        except ChatMoved as error:
            logger.info("chat %d is %d now: its group was upgraded", chat, error.to)
            chat = error.to
            await _deliver(api, chat, text, None)
        instead_of = None
    return chat


async def _deliver(api: BotApi, chat: int, text: str, instead_of: int | None) -> None:
    tries = 0
    while True:
        try:
            if instead_of is None:
                await api.send(chat, text)
            else:
                await api.edit(chat, instead_of, text)
            return
        except Flooded as error:
            if error.retry_after_s > LONGEST_FLOOD_S:
                raise
            # Otherwise the next call waits.
        except BotApiAway:
            tries += 1
            if tries == TRIES:
                raise
            await asyncio.sleep(BACKOFF.pause_s(tries))
        except BotApiRefused:
            if instead_of is None:
                raise
            instead_of = None  # somebody deleted that message, or it is too old to be edited
