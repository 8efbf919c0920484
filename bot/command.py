"""A command of the chat, what it is asked, and what it says. Knows no transport, no database and no queue."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody wrote. `chat` is where the answer goes; no two transports have the same: `telegram:42`."""

    text: str
    sender: str
    chat: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the chat is shown.

    A reply that is `progress` is replaced by the reply after it where the transport can do that: by editing one
    message, or by writing over one line. A `monospace` reply has columns that must stay aligned.
    """

    text: str
    progress: bool = False
    monospace: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a command: the text after its name, and the message it came in."""

    arguments: str
    message: Message


Handler = Callable[[Request], AsyncGenerator[Reply, None]]


@dataclass(frozen=True, slots=True)
class Command:
    """`name` without the slash, a summary for /help, and the names of its arguments, `""` if it takes none.

    `details` is what /help NAME says beyond the summary. The command is ended when people have waited for it for
    `deadline_s` seconds; the time that a transport takes to show its replies does not count.
    """

    name: str
    summary: str
    run: Handler
    arguments: str = ""
    details: str = ""
    deadline_s: float = DEADLINE_S

    @property
    def usage(self) -> str:
        """How the command is written: `/exercise [n]`."""
        return f"/{self.name} {self.arguments}".rstrip()
