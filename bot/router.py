"""The commands of a chat: text in, text out. Knows no transport, no database and no queue."""

from __future__ import annotations

import difflib
import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

from bot.command import Command, Message, Reply, Request
from bot.errors import BadArguments, TookTooLong
from bot.execution import Execution
from bot.table import table
from config.errors import shown

logger = logging.getLogger(__name__)

AT_ONCE = 3  # commands of one chat
LONGEST_NAME = 32  # telegram's own bound for a command's name


class Router:
    """Finds the command of a message and runs it. /help is always there.

    `told` has for an exception what the user is told of it, one line without secrets, or None: then the user learns the
    class only. The log gets the traceback of both, and an id by which the user can name it.

    A chat may have AT_ONCE commands running; it is told so once, and what it sends meanwhile is not answered.
    """

    def __init__(
        self, commands: Iterable[Command], *, told: Callable[[Exception], str | None] = lambda _: None
    ) -> None:
        self._told = told
        self._running: Counter[str] = Counter()  # by chat
        self._told_to_wait: set[str] = set()
        self._commands: dict[str, Command] = {}
        for command in (
            Command("help", "this list, or how one command is used", self._help, arguments="[command]"),
            *commands,
        ):
            if command.name in self._commands:
                raise ValueError(f"two commands are called /{command.name}: rename one")
            self._commands[command.name] = command

    @property
    def commands(self) -> tuple[Command, ...]:
        """All commands, in the order in which they were given, /help first."""
        return tuple(self._commands.values())

    async def answer(self, message: Message) -> AsyncGenerator[Reply, None]:
        """The replies to a message, as they come. Raises nothing but `CancelledError`."""
        chat = message.chat
        if self._running[chat] >= AT_ONCE:
            if chat not in self._told_to_wait:
                self._told_to_wait.add(chat)
                yield Reply(f"{AT_ONCE} commands of this chat are still running: wait until one has ended.")
            return
        self._running[chat] += 1
        try:
            async with aclosing(self._answer(message)) as replies:
                async for reply in replies:
                    yield reply
        finally:
            self._running[chat] -= 1
            self._told_to_wait.discard(chat)
            if not self._running[chat]:
                del self._running[chat]

    async def _answer(self, message: Message) -> AsyncGenerator[Reply, None]:
        text = message.text.strip()
        if not text.startswith("/"):
            yield Reply("I only understand commands: /help lists them.")
            return
        name, arguments = (*text[1:].split(maxsplit=1), "", "")[:2]
        name = name.partition("@")[0].lower()  # in a group, telegram writes /status@name_of_the_bot
        command = self._commands.get(name)
        if command is None:
            yield Reply(f"Sorry, I do not know /{shown(name)}: {self._hint(name)}")
            return
        async with aclosing(self._run(command, Request(arguments, message))) as replies:
            async for reply in replies:
                yield reply

    async def _run(self, command: Command, request: Request) -> AsyncGenerator[Reply, None]:
        try:
            if request.arguments and not command.arguments:
                raise BadArguments(f"/{command.name} takes no arguments")
            async with aclosing(Execution(command, request).replies()) as replies:
                async for reply in replies:
                    yield reply
        except BadArguments as error:
            yield Reply(f"{error}. Usage: {command.usage}")
        except Exception as error:
            failure = secrets.token_hex(4)
            logger.exception(
                "/%s failed [%s]",
                command.name,
                failure,
                extra={
                    "failure": failure,
                    "command": command.name,
                    "chat": request.message.chat,
                    "sender": request.message.sender,
                },
            )
            known = str(error) if isinstance(error, TookTooLong) else self._told(error)
            reason = known or f"{type(error).__name__}, see the log"
            yield Reply(f"/{command.name} failed: {reason} [{failure}]")

    async def _help(self, request: Request) -> AsyncGenerator[Reply, None]:
        if not request.arguments:
            yield Reply(table([(command.usage, command.summary) for command in self.commands]), monospace=True)
            return
        name = request.arguments.removeprefix("/").lower()
        command = self._commands.get(name)
        if command is None:
            yield Reply(f"Sorry, I do not know /{shown(name)}: {self._hint(name)}")
        else:
            yield Reply("\n".join(filter(None, (f"{command.usage}: {command.summary}", command.details))))

    def _hint(self, name: str) -> str:
        nearest = difflib.get_close_matches(name[:LONGEST_NAME], self._commands, n=1)
        return f"did you mean /{nearest[0]}?" if nearest else "/help lists what I know."
