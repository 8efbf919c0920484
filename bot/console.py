"""The chat on standard input and output: a line in, lines out."""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import select
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext, suppress
from typing import TextIO

from bot.command import Message, Reply
from bot.router import Router
from bot.unasked import unasked
from fleet.process import Process

logger = logging.getLogger(__name__)

NAME = "console"
PROMPT = "> "
_START_OF_LINE = "\r\x1b[K"  # and clear it: written over progress on a terminal


class Console:
    """Reads commands from the file descriptor `source`, writes answers to `output`. Ends at the end of input.

    `terminal` is whether a person sits before it: they get a prompt, and progress on one line.
    """

    name = NAME

    def __init__(self, source: int, output: TextIO, *, terminal: bool) -> None:
        self._source = source
        self._output = output
        self._terminal = terminal
        self._in_progress = False
        self._at_prompt = False

    async def run(self, router: Router, process: Process | None = None, /) -> None:
        """Answer line after line, until the input ends or nobody reads the output any more.

        Without a process, nothing is said that was not asked for. Every console has a person of its own, and whoever
        started it may give commands.
        """
        try:
            if self._terminal:
                self._write("/help lists the commands, Ctrl-D ends.\n")
            async with nullcontext() if process is None else unasked(process, NAME, self._say):
                await self._answer_all(router)
            if self._terminal:
                self._write("\n")  # so that the shell's prompt starts on a line of its own
        except BrokenPipeError:
            logger.info("nobody reads the answers any more: ending")
            self._discard_output()

    async def _answer_all(self, router: Router) -> None:
        self._prompt()
        async with aclosing(lines(self._source)) as texts:
            async for text in texts:
                self._at_prompt = False
                if text.strip():
                    await self._answer(router, Message(text, sender=NAME, chat=NAME))
                self._prompt()

    async def _say(self, chat: str, reply: Reply) -> None:
        """Over the prompt, or over progress, which is then shown anew."""
        self._in_progress = False
        self._write(f"{_START_OF_LINE if self._terminal else ''}{reply.text}\n")
        if self._at_prompt:
            self._prompt()

    async def _answer(self, router: Router, message: Message) -> None:
        async with aclosing(router.answer(message)) as replies:
            async for reply in replies:
                self._show(reply)

    def _show(self, reply: Reply) -> None:
        over = _START_OF_LINE if self._in_progress else ""
        self._in_progress = reply.progress and self._terminal
        self._write(f"{over}{reply.text}" + ("" if self._in_progress else "\n"))

    def _prompt(self) -> None:
        self._at_prompt = True
        if self._terminal:
            self._write(PROMPT)

    def _write(self, text: str) -> None:
        print(text, end="", file=self._output, flush=True)

    def _discard_output(self) -> None:
        # Python flushes standard output once more when it ends, which would fail with exit code 120.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._output.fileno())
        os.close(nowhere)


async def lines(source: int) -> AsyncGenerator[str, None]:
    """The lines of a file descriptor: of a terminal, a pipe or a file. Anything not UTF-8 becomes `\ufffd`."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pending = ""
    while chunk := await _read(source):
        *complete, pending = (pending + decoder.decode(chunk)).split("\n")
        for line in complete:
            yield line
    if pending := pending + decoder.decode(b"", final=True):
        yield pending


async def _read(source: int) -> bytes:
    """What there is to read; `b""` at the end of input.

    asyncio's own pipes would make the descriptor non-blocking for every process that shares the terminal, and epoll
    refuses files. A thread per read blocks nothing; as a daemon, it does not keep a process alive that was told to
    end. It reads the descriptor and not `sys.stdin`, whose lock a reading thread would hold while Python ends.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[bytes] = loop.create_future()

    def deliver(chunk: bytes) -> None:
        if not found.done():
            found.set_result(chunk)

    def read() -> None:
        try:
            select.select([source], [], [])  # whoever started us may have left it non-blocking
            chunk = os.read(source, 65_536)
        except OSError:  # the terminal is gone
            chunk = b""
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(deliver, chunk)

    threading.Thread(target=read, name="console input", daemon=True).start()
    return await found
