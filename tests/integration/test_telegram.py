from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

import pytest

from bot.command import Command, Reply, Request
from bot.delivery import TRIES
from bot.errors import TokenRefused, TransportRefused
from bot.progress import EVERY_S
from bot.router import AT_ONCE, Router
from bot.subscribers import subscribe, subscribers
from bot.telegram import Telegram
from config import Settings
from db.models import Outgoing
from fleet import say
from fleet.process import Process, open_process
from tests.bot_api import BOT_ID, OPERATOR, STRANGER, TOKEN, FakeBotApi, open_bot_api
from tests.proxy import open_proxy
from tests.secrecy import Secrecy
from tests.waiting import until

pytestmark = pytest.mark.slow  # real waits of a real client

PATIENT_S = 60.0  # the machine may be busy


class Commands:
    """Commands that a test steers."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.go_on = asyncio.Event()

    async def echo(self, request: Request) -> AsyncGenerator[Reply, None]:
        self.runs.append(request.arguments)
        yield Reply(request.arguments)

    async def rows(self, request: Request) -> AsyncGenerator[Reply, None]:
        lines = [f"<row {number}> & more" for number in range(int(request.arguments))]
        yield Reply("\n".join(lines), monospace=True)

    async def count(self, request: Request) -> AsyncGenerator[Reply, None]:
        for number in range(int(request.arguments)):
            yield Reply(f"{number} done", progress=True)
            await asyncio.sleep(0.01)
        yield Reply("all done")

    async def wait(self, request: Request) -> AsyncGenerator[Reply, None]:
        self.runs.append(request.arguments)
        yield Reply("waiting", progress=True)
        await self.go_on.wait()
        yield Reply(f"waited {request.arguments}")

    def router(self) -> Router:
        return Router(
            [
                Command("echo", "says it again", self.echo, arguments="<text>"),
                Command("rows", "many lines", self.rows, arguments="<n>"),
                Command("count", "counts", self.count, arguments="<n>"),
                Command("wait", "waits", self.wait, arguments="[x]"),
            ]
        )


@pytest.fixture
async def api(secrecy: Secrecy) -> AsyncIterator[FakeBotApi]:
    secrecy.secrets.add(TOKEN.partition(":")[2])
    async with open_bot_api() as opened:
        yield opened


@pytest.fixture
async def process(environ: dict[str, str]) -> AsyncIterator[Process]:
    async with open_process(Settings.load("bot", environ | {"DB_POOL_MIN": "1"})) as opened:
        yield opened


@pytest.fixture
async def commands() -> Commands:
    return Commands()


def telegram(api: FakeBotApi, *, admins: str = str(OPERATOR), token: str = TOKEN) -> Telegram:
    variables = {"BOT_TOKEN": token, "BOT_API_URL": api.url, "BOT_ADMINS": admins}
    return Telegram(Settings.load("bot", variables).bot)


class Running:
    """A telegram bot in this process."""

    def __init__(self, api: FakeBotApi, process: Process, commands: Commands, admins: str = str(OPERATOR)) -> None:
        self.task = asyncio.create_task(telegram(api, admins=admins).run(commands.router(), process))

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def bot(api: FakeBotApi, process: Process, commands: Commands) -> AsyncIterator[Running]:
    running = Running(api, process, commands)
    yield running
    await running.stop()


async def shows(api: FakeBotApi, *texts: str, chat: int = OPERATOR) -> None:
    """Wait until the chat shows these messages and no others."""
    await until(lambda: api.texts(chat) == list(texts), timeout_s=PATIENT_S, what=f"{texts}, not {api.texts(chat)}")


async def test_answers(api: FakeBotApi, bot: Running) -> None:
    """A command is answered in its chat; what has a meaning in HTML arrives as it was."""
    api.write("/echo 1 < 2 & <b>")
    await shows(api, "1 < 2 & <b>")


async def test_commands_are_registered(api: FakeBotApi, bot: Running) -> None:
    """Telegram's clients are told the commands with their summaries."""
    await until(lambda: api.commands, timeout_s=PATIENT_S)
    assert [command["command"] for command in api.commands] == ["help", "echo", "rows", "count", "wait"]
    assert api.commands[1]["description"] == "says it again"


