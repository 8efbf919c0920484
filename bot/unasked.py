"""What the bot says without having been asked: it takes from the fleet's outbox what jobs want said."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from bot.command import Reply
from bot.errors import BotApiRefused, ChatGone, Flooded, Unclear
from bot.subscribers import unsubscribe
from fleet.backoff import Backoff
from fleet.errors import reason
from fleet.outbox import LEASE_S, Outbox, Said
from fleet.process import Process

logger = logging.getLogger(__name__)

EVERY_S = 0.5
# Chats to which something is being said, or that rest: many, as each of them may have to wait for minutes.
AT_ONCE = 1000
REST_S = 5.0  # of a chat to which something could not be said
BACKOFF = Backoff(first_s=1.0, longest_s=15.0)
FAREWELL_S = 3.0
RELEASE_TIMEOUT_S = 2.0

# Gives a chat its reply. Raises BotApiRefused where that would never work, and Unclear where it may never.
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
    """Says it chat by chat: in order within one, and a chat that has to wait keeps no other waiting.

    What was taken and could not be said is given back at once, so that any bot may say it.
    """

    def __init__(self, outbox: Outbox, send: Send) -> None:
        self._outbox = outbox
        self._send = send
        self._taken: dict[int, Said] = {}
        self._chats: dict[str, asyncio.Task[None]] = {}
        self._resting: dict[str, float] = {}  # chats, until when, by the event loop's clock
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
        """Let what is under way be said; what takes longer is given back."""
        if not self._chats:
            return
        _, late = await asyncio.wait(self._chats.values(), timeout=FAREWELL_S)
        if not late:
            return
        for task in late:
            task.cancel()
        await asyncio.wait(late, timeout=FAREWELL_S)
        releasing = asyncio.create_task(self._release(list(self._taken.values())), name="release what is not said")
        await asyncio.wait({releasing}, timeout=2 * RELEASE_TIMEOUT_S)

    async def _look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._taken and now_s - self._renewed_s > LEASE_S / 3:
            for said in await self._outbox.renew(list(self._taken.values())):
                if said.id in self._taken:  # it may have been said meanwhile
                    self._taken[said.id] = said
            self._renewed_s = now_s
        if not self._taken:
            self._renewed_s = now_s
        self._resting = {chat: until for chat, until in self._resting.items() if until > now_s}
        busy = [*self._chats, *self._resting]
        by_chat: defaultdict[str, list[Said]] = defaultdict(list)
        for said in await self._outbox.take(AT_ONCE - len(busy), busy=busy):
            self._taken[said.id] = said
            by_chat[said.chat].append(said)
        for chat, all_said in by_chat.items():
            self._chats[chat] = asyncio.create_task(self._say_all(chat, all_said), name=f"say in {chat}")

    async def _say_all(self, chat: str, all_said: list[Said]) -> None:
        try:
            for said in all_said:
                await self._say(said)
                del self._taken[said.id]
        except Exception as error:
            logger.warning("not said in chat %s, to be tried again: %s", chat, reason(error))
            await self._release([self._taken[said.id] for said in all_said if said.id in self._taken])
            rest_s = error.retry_after_s if isinstance(error, Flooded) else REST_S
            self._resting[chat] = asyncio.get_running_loop().time() + rest_s
        finally:
            del self._chats[chat]

    async def _release(self, unsaid: list[Said]) -> None:
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._outbox.release(unsaid)
        except Exception as error:
            logger.warning("what was not said cannot be given back, so it waits for %g s: %s", LEASE_S, reason(error))
        for said in unsaid:
            del self._taken[said.id]

    async def _say(self, said: Said) -> None:
        try:
            await self._send(said.chat, Reply(said.text))
        except (BotApiRefused, Unclear) as error:
            logger.warning("chat %s does not take what was to be said, left out: %s", said.chat, error)
            if isinstance(error, ChatGone) and await unsubscribe(said.chat):
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
