"""The transport over telegram: fetches messages as the one bot that may, answers those of the operators."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import AsyncExitStack

from redis.exceptions import RedisError

from bot.bot_api import Account, BotApi, Incoming
from bot.command import Message, Reply
from bot.conversation import Conversation
from bot.delivery import deliver
from bot.errors import (
    BotApiAway,
    BotApiError,
    BotApiRefused,
    ChatGone,
    Flooded,
    LeaseLost,
    TokenRefused,
    TransportRefused,
)
from bot.inbox import Inbox
from bot.lease import Lease
from bot.router import Router
from bot.strangers import Strangers
from bot.subscribers import move
from bot.unasked import unasked
from config.errors import shown
from config.groups import BotSettings
from fleet.backoff import Backoff
from fleet.errors import reason
from fleet.process import Process

logger = logging.getLogger(__name__)

NAME = "telegram"
FETCH_S = 25  # one call waits so long for a message
BACKOFF = Backoff(first_s=1.0, longest_s=30.0)
FAREWELL_S = 3.0


class Telegram:
    """Long polling with BOT_TOKEN. Only one bot of the fleet polls, by a lease in Redis; the others stand by."""

    name = NAME

    def __init__(self, settings: BotSettings) -> None:
        """Raises TransportRefused where the settings cannot be right. Connects nothing."""
        if settings.token is None:
            raise TransportRefused("BOT_TRANSPORT=telegram needs BOT_TOKEN: set it to what @BotFather told you")
        for admin in settings.admins:
            if not (admin.isascii() and admin.isdecimal()):
                raise TransportRefused(
                    f"BOT_ADMINS has {shown(admin)}, which is not a telegram user id: give numbers, comma-separated;"
                    " the bot tells strangers theirs"
                )
        if not settings.admins:
            logger.warning(
                "BOT_ADMINS is empty, so nobody may give commands: write to the bot, it tells you your user id"
            )
        self._settings = settings
        self._api = BotApi(settings.token, settings.api_url)
        self._admins = {int(admin) for admin in settings.admins}
        self._strangers = Strangers()
        self._conversations: dict[asyncio.Task[None], Conversation | None] = {}

    async def run(self, router: Router, process: Process, /) -> None:
        """Never returns; raises TokenRefused where the server does not accept the token."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._api)
            stack.push_async_callback(self._end_conversations)
            account = await self._own_account()
            lease = Lease(process.queue, f"bot:telegram:{account.id}", process.id)
            await stack.enter_async_context(unasked(process, NAME, self._say))
            inbox = Inbox(process.queue, f"{lease.key}:handled:{self._api.address}", lease)
            while True:
                try:
                    async with lease.held():
                        logger.info("%s polls telegram as @%s", process.id, account.username)
                        await self._poll(router, account, inbox)
                except LeaseLost as error:
                    logger.warning("%s stops polling telegram: %s", process.id, error)

    async def _say(self, chat: str, reply: Reply) -> None:
        number = chat.removeprefix(f"{NAME}:")
        if not re.fullmatch("-?[0-9]{1,19}", number):
            raise ChatGone(f"{shown(number)!r} is no chat of {NAME}, whose chats are numbers")
        reached = await deliver(self._api, int(number), reply)
        if reached != int(number) and await move(chat, f"{NAME}:{reached}"):
            logger.warning("alerts for chat %s go to %s:%d from now on", chat, NAME, reached)

    async def _own_account(self) -> Account:
        tries = 0
        while True:
            try:
                return await self._api.account()
            except BotApiAway as error:
                tries += 1
                await self._back_off(error, tries)

    async def _poll(self, router: Router, account: Account, inbox: Inbox) -> None:
        tries = 0
        await self._refresh(inbox)
        registering = asyncio.create_task(self._register(router), name="commands for telegram's clients")
        try:
            while True:
                try:
                    for incoming in await self._api.updates(inbox.following, FETCH_S):
                        if await inbox.claim(incoming.number):
                            self._handle(incoming, router, account)
                except (BotApiError, RedisError, OSError) as error:
                    tries += 1
                    await self._back_off(error, tries)
                else:
                    if tries:
                        logger.info("%s answers again", self._api.address)
                    tries = 0
        finally:
            registering.cancel()

    async def _refresh(self, inbox: Inbox) -> None:
        tries = 0
        while True:
            try:
                await inbox.refresh()
                return
            except (RedisError, OSError) as error:
                tries += 1
                await self._back_off(error, tries)

    async def _register(self, router: Router) -> None:
        tries = 0
        while True:
            try:
                await self._api.register(router.commands)
                return
            except BotApiAway as error:
                tries += 1
                await asyncio.sleep(_pause_s(error, tries))
            except (BotApiRefused, TokenRefused) as error:  # people can type the commands all the same
                logger.warning("the commands could not be registered with telegram: %s", error)
                return

    async def _back_off(self, error: Exception, tries: int) -> None:
        if tries == 1:
            logger.warning("fetching messages failed, trying again: %s", reason(error))
        await asyncio.sleep(_pause_s(error, tries))

    def _handle(self, incoming: Incoming, router: Router, account: Account) -> None:
        command, _, _ = incoming.text.partition(" ")
        _, _, addressee = command.partition("@")
        is_command = command.startswith("/")
        if not incoming.private and (not is_command or addressee.lower() not in ("", account.username.lower())):
            return  # in a group, people talk to each other and to other bots
        if incoming.sender is None:
            return
        if incoming.sender not in self._admins:
            self._turn_away(incoming)
            return
        # Telegram's clients send /start when somebody first opens the chat.
        text = "/help" if is_command and command.partition("@")[0] == "/start" else incoming.text
        message = Message(text, sender=str(incoming.sender), chat=f"{NAME}:{incoming.chat}")
        conversation = Conversation(self._api, incoming.chat, message)
        task = asyncio.create_task(conversation.hold(router), name=f"update {incoming.number}")
        self._conversations[task] = conversation
        task.add_done_callback(self._ended)

    def _turn_away(self, stranger: Incoming) -> None:
        if not self._strangers.meet(str(stranger.sender), asyncio.get_running_loop().time()):
            return
        logger.warning(
            "a stranger wrote to the bot and was turned away: user id %s, %s; BOT_ADMINS has those who may",
            stranger.sender,
            shown(stranger.name),
        )
        line = Reply(f"Sorry, I only answer the operators of this fleet. Your user id is {stranger.sender}.")
        task = asyncio.create_task(self._tell(stranger.chat, line), name=f"update {stranger.number}")
        self._conversations[task] = None
        task.add_done_callback(self._ended)

    async def _tell(self, chat: int, line: Reply) -> None:
        try:
            await deliver(self._api, chat, line)
        except BotApiError as error:
            logger.info("chat %d: %s", chat, error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._conversations.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s was not answered", task.get_name(), exc_info=error)

    async def _end_conversations(self) -> None:
        """Cancel those that go on, and tell their chats. In tasks of their own: the caller is cancelled itself."""
        interrupted = dict(self._conversations)
        if not interrupted:
            return
        for task in interrupted:
            task.cancel()
        await asyncio.wait(interrupted, timeout=FAREWELL_S)
        apologies = {asyncio.create_task(each.apologize()) for each in interrupted.values() if each is not None}
        if apologies:
            _, late = await asyncio.wait(apologies, timeout=FAREWELL_S)
            for task in late:
                task.cancel()


def _pause_s(error: Exception, tries: int) -> float:
    return error.retry_after_s if isinstance(error, Flooded) else BACKOFF.pause_s(tries)