async def test_commands_that_cannot_be_registered(
    api: FakeBotApi, process: Process, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    """Where telegram refuses the list of commands, that is logged, and the commands are answered all the same."""
    api.fail("setMyCommands", status=400)
    bot = Running(api, process, commands)
    api.write("/echo a")
    await shows(api, "a")
    await until(lambda: "could not be registered" in caplog.text)
    await bot.stop()


async def test_start_is_help(api: FakeBotApi, bot: Running) -> None:
    """What telegram sends when a chat is opened is answered by the list of commands."""
    api.write("/start")
    await until(lambda: api.texts() and "/echo <text>" in api.texts()[0], timeout_s=PATIENT_S)


async def test_photo(api: FakeBotApi, bot: Running) -> None:
    """A message without text is answered by a hint."""
    api.write(None)
    await shows(api, "I only understand commands: /help lists them.")


async def test_long_table(api: FakeBotApi, bot: Running) -> None:
    """A table that is too long for one message arrives as several, in order, each in monospace."""
    api.write("/rows 500")
    await until(lambda: "<row 499> & more" in "".join(api.texts()), timeout_s=PATIENT_S)
    assert len(api.texts()) > 1
    assert "\n".join(api.texts()).splitlines() == [f"<row {number}> & more" for number in range(500)]
    assert all(sent.texts[-1].startswith("<pre>") for sent in api.sent)


async def test_progress_is_one_message(api: FakeBotApi, bot: Running) -> None:
    """Progress, however fast, is edits of one message, at least EVERY_S apart; the result takes its place."""
    api.write("/count 500")
    await shows(api, "all done")
    edits = api.called("editMessageText")
    moments = [call.at_s for call in api.called("sendMessage") + edits]
    assert api.sent[0].texts[0] == "0 done"
    assert 1 <= len(edits) < 50
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments[:-1])]
    assert all(pause > EVERY_S - 0.1 for pause in pauses)
    assert EVERY_S * 20 >= 60  # telegram allows a group 20 messages a minute


async def test_slow_command_shows_that_it_works(api: FakeBotApi, bot: Running, commands: Commands) -> None:
    """While a command runs, its chat shows progress, and other commands of the chat are answered."""
    api.write("/wait x")
    await shows(api, "waiting")
    api.write("/echo meanwhile")
    await shows(api, "waiting", "meanwhile")
    commands.go_on.set()
    await shows(api, "waited x", "meanwhile")


async def test_many_at_once(api: FakeBotApi, bot: Running, commands: Commands) -> None:
    """A chat that sends a hundred slow commands gets three of them run, and one line; then it may go on."""
    for number in range(100):
        api.write(f"/wait {number}")
    api.write("/echo unheard")
    await until(lambda: not api.updates, timeout_s=PATIENT_S, what="all updates to be fetched")
    await until(lambda: len(api.texts()) == AT_ONCE + 1, timeout_s=PATIENT_S)
    assert sorted(commands.runs) == ["0", "1", "2"]
    assert any("3 commands of this chat are still running" in text for text in api.texts())
    commands.go_on.set()
    await until(lambda: "waited 2" in api.texts(), timeout_s=PATIENT_S)
    api.write("/echo heard")
    await until(lambda: "heard" in api.texts(), timeout_s=PATIENT_S)
    assert "unheard" not in api.texts()


# Who may


async def test_stranger(api: FakeBotApi, bot: Running, caplog: pytest.LogCaptureFixture) -> None:
    """A stranger gets one polite line with their id, however often they write, and is logged once; nothing is run."""
    for _ in range(3):
        api.write("/echo secret", sender=STRANGER)
    api.write("/echo a")
    await shows(api, "a")
    await shows(api, f"Sorry, I only answer the operators of this fleet. Your user id is {STRANGER}.", chat=STRANGER)
    assert [str(STRANGER) in record.getMessage() for record in caplog.records].count(True) == 1


