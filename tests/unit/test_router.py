from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import suppress

import pytest

from bot import execution
from bot.command import Command, Handler, Message, Reply, Request
from bot.errors import BadArguments
from bot.router import AT_ONCE, Router
from tests.waiting import until


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
            Command("echo", "says it again", echo, arguments="<text>", details="All of it."),
            Command("count", "counts", count, arguments="[n]"),
            Command("hello", "says hello", hello),
            Command("fail", "fails", fail),
            Command("known", "fails, and may say why", fail_known),
        ],
        told=lambda error: str(error) if isinstance(error, KnownError) else None,
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


@pytest.mark.parametrize(
    ("typed", "meant"), [("/ehco", "echo"), ("/hepl", "help"), ("/CUONT 3", "count"), ("/hell", "hello")]
)
async def test_unknown_command_names_the_nearest(typed: str, meant: str) -> None:
    """A misspelt command is answered by the command that was meant."""
    (line,) = await said(typed)
    assert line.endswith(f": did you mean /{meant}?")


async def test_failure_is_one_line_and_a_logged_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The user of a command that fails gets its class only, the log the traceback, both with the same id."""
    *_, line = await said("/fail")
    found = re.fullmatch(r"/fail failed: ValueError, see the log \[([0-9a-f]{8})\]", line)
    assert found is not None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
    assert f"[{found[1]}]" in record.getMessage()
    assert vars(record)["failure"] == found[1]
    assert vars(record)["command"] == "fail"


async def test_each_failure_has_an_id_of_its_own() -> None:
    """Two failures of one command are told apart."""
    assert (await said("/fail"))[-1] != (await said("/fail"))[-1]


async def test_told_failure_has_its_text() -> None:
    """An error that the user is told of is shown with what they are told."""
    (line,) = await said("/known")
    assert re.fullmatch(r"/known failed: cannot reach redis.example:6379 \[[0-9a-f]{8}\]", line)


async def test_help_lists_all_commands() -> None:
    """/help shows the usage and the summary of each command, in aligned columns."""
    (reply,) = await ask("/help")
    assert reply.monospace
    lines = reply.text.splitlines()
    assert lines[0] == "/help [command]  this list, or how one command is used"
    assert lines[1] == "/echo <text>     says it again"
    assert len(lines) == len(router().commands) == 6


@pytest.mark.parametrize("text", ["/help echo", "/help /echo", "/help ECHO"])
async def test_help_of_one_command(text: str) -> None:
    """/help NAME shows how that command is used, and what else there is to know of it."""
    assert await said(text) == ["/echo <text>: says it again\nAll of it."]


async def test_help_of_an_unknown_command() -> None:
    """/help of what is no command says so, and names the nearest."""
    assert await said("/help ehco") == ["Sorry, I do not know /ehco: did you mean /echo?"]


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


# Commands that take long


def single(name: str, run: Handler, deadline_s: float = 60.0) -> Router:
    return Router([Command(name, "is tested", run, deadline_s=deadline_s)])


@pytest.mark.slow
async def test_slow_command_shows_that_it_works() -> None:
    """A command that says nothing for a while shows progress within 2 s, at its start and after each reply, once."""

    async def slow(_: Request) -> AsyncGenerator[Reply, None]:
        await asyncio.sleep(2 * execution.PATIENCE_S + 0.5)
        yield Reply("first")
        await asyncio.sleep(execution.PATIENCE_S + 0.5)
        yield Reply("second")

    assert execution.PATIENCE_S < 2
    working = Reply("/slow is working …", progress=True)
    replies = [reply async for reply in single("slow", slow).answer(Message("/slow", "ada", "ops"))]
    assert replies == [working, Reply("first"), working, Reply("second")]


async def test_command_that_hangs_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    """At its deadline a command is ended: one line for the user; the log shows where it was."""
    closed = asyncio.Event()

    async def wait_for_nothing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def hang(_: Request) -> AsyncGenerator[Reply, None]:
        yield Reply("begun", progress=True)
        await wait_for_nothing()

    answer = single("hang", hang, deadline_s=0.2).answer(Message("/hang", "ada", "ops"))
    *_, last = [reply.text async for reply in answer]
    assert last.startswith("/hang failed: it took longer than 0.2 s and was ended [")
    assert closed.is_set()
    assert "wait_for_nothing" in caplog.text


@pytest.mark.slow
async def test_command_that_cannot_be_ended_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    """A command that swallows its cancellation is answered for all the same, and the log names it."""
    released = asyncio.Event()
    over = asyncio.Event()

    async def stubborn(_: Request) -> AsyncGenerator[Reply, None]:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()
        over.set()
        yield Reply("never heard")

    answer = single("stubborn", stubborn, deadline_s=0.2).answer(Message("/stubborn", "ada", "ops"))
    async with asyncio.timeout(30):
        texts = [reply.text async for reply in answer]
    assert len(texts) == 1
    assert "was ended" in texts[0]
    assert "/stubborn does not end though it was cancelled" in caplog.text
    released.set()
    await over.wait()


async def test_time_that_the_chat_takes_does_not_count() -> None:
    """A command is not ended because its chat takes long to show what it said."""

    async def talk(_: Request) -> AsyncGenerator[Reply, None]:
        for number in range(3):
            yield Reply(str(number))

    texts = []
    async for reply in single("talk", talk, deadline_s=0.5).answer(Message("/talk", "ada", "ops")):
        texts.append(reply.text)
        await asyncio.sleep(0.4)
    assert texts == ["0", "1", "2"]


async def test_many_at_once_from_one_chat() -> None:
    """A chat may run three commands at once; it is told so once, then there is silence until one has ended."""
    go_on = asyncio.Event()

    async def wait(_: Request) -> AsyncGenerator[Reply, None]:
        yield Reply("waiting", progress=True)
        await go_on.wait()
        yield Reply("waited")

    router = single("wait", wait)

    async def send(chat: str = "ops") -> list[str]:
        return [reply.text async for reply in router.answer(Message("/wait", "ada", chat)) if not reply.progress]

    running = [asyncio.create_task(send()) for _ in range(AT_ONCE)]
    await until(lambda: router._running["ops"] == AT_ONCE)
    assert await send() == ["3 commands of this chat are still running: wait until one has ended."]
    assert await send() == []
    elsewhere = asyncio.create_task(send("elsewhere"))
    go_on.set()
    assert await asyncio.gather(*running, elsewhere) == [["waited"]] * (AT_ONCE + 1)
    assert await send() == ["waited"]
    assert not router._running
