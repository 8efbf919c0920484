"""Telegram's Bot API, over aiogram. The only file that imports aiogram.

The token is part of every URL, and errors of HTTP clients like to show URLs, as do error pages of proxies. So no
exception of aiogram or aiohttp leaves this file: each becomes one of bot/errors.py, without the original in its
traceback.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import PRODUCTION, TelegramAPIServer
from aiogram.enums import ChatType, ParseMode
from aiogram.exceptions import (
    ClientDecodeError,
    TelegramAPIError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramEntityTooLarge,
    TelegramForbiddenError,
    TelegramMigrateToChat,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramUnauthorizedError,
)
from aiogram.methods import (
    EditMessageText,
    GetMe,
    GetUpdates,
    SendMessage,
    SetMyCommands,
    TelegramMethod,
)
from aiogram.methods.base import TelegramType
from aiogram.types import BotCommand, LinkPreviewOptions, Update
from aiogram.utils.token import TokenValidationError
from pydantic import SecretStr

from bot.command import Command
from bot.errors import (
    BotApiAway,
    BotApiError,
    BotApiRefused,
    ChatGone,
    ChatMoved,
    Flooded,
    TokenRefused,
    TransportRefused,
    Unclear,
    Unreadable,
)
from config.errors import shown

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 20.0
LONGEST_FLOOD_S = 15 * 60.0  # waited out; callers learn of a longer one at once
LONGEST_DESCRIPTION = 256
# The words of status 400 for a chat that is gone: it has neither a status nor a parameter of its own.
_GONE = ("chat not found", "deactivated")
_NO_PREVIEW = LinkPreviewOptions(is_disabled=True)  # "host.example:5432" is no link


@dataclass(frozen=True, slots=True)
class Account:
    """Which bot the token is of."""

    id: int
    username: str


@dataclass(frozen=True, slots=True)
class Incoming:
    """An update: somebody wrote `text` in `chat`. `sender` is None for a channel, and for what is no message."""

    number: int
    chat: int
    sender: int | None
    name: str
    text: str
    private: bool


class BotApi:
    """One token's calls. An async context manager; nothing is connected before the first call.

    Each call raises BotApiAway, Flooded or BotApiRefused, and TokenRefused where the token is not valid any more.
    After a Flooded the next call for the same chat first waits for as long as the server asked; while that is more than
    LONGEST_FLOOD_S, it is Flooded at once. Calls for a chat raise ChatGone and ChatMoved, too.
    """

    def __init__(self, token: SecretStr, api_url: str | None) -> None:
        """Raises TransportRefused for a URL, TokenRefused for a token that cannot be one."""
        self._token = token
        self._quiet_until: dict[int, float] = {}  # by chat: too much was sent there, so nothing may be for a while
        self.address = _address(api_url)
        server = PRODUCTION if api_url is None else TelegramAPIServer.from_base(api_url)
        session = AiohttpSession(api=server, timeout=CALL_TIMEOUT_S)
        try:
            self._bot = Bot(token.get_secret_value(), session=session)
        except TokenValidationError:
            raise TokenRefused(
                "BOT_TOKEN is not a telegram bot's token, which is a number, a colon and a word: give the one that"
                " @BotFather told you"
            ) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._bot.session.close()

    async def account(self) -> Account:
        """Which bot this is."""
        try:
            user = await self._call(GetMe())
        except BotApiRefused as error:  # a token of an impossible form is 404
            raise TokenRefused(
                f"{self.address} does not know BOT_TOKEN ({error}): correct it, or BOT_API_URL"
            ) from None
        return Account(user.id, user.username or "")

    async def updates(self, following: int | None, wait_s: int) -> list[Incoming]:
        """Messages from number `following` on, by number, waiting for the first; those before are forgotten there."""
        try:
            found = await self._fetched(following, wait_s, 100)
        except Unreadable:  # would come again and again, and with it all that were written later
            try:
                found = await self._fetched(following, 0, 1)
            except Unreadable as error:
                logger.warning("message %d is passed over, it cannot be read: %s", error.number, error)
                return [Incoming(error.number, chat=0, sender=None, name="", text="", private=False)]
        return sorted(map(_incoming, found), key=lambda incoming: incoming.number)

    async def _fetched(self, following: int | None, wait_s: int, most: int) -> list[Update]:
        return await self._call(
            GetUpdates(offset=following, timeout=wait_s, limit=most, allowed_updates=["message"]),
            timeout_s=wait_s + CALL_TIMEOUT_S,
        )

    async def send(self, chat: int, text: str) -> int:
        """Send HTML; the new message's id."""
        message = await self._to_chat(
            chat, SendMessage(chat_id=chat, text=text, parse_mode=ParseMode.HTML, link_preview_options=_NO_PREVIEW)
        )
        return message.message_id

    async def edit(self, chat: int, message_id: int, text: str) -> None:
        """Replace a message's text by HTML. That it has this text already is no error."""
        try:
            await self._to_chat(
                chat,
                EditMessageText(
                    chat_id=chat,
                    message_id=message_id,
                    text=text,
                    parse_mode=ParseMode.HTML,
                    link_preview_options=_NO_PREVIEW,
                ),
            )
        except BotApiRefused as error:
            if "message is not modified" not in str(error):
                raise

    async def register(self, commands: Iterable[Command]) -> None:
        """Tell telegram's clients which commands there are."""
        await self._call(
            SetMyCommands(
                commands=[
                    BotCommand(command=command.name, description=command.summary[:LONGEST_DESCRIPTION])
                    for command in commands
                ]
            )
        )

    async def _to_chat(self, chat: int, method: TelegramMethod[TelegramType]) -> TelegramType:
        clock = asyncio.get_running_loop().time
        while (wait_s := self._quiet_until.get(chat, 0.0) - clock()) > 0:
            if wait_s > LONGEST_FLOOD_S:
                raise Flooded(f"{self.address} asks to wait for {wait_s:.0f} s more", wait_s)
            await asyncio.sleep(wait_s)
        self._quiet_until.pop(chat, None)
        try:
            return await self._call(method)
        except Flooded as error:
            logger.warning("chat %d: %s", chat, error)
            self._quiet_until[chat] = clock() + error.retry_after_s
            raise

    async def _call(self, method: TelegramMethod[TelegramType], timeout_s: float = CALL_TIMEOUT_S) -> TelegramType:
        try:
            return await self._bot(method, request_timeout=math.ceil(timeout_s))
        except Exception as error:
            ours = self._translated(error)
        raise ours  # outside of `except`, so that the original is not its context either

    def _translated(self, error: Exception) -> BotApiError | TokenRefused:
        match error:
            case TelegramRetryAfter():
                return Flooded(f"{self.address} asks to wait for {error.retry_after} s", error.retry_after)
            case TelegramUnauthorizedError():
                return TokenRefused(f"{self.address} does not accept BOT_TOKEN: correct it (@BotFather tells it)")
            case TelegramConflictError():
                return BotApiAway(
                    "somebody else fetches this bot's messages: another fleet with the same BOT_TOKEN, or a webhook"
                    f" ({self._scrubbed(error.message)})"
                )
            case TelegramMigrateToChat():
                return ChatMoved(self._scrubbed(error.message), error.migrate_to_chat_id)
            case TelegramForbiddenError():
                return ChatGone(self._scrubbed(error.message))
            case TelegramBadRequest() if any(words in error.message for words in _GONE):
                return ChatGone(self._scrubbed(error.message))
            case TelegramBadRequest() | TelegramNotFound(method=GetMe()):
                return BotApiRefused(self._scrubbed(error.message))
            case TelegramNotFound() | TelegramEntityTooLarge():
                return Unclear(f"{self.address}: {self._scrubbed(error.message)}")
            case TelegramAPIError() if type(error) is TelegramAPIError:  # any other status below 500
                return Unclear(f"{self.address}: {self._scrubbed(error.message)}")
            case ClientDecodeError(data={"ok": True, "result": [{"update_id": int(number)}, *_]}):
                return Unreadable(f"{self.address}: {error.message}", number)
            case ClientDecodeError(data=data):
                kind = BotApiAway if isinstance(data, str) else Unclear  # a string is no JSON: some proxy's page
                return kind(f"{self.address} does not answer as a Bot API server does: {error.message}")
        return BotApiAway(f"{self.address}: {self._scrubbed(getattr(error, 'message', None) or type(error).__name__)}")

    def _scrubbed(self, text: str) -> str:
        token = self._token.get_secret_value()
        for secret in (token, token.partition(":")[2]):
            text = text.replace(secret, "***")
        return shown(text)


def _address(api_url: str | None) -> str:
    """Host and port, for messages: the URL may hold a password."""
    if api_url is None:
        return "telegram"
    try:
        url = urlsplit(api_url)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in ("http", "https") or not url.hostname or {"{", "}"} & set(api_url):
        raise TransportRefused(
            f"BOT_API_URL={shown(api_url)} is not the URL of a server: give one like http://localhost:8081"
        )
    return url.hostname if port is None else f"{url.hostname}:{port}"


def _incoming(update: Update) -> Incoming:
    message = update.message
    if message is None:
        return Incoming(update.update_id, chat=0, sender=None, name="", text="", private=False)
    user = message.from_user
    return Incoming(
        update.update_id,
        chat=message.chat.id,
        sender=None if user is None else user.id,
        name="" if user is None else user.username or user.full_name,
        text=message.text or "",
        private=message.chat.type == ChatType.PRIVATE,
    )
