"""Bots as processes, on a Bot API server of the tests' own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from config import Settings
from db.models import Outgoing
from fleet import open_process, say
from fleet.outbox import LEASE_S
from tests.bot_api import OPERATOR, TOKEN, USERNAME, FakeBotApi, open_bot_api
from tests.conftest import Environ
from tests.processes import ROOT, Spawned, Spawner
from tests.proxy import open_proxy
from tests.secrecy import Secrecy
from tests.waiting import until

pytestmark = pytest.mark.slow  # real processes and real waits: minutes

SECRET = TOKEN.partition(":")[2]
PATIENT_S = 90.0  # the machine may be busy; how long a takeover takes at most is in tests/integration/test_bot_lease.py
TAKEN_OVER_S = 15.0


@pytest.fixture
async def api(secrecy: Secrecy) -> AsyncIterator[FakeBotApi]:
    secrecy.secrets.add(SECRET)
    async with open_bot_api() as opened:
        yield opened


@pytest.fixture
def telegram(environ: Environ, api: FakeBotApi) -> Environ:
    """An environment for a bot on telegram."""
    return environ | {
        "BOT_TOKEN": TOKEN,
        "BOT_API_URL": api.url,
        "BOT_ADMINS": str(OPERATOR),
        "DB_POOL_MIN": "1",
        "LOG_LEVEL": "DEBUG",
        "PYTHONASYNCIODEBUG": "1",
    }


async def printed(process: Spawned, text: str, within_s: float = PATIENT_S) -> str:
    return await asyncio.to_thread(process.wait_for, text, within_s)


async def answered(api: FakeBotApi, count: int) -> None:
    """Wait until the operator has so many answers."""
    await until(lambda: len(api.texts()) >= count, timeout_s=PATIENT_S, what=f"{count} answers")


async def test_one_bot(spawn: Spawner, telegram: Environ, api: FakeBotApi) -> None:
    """A real bot answers an operator's commands, and ends on SIGTERM with exit 0, having shown the token nowhere."""
    bot = spawn("bot", environ=telegram)
    await printed(bot, f"polls telegram as @{USERNAME}")
    api.write("/help")
    await answered(api, 1)
    assert "/exercise [n]" in api.texts()[0]
    assert {"help", "status", "connections", "settings", "subscribe"} <= {c["command"] for c in api.commands}
    api.write("/settings token")
    await answered(api, 2)
    assert api.texts()[1].split()[-3:] == ["BOT_TOKEN", "***", "environment"]
    api.write("/subscribe")
    await answered(api, 3)
    api.fail("getUpdates", status=502, page=True, times=2)
    api.fail("sendMessage", status=502, page=True, times=1)
    api.write("/status")
    await answered(api, 5)
    bot.send(signal.SIGTERM)
    assert await asyncio.to_thread(bot.wait) == 0
    assert SECRET not in bot.output()
    assert "Traceback" not in bot.output()


async def test_exercise(spawn: Spawner, telegram: Environ, api: FakeBotApi) -> None:
    """/exercise is one message, from its progress to its result."""
    worker = spawn("worker", environ=telegram)
    bot = spawn("bot", environ=telegram)
    await printed(worker, " is up")
    await printed(bot, "polls telegram")
    api.write("/exercise 5")
    await until(lambda: "jobs by worker" in "".join(api.texts()), timeout_s=PATIENT_S)
    assert len(api.sent) == 1
    assert api.sent[0].texts[0] == "0 of 5 done"


async def test_wrong_token(spawn: Spawner, telegram: Environ, secrecy: Secrecy) -> None:
    """A wrong token is one clear line without the token, exit 2; on a bot that would stand by, too."""
    secrecy.secrets.add("averywrongtoken")
    wrong = telegram | {"BOT_TOKEN": "99:averywrongtoken", "LOG_LEVEL": "WARNING", "LOG_FORMAT": "text"}
    bot = spawn("bot", environ=wrong)
    assert await asyncio.to_thread(bot.wait) == 2
    lines = [line for line in bot.output().splitlines() if "CRITICAL" in line]
    assert len(lines) == 1
    assert "does not accept BOT_TOKEN: correct it" in lines[0]
    assert "averywrongtoken" not in bot.output()
    assert "Traceback" not in bot.output()


async def test_token_that_is_revoked(spawn: Spawner, telegram: Environ, api: FakeBotApi) -> None:
    """A token that stops working while the bot runs ends it with exit 2 and one line."""
    bot = spawn("bot", environ=telegram)
    await printed(bot, "polls telegram")
    api.fail("getUpdates", status=401, times=9)
    api.write("/help")  # ends the poll that is under way
    assert await asyncio.to_thread(bot.wait) == 2
    assert "does not accept BOT_TOKEN" in bot.output()


