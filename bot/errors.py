"""What the bot raises: to the user of a command, and to the person who runs the bot."""

from __future__ import annotations

from config.exit_codes import ExitCode
from fleet.errors import FleetError


class BadArguments(Exception):
    """A command was given arguments that it cannot take; the user is shown this text and the command's usage."""


class TookTooLong(Exception):
    """A command was ended at its deadline; the user is shown this text."""


class TransportRefused(FleetError):
    """BOT_TRANSPORT asks for a transport that this bot cannot have, or that its settings do not fit."""

    exit_code = ExitCode.USAGE


class TokenRefused(TransportRefused):
    """The Bot API server does not accept BOT_TOKEN, or nothing could."""


class BotApiError(Exception):
    """Base of what a call of the Bot API raises. Its text is one line, without the token."""


class BotApiAway(BotApiError):
    """Nobody answers, or not as a Bot API does, or with an error of its own: it may pass by itself."""


class Flooded(BotApiAway):
    """Too many calls; the server asks to wait for `retry_after_s` seconds."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Unclear(BotApiAway):
    """An answer that no Bot API server should give to this call: it may pass by itself, or come again for ever."""


class Unreadable(BotApiAway):
    """Messages came of which one at least cannot be read; `number` is that of the first of them."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


class BotApiRefused(BotApiError):
    """This call is refused, and would be again: the message is too long, cannot be edited, or needs rights here."""


class ChatGone(BotApiRefused):
    """This chat takes nothing from this bot: it blocked the bot or threw it out, or there is no such chat."""


class ChatMoved(BotApiRefused):
    """The chat is a group that was upgraded: it has the number `to` from now on."""

    def __init__(self, text: str, to: int) -> None:
        super().__init__(text)
        self.to = to


class LeaseLost(Exception):
    """What only one process may do at a time is no longer this one's to do; the text says why."""
