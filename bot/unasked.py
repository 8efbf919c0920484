"""What the bot says without having been asked: it takes from the fleet's outbox what jobs want said."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from bot.command import Reply
from bot.errors import BotApiRefused
from bot.subscribers import unsubscribe
from fleet.backoff import Backoff
from fleet.errors import reason
from fleet.outbox import LEASE_S, Outbox, Said
from fleet.process import Process

logger = logging.getLogger(__name__)

EVERY_S = 0.5
AT_ONCE = 100  # taken and not yet said
BACKOFF = Backoff(first_s=1.0, longest_s=15.0)
FAREWELL_S = 3.0

# Gives a chat its reply. Raises BotApiRefused where that would never work.
Send = Callable[[str, Reply], Awaitable[None]]


@asynccontextmanager
async def unasked(process: Process, transport: str, send: Send) -> AsyncIterator[None]:
    """While inside, what is to be said in the chats of `transport` is sent; at the end what is under way, in time."""
    speaker = _Speaker(Outbox(process.database.client, transport), send)
    listening = asyncio.create_task(speaker.listen(), name="outbox")
    try:
        yield
    finally:
        listening.cancel()
        await asyncio.wait({listening})
        await speaker.close()


class _Speaker:
    """Says it chat by chat: in order within one, and a chat that has to wait keeps no other waiting."""

    def __init__(self, outbox: Outbox, send: Send) -> None:
        self._outbox = outbox
        self._send = send
        self._taken: dict[int, Said] = {}
        self._chats: dict[str, asyncio.Task[None]] = {}
        self._renewed_s = 0.0

    async def listen(self) -> None:
        """Until it is cancelled."""
        failures = 0
        while True:
            try:
                await self._look()
                failures = 0
            except Exception as error:  # the database is away, or the pool is full
                failures += 1
                if failures == 1:
                    logger.warning("what jobs say cannot be read, trying again: %s", reason(error))
            await asyncio.sleep(BACKOFF.pause_s(failures) if failures else EVERY_S)

    async def close(self) -> None:
        """Let what is under way be said; what takes longer is left to another bot."""
        if not self._chats:
            return
        _, late = await asyncio.wait(self._chats.values(), timeout=FAREWELL_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=FAREWELL_S)

    async def _look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._taken and now_s - self._renewed_s > LEASE_S / 3:
            await self._outbox.renew(list(self._taken.values()))
            self._renewed_s = now_s
        if not self._taken:
            self._renewed_s = now_s
        by_chat: defaultdict[str, list[Said]] = defaultdict(list)
        for said in await self._outbox.take(AT_ONCE - len(self._taken), busy=list(self._chats)):
            self._taken[said.id] = said
            by_chat[said.chat].append(said)
        for chat, all_said in by_chat.items():
            self._chats[chat] = asyncio.create_task(self._say_all(chat, all_said), name=f"say in {chat}")

    async def _say_all(self, chat: str, all_said: list[Said]) -> None:
        try:
            for said in all_said:
                await self._say(said)
                del self._taken[said.id]
        except Exception as error:  # it stays in the outbox, and is taken again when its lease is over
            logger.warning("not said in chat %s, to be tried again: %s", chat, reason(error))
        finally:
            del self._chats[chat]
            for said in all_said:
                self._taken.pop(said.id, None)

    async def _say(self, said: Said) -> None:
        try:
            await self._send(said.chat, Reply(said.text))
        except BotApiRefused as error:
            logger.warning("chat %s does not take what was to be said, left out: %s", said.chat, error)
            if await unsubscribe(said.chat):
                logger.warning("chat %s gets no alerts any more", said.chat)
        tries = 0
        while True:
            try:
                await self._outbox.remove(said)
                return
            except Exception as error:  # said, and to be said again unless this works
                tries += 1
                if tries == 1:
                    logger.warning("what was said cannot be removed, trying again: %s", reason(error))
                await asyncio.sleep(BACKOFF.pause_s(tries))
