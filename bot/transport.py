"""What carries messages between people and the router, and the choice of one by BOT_TRANSPORT."""

from __future__ import annotations

import logging
from typing import Protocol, TextIO

from bot.console import Console
from bot.errors import TransportRefused
from bot.headless import Headless
from bot.router import Router
from config import Settings

logger = logging.getLogger(__name__)


class Transport(Protocol):
    """Hands each message to a router and shows its replies."""

    @property
    def name(self) -> str:
        """As BOT_TRANSPORT names it."""
        ...

    async def run(self, router: Router) -> None:
        """Returns when nobody can write any more; otherwise runs until it is cancelled."""
        ...


def choose_transport(settings: Settings, source: TextIO | None, output: TextIO | None) -> Transport:
    """The transport that BOT_TRANSPORT asks for; `auto` is the console on a terminal, else the log.

    source, output: the process's standard input and output, None where it was started without.
    Raises TransportRefused.
    """
    wanted = settings.bot.transport
    on_terminal = _is_terminal(source) and _is_terminal(output)
    if wanted == "telegram":
        raise TransportRefused("BOT_TRANSPORT=telegram is not in this version: set BOT_TRANSPORT=console, log or auto")
    if wanted == "auto":
        wanted = "console" if on_terminal else "log"
        if settings.bot.token is not None:
            logger.warning("BOT_TOKEN is set, and not used: this version has no telegram transport, using %s", wanted)
    if wanted == "log":
        return Headless()
    if source is None or output is None:
        raise TransportRefused(
            "BOT_TRANSPORT=console needs standard input and output, and one is closed: set BOT_TRANSPORT=log"
        )
    return Console(source.fileno(), output, terminal=on_terminal)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()
