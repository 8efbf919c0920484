"""Alerts of real bots on telegram, with a Bot API server of the tests' own."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from config import Settings
from db.server import connect
from fleet.jobs import EXERCISE_POOL, ExercisePool, enqueue
from fleet.queue import open_queue
from fleet.registry import HEARTBEAT_S, LIVE_S
from local import LocalServers, Tether
from tests.bot_api import OPERATOR, TOKEN, FakeBotApi, open_bot_api
from tests.conftest import Environ
from tests.processes import Spawned, Spawner
from tests.redis_server import RedisServer, open_redis_server
from tests.secrecy import Secrecy
from tests.waiting import until

PATIENT_S = 120.0  # the machine may be busy


@pytest.fixture
async def api(secrecy: Secrecy) -> AsyncIterator[FakeBotApi]:
    secrecy.secrets.add(TOKEN.partition(":")[2])
    async with open_bot_api() as opened:
        yield opened


@pytest.fixture
def telegram(environ: Environ, api: FakeBotApi) -> Environ:
    """An environment for a bot on telegram."""
    return environ | {"BOT_TOKEN": TOKEN, "BOT_API_URL": api.url, "BOT_ADMINS": str(OPERATOR), "DB_POOL_MIN": "1"}


async def printed(process: Spawned, text: str) -> None:
    await asyncio.to_thread(process.wait_for, text, PATIENT_S)


async def heard(api: FakeBotApi, text: str) -> None:
    """Wait until the operator is told something."""
    await until(lambda: any(text in each for each in api.texts()), timeout_s=PATIENT_S, what=f"{text!r} in the chat")


def alerts(api: FakeBotApi) -> Counter[str]:
    """How often the operator got each message about an alert, without its numbers."""
    texts = [text for text in api.texts() if text.startswith(("Alert at", "Over at"))]
    return Counter(re.sub(r"\d+", "N", text.partition(" UTC: ")[0] + text.partition(" UTC:")[2]) for text in texts)


async def stored(environ: Environ) -> list[tuple[str, str, bool]]:
    """All alerts: kind, subject, whether it is still open."""
    async with connect(Settings.load("poolctl", environ)) as connection:
        rows = await connection.fetch("SELECT kind, subject, closed IS NULL FROM fleet_alert ORDER BY id")
    return [tuple(row) for row in rows]


async def subscribed(api: FakeBotApi) -> None:
    api.write("/subscribe")
    await heard(api, "gets alerts from now on")


@pytest.mark.slow
async def test_two_bots_and_one_restarted(spawn: Spawner, telegram: Environ, api: FakeBotApi) -> None:
    """Two bots, one killed and another started: each alert is opened once, closed once, and told once."""
    first = spawn("tests.alert_bot", environ=telegram)
    await printed(first, "polls telegram")
    second = spawn("tests.alert_bot", environ=telegram)
    await printed(second, "stands by")
    await subscribed(api)
    async with open_queue(Settings.load("bot", telegram)) as queue:
        await enqueue(queue, EXERCISE_POOL, ExercisePool())  # there is no worker
        await heard(api, "jobs are due")
        first.send(signal.SIGKILL)
        third = spawn("tests.alert_bot", environ=telegram)
        await heard(api, f":{first.pid} is silent")
        await printed(third, " is up")
        await queue.delete(queue.default_queue_name)
        await heard(api, "0 jobs are due")
    second.send(signal.SIGTERM)
    assert await asyncio.to_thread(second.wait) == 0
    third.send(signal.SIGTERM)
    assert await asyncio.to_thread(third.wait) == 0
    assert [(kind, is_open) for kind, _, is_open in await stored(telegram)] == [
        ("old queue", False),
        ("missing process", True),
    ]
    assert sorted(alerts(api).values()) == [1, 1, 1], alerts(api)
    opened = [bot.output().count("alert opened: old queue") for bot in (first, second, third)]
    assert sum(opened) == 1
    assert "Traceback" not in second.output() + third.output()


@pytest.mark.slow
async def test_killed_between_storing_and_sending(spawn: Spawner, telegram: Environ, api: FakeBotApi) -> None:
    """What a bot stored and nobody has said, the next bot says: here the first one has no chat at all."""
    bot = spawn("bot", environ=telegram)
    await printed(bot, "polls telegram")
    await subscribed(api)
    bot.send(signal.SIGTERM)
    assert await asyncio.to_thread(bot.wait) == 0
    mute = spawn("tests.alert_bot", environ=telegram | {"BOT_TRANSPORT": "log"})
    async with open_queue(Settings.load("bot", telegram)) as queue:
        await enqueue(queue, EXERCISE_POOL, ExercisePool())
        await printed(mute, "alert opened: old queue")
        mute.send(signal.SIGKILL)
        spawn("bot", environ=telegram)
        await heard(api, "jobs are due")
    assert sum(alerts(api).values()) == 1


@pytest.mark.slow
async def test_worker_that_comes_back(spawn: Spawner, telegram: Environ, api: FakeBotApi) -> None:
    """A worker that is frozen is missing; when it goes on, that is over. One that ends politely is no alert."""
    bot = spawn("tests.alert_bot", environ=telegram)
    worker = spawn("worker", environ=telegram)
    polite = spawn("worker", environ=telegram)
    await printed(bot, "polls telegram")
    await printed(worker, " is up")
    await printed(polite, " is up")
    await subscribed(api)
    polite.send(signal.SIGTERM)
    assert await asyncio.to_thread(polite.wait, PATIENT_S) == 0
    worker.send(signal.SIGSTOP)
    await heard(api, f":{worker.pid} is silent")
    worker.send(signal.SIGCONT)
    await heard(api, f":{worker.pid} is alive")
    missing = [(subject, is_open) for kind, subject, is_open in await stored(telegram) if kind == "missing process"]
    ((subject, is_open),) = missing
    assert subject.endswith(f":{worker.pid}")
    assert not is_open
    told = [text for text in api.texts() if f":{worker.pid} is " in text]
    assert [text.split()[0] for text in told] == ["Alert", "Over"]


@pytest.fixture
def redis_server(servers: LocalServers, tmp_path: Path, tether: Tether) -> Iterator[RedisServer]:
    with open_redis_server(servers.redis.binary.path, tmp_path / "redis", tether) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_outage_of_redis(spawn: Spawner, environ: Environ, redis_server: RedisServer, how: str) -> None:
    """After Redis was away for longer than a process lives without a heartbeat, only who is dead is missing."""
    environ |= redis_server.environ | {"REDIS_SOCKET_TIMEOUT": "2", "DB_POOL_MIN": "1"}
    bots = [spawn("tests.alert_bot", environ=environ) for _ in range(2)]
    workers = [spawn("worker", environ=environ) for _ in range(3)]
    for process in (*bots, *workers):
        await printed(process, " is up")
    workers[0].send(signal.SIGKILL)  # when that is told, Redis is believed
    await until(lambda: any(f":{workers[0].pid} is silent" in bot.output() for bot in bots), timeout_s=PATIENT_S)
    redis_server.stop() if how == "stopped" else redis_server.freeze()
    workers[1].send(signal.SIGKILL)
    away = "cannot look at processes and jobs for alerts"
    await asyncio.gather(*(printed(bot, away) for bot in bots))
    await asyncio.sleep(LIVE_S + HEARTBEAT_S)  # so that all seem silent
    redis_server.start() if how == "stopped" else redis_server.thaw()
    await until(lambda: any(f":{workers[1].pid} is silent" in bot.output() for bot in bots), timeout_s=PATIENT_S)
    dead = {workers[0].pid, workers[1].pid}
    missing = [(subject, is_open) for kind, subject, is_open in await stored(environ) if kind == "missing process"]
    assert sorted(int(subject.rpartition(":")[2]) for subject, _ in missing) == sorted(dead), missing
    assert all(is_open for _, is_open in missing)
