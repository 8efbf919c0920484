"""Commands of a chat: text in, text out. Knows no transport, no database and no queue."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass

from bot.errors import BadArguments
from bot.table import table
from config.errors import shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody wrote: `sender` and `chat` are the transport's own ids."""

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
    """`name` without the slash, a summary for /help, and the names of its arguments, `""` if it takes none."""

    name: str
    summary: str
    run: Handler
    arguments: str = ""

    @property
    def usage(self) -> str:
        """How the command is written: `/exercise [n]`."""
        return f"/{self.name} {self.arguments}".rstrip()


class Router:
    """Finds the command of a message and runs it. /help is always there.

    An exception of one of the classes `told` has a text for the user: one line, no secret. Of any other exception
    the user learns the class only. The log gets the traceback of both.
    """

    def __init__(self, commands: Iterable[Command], *, told: tuple[type[Exception], ...] = ()) -> None:
        self._told = told
        self._commands: dict[str, Command] = {}
        for command in (Command("help", "this list", self._help), *commands):
            if command.name in self._commands:
                raise ValueError(f"two commands are called /{command.name}: rename one")
            self._commands[command.name] = command

    @property
    def commands(self) -> tuple[Command, ...]:
        """All commands, in the order in which they were given, /help first."""
        return tuple(self._commands.values())

    async def answer(self, message: Message) -> AsyncGenerator[Reply, None]:
        """The replies to a message, as they come. Raises nothing but `CancelledError`."""
        text = message.text.strip()
        if not text.startswith("/"):
            yield Reply("I only understand commands: /help lists them.")
            return
        name, arguments = (*text[1:].split(maxsplit=1), "", "")[:2]
        name = name.partition("@")[0].lower()  # in a group, telegram writes /status@name_of_the_bot
        command = self._commands.get(name)
        if command is None:
            yield Reply(f"Sorry, I do not know /{shown(name)}: /help lists what I know.")
            return
        async with aclosing(self._run(command, Request(arguments, message))) as replies:
            async for reply in replies:
                yield reply

    async def _run(self, command: Command, request: Request) -> AsyncGenerator[Reply, None]:
        try:
            if request.arguments and not command.arguments:
                raise BadArguments(f"/{command.name} takes no arguments")
            async with aclosing(command.run(request)) as replies:
                async for reply in replies:
                    yield reply
        except BadArguments as error:
            yield Reply(f"{error}. Usage: {command.usage}")
        except Exception as error:
            logger.exception(
                "/%s failed",
                command.name,
                extra={"command": command.name, "chat": request.message.chat, "sender": request.message.sender},
            )
            reason = str(error) if isinstance(error, self._told) else f"{type(error).__name__}, see the log"
            yield Reply(f"/{command.name} failed: {reason}")

    async def _help(self, _: Request) -> AsyncGenerator[Reply, None]:
        yield Reply(table([(command.usage, command.summary) for command in self.commands]), monospace=True)
