"""What carries messages between people and the router, and the choice of one by BOT_TRANSPORT."""

from __future__ import annotations

from typing import Protocol, TextIO

from bot.console import Console
from bot.errors import TransportRefused
from bot.headless import Headless
from bot.router import Router
from config import Settings
from fleet.process import Process

AIOGRAM = "aiogram>=3.31,<4"  # also change: the extra `telegram` in pyproject.toml


class Transport(Protocol):
    """Hands each message to a router and shows its replies."""

    @property
    def name(self) -> str:
        """As BOT_TRANSPORT names it."""
        ...

    async def run(self, router: Router, process: Process, /) -> None:
        """Returns when nobody can write any more; otherwise runs until it is cancelled.

        process: an open process of the fleet, for transports that need Redis to agree with other bots.
        """
        ...


def choose_transport(settings: Settings, source: TextIO | None, output: TextIO | None) -> Transport:
    """The transport that BOT_TRANSPORT asks for; `auto` is telegram with a BOT_TOKEN, the console on a terminal, else
    the log.

    source, output: the process's standard input and output, None where it was started without.
    Raises TransportRefused.
    """
    wanted = settings.bot.transport
    on_terminal = _is_terminal(source) and _is_terminal(output)
    if wanted == "auto":
        wanted = "telegram" if settings.bot.token is not None else "console" if on_terminal else "log"
    if wanted == "telegram":
        return _telegram(settings)
    if wanted == "log":
        return Headless()
    if source is None or output is None:
        raise TransportRefused(
            "BOT_TRANSPORT=console needs standard input and output, and one is closed: set BOT_TRANSPORT=log"
        )
    return Console(source.fileno(), output, terminal=on_terminal)


def _telegram(settings: Settings) -> Transport:
    try:
        from bot.telegram import Telegram
    except ModuleNotFoundError as error:
        if error.name != "aiogram":
            raise
        raise TransportRefused(
            f"telegram needs the package aiogram, which is not installed: pip install '{AIOGRAM}', or set"
            " BOT_TRANSPORT=log"
        ) from None
    return Telegram(settings.bot)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()
