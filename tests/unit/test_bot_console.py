from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from bot.command import Command, Reply, Request
from bot.console import Console, lines
from bot.router import Router
from tests.waiting import until


async def count(_: Request) -> AsyncGenerator[Reply, None]:
    yield Reply("1 of 2", progress=True)
    yield Reply("2 of 2", progress=True)
    yield Reply("done")


def router() -> Router:
    return Router([Command("count", "counts", count)])


class Pipe:
    """A pipe whose ends are closed at the end of the test."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self._open = {self.read_end, self.write_end}

    def write(self, data: bytes) -> None:
        os.write(self.write_end, data)

    def close(self, end: int) -> None:
        if end in self._open:
            self._open.remove(end)
            os.close(end)

    def close_all(self) -> None:
        for end in tuple(self._open):
            self.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_all()


async def read_all(source: int) -> list[str]:
    async with asyncio.timeout(10):
        return [line async for line in lines(source)]


async def test_lines_of_a_pipe(pipe: Pipe) -> None:
    """A pipe gives its lines, the last one without a line break too, and then ends."""
    pipe.write("/a\n\n/ä\nlast".encode())
    pipe.close(pipe.write_end)
    assert await read_all(pipe.read_end) == ["/a", "", "/ä", "last"]


async def test_line_in_pieces(pipe: Pipe) -> None:
    """A line, and a character, may arrive in pieces."""
    reading = asyncio.create_task(read_all(pipe.read_end))
    for byte in "/ä\n".encode():
        pipe.write(bytes([byte]))
        await asyncio.sleep(0)
    pipe.close(pipe.write_end)
    assert await reading == ["/ä"]


async def test_line_that_is_not_utf8(pipe: Pipe) -> None:
    """Bytes that are not UTF-8 are replaced, also at the end of input."""
    pipe.write(b"\xff/a\n\xc3")
    pipe.close(pipe.write_end)
    assert await read_all(pipe.read_end) == ["\ufffd/a", "\ufffd"]


async def test_lines_of_a_file(tmp_path: Path) -> None:
    """A regular file, which epoll refuses, is read like a pipe."""
    path = tmp_path / "commands"
    path.write_text("/a\n" * 20_000)
    with path.open() as file:
        assert len(await read_all(file.fileno())) == 20_000


async def test_input_that_does_not_block(pipe: Pipe) -> None:
    """Input that was left non-blocking by whoever started us is waited for all the same."""
    os.set_blocking(pipe.read_end, False)
    reading = asyncio.create_task(read_all(pipe.read_end))
    done, _ = await asyncio.wait({reading}, timeout=0.1)
    assert not done
    pipe.write(b"/a\n")
    pipe.close(pipe.write_end)
    assert await reading == ["/a"]


async def test_waiting_for_input_can_be_cancelled(pipe: Pipe) -> None:
    """A pending read does not keep the reader from being cancelled at once, and later input harms nobody."""
    reading = asyncio.create_task(read_all(pipe.read_end))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reading, 1)
    pipe.write(b"late\n")
    # The thread must be gone before the next test's pipe gets the same number.
    await until(lambda: all(thread.name != "console input" for thread in threading.enumerate()))


async def test_pipe_gets_every_reply_on_a_line(pipe: Pipe) -> None:
    """Without a terminal there is no prompt and no control character: progress is lines like all others."""
    pipe.write(b"/count\n\nhello\n")
    pipe.close(pipe.write_end)
    output = io.StringIO()
    await Console(pipe.read_end, output, terminal=False).run(router())
    assert output.getvalue().splitlines() == [
        "1 of 2",
        "2 of 2",
        "done",
        "I only understand commands: /help lists them.",
    ]


async def test_terminal_gets_a_prompt_and_progress_on_one_line(pipe: Pipe) -> None:
    """On a terminal there is a prompt, and progress is written over."""
    pipe.write(b"/count\n")
    pipe.close(pipe.write_end)
    output = io.StringIO()
    await Console(pipe.read_end, output, terminal=True).run(router())
    assert output.getvalue() == ("/help lists the commands, Ctrl-D ends.\n> 1 of 2\r\x1b[K2 of 2\r\x1b[Kdone\n> \n")


@pytest.fixture
def unread_output() -> Iterator[TextIO]:
    """The writing end of a pipe whose reader is gone."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as output:
        yield output


async def test_output_that_nobody_reads_ends_the_console(pipe: Pipe, unread_output: TextIO) -> None:
    """When the reader of the answers goes away, the console ends without an error, and so does its output."""
    pipe.write(b"/count\n")
    async with asyncio.timeout(10):
        await Console(pipe.read_end, unread_output, terminal=False).run(router())
