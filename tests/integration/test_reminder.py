"""The example app's parts, on a real database and a real queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import pytest
from arq.constants import job_key_prefix
from redis.exceptions import RedisError
from tortoise.exceptions import DoesNotExist

from bot import BadArguments, Message, Reply, Request
from config import Settings
from db import migrate
from db.models import Outgoing
from examples.reminder.commands import MOST_SHOWN, commands, parse
from examples.reminder.jobs import Remind, remind
from examples.reminder.models import Reminder
from fleet import Process, open_process
from fleet.app import load_app
from tests.conftest import Environ
from tests.proxy import open_proxy


@pytest.fixture
async def reminding(environ: Environ) -> Environ:
    reminding = environ | {"APP": "examples.reminder", "REDIS_SOCKET_TIMEOUT": "1"}
    settings = Settings.load("poolctl", reminding)
    await migrate(settings, apps=load_app(settings).tables)
    return reminding


@pytest.fixture
async def process(reminding: Environ) -> AsyncIterator[Process]:
    async with open_process(Settings.load("bot", reminding)) as process:
        yield process


async def ask(process: Process, name: str, arguments: str = "", chat: str = "console") -> list[str]:
    """What one of the commands replies."""
    (command,) = [each for each in commands(process) if each.name == name]
    request = Request(arguments, Message(f"/{name} {arguments}", sender="me", chat=chat))
    async with aclosing(command.run(request)) as replies:
        return [reply.text async for reply in replies if isinstance(reply, Reply)]


@pytest.mark.parametrize(
    ("text", "delay", "said"),
    [
        ("10m tea", timedelta(minutes=10), "tea"),
        ("1s a\nb", timedelta(seconds=1), "a\nb"),
        ("2h  to go", timedelta(hours=2), "to go"),
        ("366d far", timedelta(days=366), "far"),
    ],
)
def test_a_delay_and_a_text(text: str, delay: timedelta, said: str) -> None:
    """A number and a unit, then anything."""
    assert parse(text) == (delay, said)


@pytest.mark.parametrize("text", ["", "tea", "10m", "10m ", "m tea", "-1m tea", "1.5h tea", "10 m tea", "367d far"])
def test_what_is_no_delay(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(BadArguments):
        parse(text)


async def test_remind_and_reminders(process: Process) -> None:
    """/remind stores a row and a deferred job; /reminders lists those of its own chat, the next one first."""
    await ask(process, "remind", "2h later")
    (answer,) = await ask(process, "remind", "1h soon")
    assert answer.endswith(" UTC: soon")
    (shown,) = await ask(process, "reminders")
    assert [line.split("  ")[1] for line in shown.splitlines()] == ["soon", "later"]
    assert await ask(process, "reminders", chat="telegram:1") == ["Nothing."]
    async for reminder in Reminder.all():
        assert await process.queue.exists(f"{job_key_prefix}remind:{reminder.id}") == 1


async def test_a_date_where_it_is_needed(process: Process) -> None:
    """A time of another day is told with its date."""
    (answer,) = await ask(process, "remind", "300d far")
    (reminder,) = await Reminder.all()
    assert answer == f"I will remind you at {reminder.due:%Y-%m-%d %H:%M:%S} UTC: far"


async def test_more_than_are_shown(process: Process) -> None:
    """/reminders says how many more there are than it lists."""
    due = datetime.now(UTC) + timedelta(hours=1)
    await Reminder.bulk_create(Reminder(chat="console", text="tea", due=due) for _ in range(MOST_SHOWN))
    (shown,) = await ask(process, "reminders")
    assert len(shown.splitlines()) == MOST_SHOWN
    await Reminder.bulk_create(Reminder(chat="console", text="tea", due=due) for _ in range(3))
    (shown,) = await ask(process, "reminders")
    assert (len(shown.splitlines()), shown.splitlines()[-1]) == (MOST_SHOWN + 1, "… and 3 more")


async def test_without_a_queue_there_is_no_reminder(reminding: Environ) -> None:
    """Where the job cannot be put on the queue nothing is stored: what /reminders lists will fire."""
    async with open_proxy(reminding["REDIS_HOST"], reminding["REDIS_PORT"]) as proxy:
        environ = reminding | {"REDIS_PORT": str(proxy.listens_on)}
        async with open_process(Settings.load("bot", environ)) as process:
            await proxy.stop()
            with pytest.raises(RedisError):
                await ask(process, "remind", "1h tea")
            assert await ask(process, "reminders") == ["Nothing."]


async def test_a_job_that_runs_twice(process: Process) -> None:
    """However often the job is run, and at once, it is said once."""
    reminder = await Reminder.create(chat="console", text="tea", due=datetime.now(UTC))
    fired = await asyncio.gather(*(remind(process, Remind(reminder.id)) for _ in range(5)))
    assert sorted(fired) == [False] * 4 + [True]
    assert await remind(process, Remind(reminder.id)) is False
    assert [said.text async for said in Outgoing.all()] == ["Reminder: tea"]
    assert await ask(process, "reminders") == ["Nothing."]


async def test_a_job_before_its_row(process: Process) -> None:
    """A job that is run before its row is committed fails with what its contract retries."""
    with pytest.raises(DoesNotExist):
        await remind(process, Remind(reminder=1))
