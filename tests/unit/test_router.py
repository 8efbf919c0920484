from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import pytest

from bot.errors import BadArguments
from bot.router import Command, Message, Reply, Request, Router


class KnownError(Exception):
    """A class of errors whose text is meant for the user."""


async def echo(request: Request) -> AsyncGenerator[Reply, None]:
    yield Reply(f"{request.arguments!r} from {request.message.sender}")


async def count(request: Request) -> AsyncGenerator[Reply, None]:
    if not request.arguments.isdigit():
        raise BadArguments(f"{request.arguments!r} is not a number")
    for number in range(int(request.arguments)):
        yield Reply(f"{number} done", progress=True)
    yield Reply("all done")


async def hello(_: Request) -> AsyncGenerator[Reply, None]:
    yield Reply("hello")


async def fail(_: Request) -> AsyncGenerator[Reply, None]:
    yield Reply("working", progress=True)
    raise ValueError("password=hunter2")


async def fail_known(_: Request) -> AsyncGenerator[Reply, None]:
    if True:  # a generator needs a yield, which this one never comes to
        raise KnownError("cannot reach redis.example:6379")
    yield


def router() -> Router:
    return Router(
        [
            Command("echo", "says it again", echo, arguments="<text>"),
            Command("count", "counts", count, arguments="[n]"),
            Command("hello", "says hello", hello),
            Command("fail", "fails", fail),
            Command("known", "fails, and may say why", fail_known),
        ],
        told=(KnownError,),
    )


async def ask(text: str) -> list[Reply]:
    return [reply async for reply in router().answer(Message(text, sender="ada", chat="ops"))]


async def said(text: str) -> list[str]:
    return [reply.text for reply in await ask(text)]


async def test_command_gets_arguments_and_sender() -> None:
    """A command sees the text after its name, stripped, and who sent it."""
    assert await said("/echo  a  b ") == ["'a  b' from ada"]


@pytest.mark.parametrize("text", ["/echo@fleet_bot x", "/ECHO x", "  /echo x\n", "/echo\nx"])
async def test_command_name_is_found(text: str) -> None:
    """A name is found in any case, with a bot's name behind it, and when its arguments begin on a new line."""
    assert await said(text) == ["'x' from ada"]


async def test_progress_comes_before_the_result() -> None:
    """Replies come one by one, and those that are progress say so."""
    assert await ask("/count 2") == [
        Reply("0 done", progress=True),
        Reply("1 done", progress=True),
        Reply("all done"),
    ]


@pytest.mark.parametrize("text", ["/nope", "/nope with arguments", "/", "/ ", "//", "/nope\nsecond line"])
async def test_unknown_command_is_one_polite_line(text: str) -> None:
    """An unknown command is answered by one line that names /help."""
    (line,) = await said(text)
    assert line.startswith("Sorry, I do not know /")
    assert "/help" in line
    assert "\n" not in line


async def test_unknown_command_is_not_echoed_raw() -> None:
    """A long or unprintable name comes back short and printable."""
    (line,) = await said("/" + "\x1b[2J" + "x" * 10_000)
    assert line.isprintable()
    assert len(line) < 200


@pytest.mark.parametrize("text", ["hello", "help", "what is /status"])
async def test_other_text_gets_a_hint(text: str) -> None:
    """Text that is no command is answered by a hint."""
    assert await said(text) == ["I only understand commands: /help lists them."]


@pytest.mark.parametrize("text", ["/count", "/count many"])
async def test_bad_arguments_are_answered_by_the_usage(text: str) -> None:
    """Bad arguments are answered by what is wrong with them and the usage, in one line."""
    (line,) = await said(text)
    assert "is not a number" in line
    assert line.endswith("Usage: /count [n]")


async def test_superfluous_arguments_are_refused() -> None:
    """A command without arguments that is given some answers with its usage."""
    assert await said("/hello world") == ["/hello takes no arguments. Usage: /hello"]


async def test_failure_is_one_line_and_a_logged_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The user of a command that fails gets its class only, the log the traceback."""
    *_, line = await said("/fail")
    assert line == "/fail failed: ValueError, see the log"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
    assert vars(record)["command"] == "fail"


async def test_told_failure_has_its_text() -> None:
    """An error of a class that is meant for users is shown with its text."""
    assert await said("/known") == ["/known failed: cannot reach redis.example:6379"]


async def test_help_lists_all_commands() -> None:
    """/help shows the usage and the summary of each command, in aligned columns."""
    (reply,) = await ask("/help")
    assert reply.monospace
    lines = reply.text.splitlines()
    assert lines[0].split(maxsplit=1) == ["/help", "this list"]
    assert lines[1] == "/echo <text>  says it again"
    assert len(lines) == len(router().commands) == 6


async def test_two_commands_of_one_name_are_refused() -> None:
    """Registering a name twice is an error that names it."""
    with pytest.raises(ValueError, match="/help"):
        Router([Command("help", "another", hello)])


async def test_closing_an_answer_closes_the_command() -> None:
    """A transport that stops listening ends the command at once, its `finally` included."""
    closed = asyncio.Event()

    async def endless(_: Request) -> AsyncGenerator[Reply, None]:
        try:
            while True:
                yield Reply("on and on", progress=True)
        finally:
            closed.set()

    answer = Router([Command("endless", "goes on", endless)]).answer(Message("/endless", "ada", "ops"))
    assert (await anext(answer)).text == "on and on"
    await answer.aclose()
    assert closed.is_set()


async def test_cancelling_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A cancelled command is not answered and not logged as a failure."""
    started = asyncio.Event()

    async def wait(_: Request) -> AsyncGenerator[Reply, None]:
        started.set()
        await asyncio.Event().wait()
        yield Reply("never")

    async def listen() -> None:
        async for reply in Router([Command("wait", "waits", wait)]).answer(Message("/wait", "ada", "ops")):
            pytest.fail(f"answered {reply}")

    listening = asyncio.create_task(listen())
    await started.wait()
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    assert not caplog.records