async def test_no_admins(
    api: FakeBotApi, process: Process, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    """With BOT_ADMINS empty nobody is answered on telegram, and the log says so at start."""
    bot = Running(api, process, commands, admins="")
    api.write("/echo a")
    await until(lambda: len(api.texts()) == 1, timeout_s=PATIENT_S)
    assert "I only answer the operators" in api.texts()[0]
    assert not commands.runs
    assert "BOT_ADMINS is empty" in caplog.text
    await bot.stop()


async def test_group(api: FakeBotApi, bot: Running, commands: Commands) -> None:
    """In a group only commands to this bot count; talk, other bots' commands and strangers' talk are passed over."""
    group = -100500
    for text in ("hello", "/echo@other_bot a", "/echo@fleet_test_bot b", "/echo c"):
        api.write(text, chat=group, kind="supergroup")
    api.write("hello", chat=group, kind="supergroup", sender=STRANGER)
    await until(lambda: len(api.texts(group)) == 2, timeout_s=PATIENT_S)
    assert sorted(api.texts(group)) == ["b", "c"]
    assert commands.runs == ["b", "c"]


# Faults


@pytest.mark.parametrize("method", ["sendMessage", "getUpdates"])
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 502, "page": True},
        {"status": 0},
        {"status": 429, "retry_after_s": 1},
        {"status": 307, "times": 22},  # a client follows ten of them
        {"delay_s": 2.0},
    ],
    ids=["500", "a page of a proxy", "cut", "429", "redirects", "slow"],
)
async def test_fault(
    api: FakeBotApi,
    bot: Running,
    commands: Commands,
    method: str,
    fault: dict[str, float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After an error of any kind, twice, a command is answered, once, and nothing shows the token."""
    caplog.set_level(logging.DEBUG)
    api.fail(method, **{"times": 2, **fault})
    api.write("/echo a")
    await shows(api, "a")
    assert commands.runs == ["a"]
    assert api.violations == []
    assert TOKEN.partition(":")[2][:3] not in caplog.text  # nor its beginning, where a text is cut


async def test_network_loss(
    api: FakeBotApi, process: Process, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    """While telegram cannot be reached the bot backs off; afterwards it answers what was written meanwhile."""
    caplog.set_level(logging.INFO)
    host, port = api.url.removeprefix("http://").split(":")
    async with open_proxy(host, port) as proxy:
        settings = {"BOT_TOKEN": TOKEN, "BOT_API_URL": f"http://127.0.0.1:{proxy.listens_on}"}
        transport = Telegram(Settings.load("bot", settings | {"BOT_ADMINS": str(OPERATOR)}).bot)
        task = asyncio.create_task(transport.run(commands.router(), process))
        api.write("/echo before")
        await shows(api, "before")
        await proxy.stop()
        api.write("/echo meanwhile")
        await until(lambda: "failed, trying again" in caplog.text, timeout_s=PATIENT_S)
        await proxy.start()
        await shows(api, "before", "meanwhile")
        await until(lambda: "answers again" in caplog.text, timeout_s=PATIENT_S)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_server_that_is_away_at_start(
    api: FakeBotApi, process: Process, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    """A bot that starts while telegram is away waits for it, and says so once."""
    api.fail("getMe", times=3, status=503)
    api.write("/echo a")
    bot = Running(api, process, commands)
    await shows(api, "a")
    assert caplog.text.count("failed, trying again") == 1
    await bot.stop()


async def test_flood_during_progress(api: FakeBotApi, bot: Running, commands: Commands) -> None:
    """When progress hits the flood limit, nothing is sent to that chat before the time is over; then the result is."""
    api.write("/wait x")
    await shows(api, "waiting")
    api.fail("sendMessage", status=429, retry_after_s=3)
    api.write("/echo a")
    await until(lambda: any(call.status == 429 for call in api.calls), timeout_s=PATIENT_S)
    commands.go_on.set()
    await until(lambda: sorted(api.texts()) == ["a", "waited x"], timeout_s=PATIENT_S)
    assert api.violations == []


async def test_answer_that_was_lost_is_sent_again(api: FakeBotApi, bot: Running, commands: Commands) -> None:
    """A message that arrived while its confirmation was lost is sent twice rather than not at all; it runs once."""
    api.fail("sendMessage", after=True)
    api.write("/echo a")
    await shows(api, "a", "a")
    assert commands.runs == ["a"]


async def test_edit_of_a_message_that_is_gone(api: FakeBotApi, bot: Running, commands: Commands) -> None:
    """A result whose progress message was deleted comes as a new message."""
    api.write("/wait x")
    await shows(api, "waiting")
    api.sent.clear()
    commands.go_on.set()
    await shows(api, "waited x")


async def test_chat_that_is_none(api: FakeBotApi, bot: Running, caplog: pytest.LogCaptureFixture) -> None:
    """What is said in a chat that telegram cannot have is left out with a line in the log, not tried for ever."""

    await say("telegram:x", "to nobody")
    await say(f"telegram:{OPERATOR}", "hello")
    await until(said, timeout_s=PATIENT_S, what="both are gone")
    assert api.texts() == ["hello"]
    assert "left out: 'x' is no chat of telegram" in caplog.text


UPGRADED = "Bad Request: group chat was upgraded to a supergroup chat"


async def said() -> bool:
    return await Outgoing.all().count() == 0


async def test_group_that_is_upgraded(api: FakeBotApi, bot: Running) -> None:
    """What is to be said in a group that was upgraded is said in the one that it is now, and so are its alerts."""
    await subscribe("telegram:-55")
    api.refuse(-55, 400, UPGRADED, migrate_to_chat_id=-100777)
    await say("telegram:-55", "hello")
    await until(said, timeout_s=PATIENT_S)
    assert api.texts(-100777) == ["hello"]
    assert await subscribers() == ["telegram:-100777"]


async def test_group_that_is_upgraded_to_a_subscriber(api: FakeBotApi, bot: Running) -> None:
    """A group of which both the old and the new number get alerts gets them once."""
    for chat in ("telegram:-55", "telegram:-100777"):
        await subscribe(chat)
    api.refuse(-55, 400, UPGRADED, migrate_to_chat_id=-100777)
    await say("telegram:-55", "hello")
    await until(said, timeout_s=PATIENT_S)
    assert await subscribers() == ["telegram:-100777"]


async def test_group_that_is_upgraded_to_itself(
    api: FakeBotApi, bot: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that sends a message round in circles does not keep the bot busy."""
    api.refuse(-55, 400, UPGRADED, migrate_to_chat_id=-55)
    await say("telegram:-55", "hello")
    await until(said, timeout_s=PATIENT_S)
    assert len(api.called("sendMessage")) == 2
    assert "chat telegram:-55 does not take what was to be said, left out" in caplog.text


async def test_answer_in_a_group_that_is_upgraded(api: FakeBotApi, bot: Running, commands: Commands) -> None:
    """A command that was sent in a group is answered in the one that it is now."""
    api.write("/wait x", chat=-55, kind="group")
    await shows(api, "waiting", chat=-55)
    api.refuse(-55, 400, UPGRADED, migrate_to_chat_id=-100777)
    commands.go_on.set()
    await shows(api, "waited x", chat=-100777)


@pytest.mark.parametrize(
    ("status", "description", "stays"),
    [
        (403, "Forbidden: bot was blocked by the user", False),
        (403, "Forbidden: bot was kicked from the supergroup chat", False),
        (403, "Forbidden: user is deactivated", False),
        (400, "Bad Request: chat not found", False),
        (400, "Bad Request: group chat was deactivated", False),
        (400, "Bad Request: not enough rights to send text messages to the chat", True),
        (400, "Bad Request: message is too long", True),
    ],
)
async def test_what_a_chat_refuses(
    api: FakeBotApi, bot: Running, caplog: pytest.LogCaptureFixture, status: int, description: str, stays: bool
) -> None:
    """A chat that is gone is unsubscribed; one that refuses a message stays, and hears the next one."""
    await subscribe("telegram:-55")
    api.refuse(-55, status, description)
    await say("telegram:-55", "refused")
    await until(said, timeout_s=PATIENT_S)
    api.refusals.clear()
    await say("telegram:-55", "next")
    await until(said, timeout_s=PATIENT_S)
    assert api.texts(-55) == ["next"]
    assert f"chat telegram:-55 does not take what was to be said, left out: {description}" in caplog.text
    assert await subscribers() == (["telegram:-55"] if stays else [])
    assert ("chat telegram:-55 gets no alerts any more" in caplog.text) is not stays


@pytest.mark.parametrize("status", [404, 413, 418])
async def test_unclear_answer(api: FakeBotApi, bot: Running, status: int) -> None:
    """What is answered by a status that says nothing of chat or message is tried again, and the chat stays."""
    await subscribe("telegram:-55")
    api.fail("sendMessage", status=status, times=2)
    await say("telegram:-55", "hello")
    await until(said, timeout_s=PATIENT_S)
    assert api.texts(-55) == ["hello"]
    assert await subscribers() == ["telegram:-55"]


async def test_unclear_answer_for_ever(api: FakeBotApi, bot: Running, caplog: pytest.LogCaptureFixture) -> None:
    """What is never answered clearly is left out after about a minute, and the chat stays."""
    await subscribe("telegram:-55")
    api.refuse(-55, 404, "Not Found")
    await say("telegram:-55", "hello")
    await until(said, timeout_s=3 * PATIENT_S)
    assert len(api.called("sendMessage")) == TRIES
    assert "chat telegram:-55 does not take what was to be said, left out" in caplog.text
    assert await subscribers() == ["telegram:-55"]


async def test_many_chats_in_a_flood(api: FakeBotApi, bot: Running) -> None:
    """While many chats wait for their flood limit, another hears its own at once."""
    for chat in range(-330, -300):
        api.refuse(chat, 429, "Too Many Requests: retry after 300", retry_after=300)
        await Outgoing.bulk_create([Outgoing(chat=f"telegram:{chat}", text=str(number)) for number in range(5)])
    await until(lambda: len(api.called("sendMessage")) == 30, timeout_s=PATIENT_S)
    await say(f"telegram:{OPERATOR}", "hello")
    await shows(api, "hello")
    assert len(api.called("sendMessage")) == 31


async def test_long_flood(api: FakeBotApi, bot: Running, commands: Commands, caplog: pytest.LogCaptureFixture) -> None:
    """A flood limit of an hour is logged once; answers are given up at once, and commands run on."""
    api.fail("sendMessage", status=429, retry_after_s=3600)
    api.write("/wait x")
    await until(lambda: f"chat {OPERATOR}: " in caplog.text, timeout_s=PATIENT_S, what="the limit is told")
    commands.go_on.set()
    for number in range(2 * AT_ONCE):
        await until(lambda number=number: len(commands.runs) == number + 1, timeout_s=PATIENT_S)
        api.write(f"/echo {number}")
    await until(lambda: caplog.text.count("an answer was not delivered") == 2 * AT_ONCE + 1, timeout_s=PATIENT_S)
    assert sum(f"chat {OPERATOR}: " in record.getMessage() for record in caplog.records) == 1
    assert "asks to wait for 3600 s" in caplog.text
    assert api.violations == []


async def test_chat_that_refuses(api: FakeBotApi, bot: Running, caplog: pytest.LogCaptureFixture) -> None:
    """A chat that blocks the bot costs one line in the log, and others are answered."""
    api.fail("sendMessage", status=403)
    api.write("/echo a")
    await until(lambda: "was not delivered" in caplog.text, timeout_s=PATIENT_S)
    api.write("/echo b")
    await shows(api, "b")


async def test_update_that_cannot_be_read(
    api: FakeBotApi, process: Process, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    """An update that is not as documented is passed over with a line in the log; those around it are handled."""
    api.write("/echo a")
    number = api.write_unreadable()
    api.write("/echo b")
    bot = Running(api, process, commands)
    await until(lambda: sorted(api.texts()) == ["a", "b"], timeout_s=PATIENT_S)
    assert f"message {number} is passed over" in caplog.text
    await bot.stop()


# Once


async def test_updates_delivered_twice(api: FakeBotApi, bot: Running, commands: Commands) -> None:
    """Updates that come twice in a batch, and again in later ones, are handled once."""
    api.again = 4
    api.write("/echo a")
    api.write("/echo b")
    await until(lambda: api.again == 0, timeout_s=PATIENT_S)
    api.write("/echo c")
    await until(lambda: "c" in api.texts(), timeout_s=PATIENT_S)
    assert sorted(commands.runs) == ["a", "b", "c"]


async def test_updates_delivered_again_after_a_restart(
    api: FakeBotApi, process: Process, commands: Commands, bot: Running
) -> None:
    """A bot that starts anew does not handle what the one before it handled, though it is delivered again."""
    api.write("/echo a")
    await shows(api, "a")
    await bot.stop()
    api.again = 2
    successor = Running(api, process, commands)
    api.write("/echo b")
    await until(lambda: "b" in api.texts(), timeout_s=PATIENT_S)
    await until(lambda: api.again == 0, timeout_s=PATIENT_S)
    assert commands.runs == ["a", "b"]
    await successor.stop()


async def test_stop_tells_who_waits(api: FakeBotApi, commands: Commands, bot: Running) -> None:
    """When the bot ends, a chat whose command still runs is told so, in place of its progress."""
    api.write("/wait x")
    await shows(api, "waiting")
    await bot.stop()
    await shows(api, "The bot was ended meanwhile: send this again.")


# Settings


async def test_wrong_token(api: FakeBotApi, process: Process, commands: Commands) -> None:
    """A token that the server does not accept is one line without the token, exit code 2."""
    wrong = "777:verywrongtokenofnobody"
    with pytest.raises(TokenRefused) as caught:
        await telegram(api, token=wrong).run(commands.router(), process)
    assert "does not accept BOT_TOKEN" in str(caught.value)
    assert "verywrong" not in repr(caught.value)
    assert caught.value.__context__ is None
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"BOT_TOKEN": "noToken"}, "BOT_TOKEN is not a telegram bot's token"),
        ({"BOT_TOKEN": "12: noToken"}, "BOT_TOKEN is not a telegram bot's token"),
        ({}, "needs BOT_TOKEN"),
        ({"BOT_TOKEN": TOKEN, "BOT_ADMINS": "1, @ada"}, "BOT_ADMINS has @ada, which is not a telegram user id"),
        ({"BOT_TOKEN": TOKEN, "BOT_API_URL": "localhost:8081"}, "BOT_API_URL=localhost:8081 is not the URL"),
        ({"BOT_TOKEN": TOKEN, "BOT_API_URL": "http://u:noToken@h:x"}, "is not the URL"),
    ],
)
def test_settings_that_cannot_be(variables: dict[str, str], line: str) -> None:
    """Settings that cannot work are refused before anything is connected, without a secret."""
    with pytest.raises(TransportRefused, match="BOT_") as caught:
        Telegram(Settings.load("bot", variables).bot)
    assert line in str(caught.value)
    assert "noToken" not in str(caught.value)
    assert caught.value.exit_code == 2


async def test_bots_of_other_tokens_do_not_wait_for_each_other(process: Process, api: FakeBotApi, bot: Running) -> None:
    """The lease is the telegram bot's own: its key has that bot's number."""
    api.write("/echo a")
    await shows(api, "a")
    assert await process.queue.exists(f"bot:telegram:{BOT_ID}")