@pytest.mark.parametrize("asked_for", [True, False], ids=["telegram", "auto"])
def test_missing_package(spawn: Spawner, environ: Environ, tmp_path: Path, asked_for: bool) -> None:
    """Without the extra, telegram is one line that says what to install, exit 2."""
    (tmp_path / "aiogram.py").write_text("raise ModuleNotFoundError(\"No module named 'aiogram'\", name='aiogram')\n")
    without = environ | {"BOT_TOKEN": TOKEN, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = spawn.run("bot", environ=without | ({"BOT_TRANSPORT": "telegram"} if asked_for else {}))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip install 'aiogram>=3" in line
    assert SECRET not in line


# Two bots

Blow = Callable[[Spawned], None]


class Pair:
    """Two bots of one fleet: `first` polls, `second` stands by; `first` reaches Redis through a proxy of its own."""

    def __init__(self, api: FakeBotApi, first: Spawned, second: Spawned) -> None:
        self.api = api
        self.first = first
        self.second = second

    async def ask(self, count: int) -> None:
        """Write one command more, so that there are `count` answers then."""
        self.api.write("/help connections")
        await answered(self.api, count)


@pytest.fixture
async def pair(spawn: Spawner, telegram: Environ, api: FakeBotApi) -> Pair:
    first = spawn("bot", environ=telegram)
    await printed(first, "polls telegram")
    second = spawn("bot", environ=telegram)
    await printed(second, "stands by: bot@")
    return Pair(api, first, second)


async def test_killed(pair: Pair) -> None:
    """When the bot that polls is killed, the other takes over in time, and each message is answered once."""
    await pair.ask(1)
    assert "polls telegram" not in pair.second.output()
    pair.first.send(signal.SIGKILL)
    await printed(pair.second, "polls telegram", TAKEN_OVER_S)
    await pair.ask(2)
    assert len(pair.api.texts()) == 2


async def test_frozen(pair: Pair) -> None:
    """When the bot that polls is frozen, the other takes over; the first stands by when it goes on."""
    await pair.ask(1)
    pair.first.send(signal.SIGSTOP)
    await printed(pair.second, "polls telegram", TAKEN_OVER_S)
    await pair.ask(2)
    pair.first.send(signal.SIGCONT)
    await printed(pair.first, "stops polling telegram")
    await printed(pair.first, "stands by: bot@")
    await pair.ask(3)
    pair.second.send(signal.SIGTERM)
    assert await asyncio.to_thread(pair.second.wait) == 0
    await pair.ask(4)
    assert len(pair.api.texts()) == 4


async def test_ended(pair: Pair) -> None:
    """On SIGTERM the bot that polls hands over at once: it frees the lease, and the next one polls."""
    await pair.ask(1)
    pair.first.send(signal.SIGTERM)
    assert await asyncio.to_thread(pair.first.wait) == 0
    await pair.ask(2)
    assert len(pair.api.texts()) == 2


async def test_ended_while_it_speaks(spawn: Spawner, telegram: Environ, api: FakeBotApi) -> None:
    """What a bot was to say when it got SIGTERM another says, in order, long before a lease would be over."""
    async with open_process(Settings.load("bot", telegram)):
        first = spawn("bot", environ=telegram)
        await printed(first, "polls telegram")
        api.fail("sendMessage", delay_s=PATIENT_S)
        for text in "abc":
            await say(f"telegram:{OPERATOR}", text)

        async def taken() -> bool:
            return await Outgoing.filter(taken=None).count() == 0

        await until(taken, what="it is under way")
        second = spawn("bot", environ=telegram)
        await printed(second, "stands by: bot@")
        first.send(signal.SIGTERM)
        assert await asyncio.to_thread(first.wait) == 0
        await until(lambda: api.texts() == ["a", "b", "c"], timeout_s=LEASE_S / 2, what="the other says it")


async def test_partitioned(spawn: Spawner, telegram: Environ, api: FakeBotApi) -> None:
    """A bot that Redis does not hear from stops polling by itself before another polls, and stands by afterwards."""
    async with open_proxy(telegram["REDIS_HOST"], telegram["REDIS_PORT"]) as proxy:
        first = spawn("bot", environ=telegram | {"REDIS_PORT": str(proxy.listens_on)})
        await printed(first, "polls telegram")
        second = spawn("bot", environ=telegram)
        await printed(second, "stands by: bot@")
        pair = Pair(api, first, second)
        await pair.ask(1)
        proxy.deaf = True
        proxy.freeze()
        await printed(first, "stops polling telegram: Redis does not answer")
        assert "polls telegram" not in second.output()
        await pair.ask(2)
        proxy.deaf = False
        proxy.cut()
        await printed(first, "stands by: bot@")
        await pair.ask(3)
        assert len(api.texts()) == 3
        assert not [call for call in api.called("getUpdates") if call.status == 409]


async def test_rolling_update(spawn: Spawner, telegram: Environ, api: FakeBotApi) -> None:
    """While bots replace each other one by one, every message is answered once."""
    bots = [spawn("bot", environ=telegram)]
    await printed(bots[0], "polls telegram")
    chats = iter(range(5001, 5011))
    for _ in range(2):
        bots.append(spawn("bot", environ=telegram))
        await printed(bots[-1], "stands by: bot@")
        for turn in range(5):
            api.write("/help status", chat=next(chats))
            if turn == 2:
                bots[-2].send(signal.SIGTERM)
            else:
                await until(lambda: not api.updates, timeout_s=PATIENT_S)
        assert await asyncio.to_thread(bots[-2].wait) == 0
    await until(lambda: len(api.sent) >= 10, timeout_s=PATIENT_S)
    assert sorted(message.chat for message in api.sent) == list(range(5001, 5011))
