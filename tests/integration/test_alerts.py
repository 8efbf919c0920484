"""Alerts on a real database and a real Redis: opened once, closed once, and nothing out of ignorance."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from tortoise.exceptions import OperationalError

from bot.alerts import MOST_UNSAID, STALE_S, Alerts
from bot.command import Reply
from bot.conditions import Finding, Kind, Thresholds
from bot.errors import BotApiRefused, ChatGone
from bot.subscribers import subscribe, subscribers
from bot.unasked import unasked
from bot.watch import Watch, watching
from config import Settings
from db.models import Alert, ConnectionSample, Outgoing
from db.server import connect
from fleet.jobs import EXERCISE_POOL, ExercisePool, abort, enqueue
from fleet.process import Process, open_process
from tests.conftest import Environ
from tests.proxy import open_proxy
from tests.waiting import until

# Alarmed at once, and Redis is believed at once.
AT_ONCE = Thresholds(crowded_s=0.0, idle_s=0.0, queue_s=0.0, trust_s=0.0)


@pytest.fixture
async def process(environ: Environ) -> AsyncIterator[Process]:
    async with open_process(Settings.load("bot", environ)) as opened:
        yield opened


async def now(process: Process) -> datetime:
    """By the database's clock."""
    _, rows = await process.database.client.execute_query("SELECT now() AS now")
    moment: datetime = rows[0]["now"]
    return moment


def finding(*, holds: bool, kind: Kind = Kind.MISSING_PROCESS, subject: str = "worker@a:1") -> Finding:
    return Finding(kind, subject, holds, 1.0, "worker@a:1 is silent" if holds else "worker@a:1 is alive")


async def told() -> list[tuple[str, str]]:
    """What is to be said: the chat, and whether it is an alert or its end."""
    return [(each.chat, each.text.partition(" ")[0]) for each in await Outgoing.all().order_by("id")]


async def states() -> list[tuple[str, str | None, bool]]:
    """All alerts in order: kind, subject, whether open."""
    return [(each.kind, each.subject, each.closed is None) for each in await Alert.all().order_by("id")]


# Stored once


async def test_opened_once_and_closed_once(process: Process, environ: Environ) -> None:
    """Of many that see the same, one opens the alert and one closes it; each subscriber is told of both once."""
    for chat in ("telegram:7", "console"):
        await subscribe(chat)
    async with open_process(Settings.load("bot", environ)) as second:
        bots = [Alerts(each.database.client) for each in (process, second)]
        for holds in (True, False):
            seen = await now(process)
            stored = await asyncio.gather(*(bot.store(finding(holds=holds), seen) for bot in bots for _ in range(5)))
            assert sorted(stored) == [False] * 9 + [True]
    assert await states() == [("missing process", "worker@a:1", False)]
    assert await told() == [("telegram:7", "Alert"), ("console", "Alert"), ("telegram:7", "Over"), ("console", "Over")]


async def test_subjects_and_kinds_are_apart(process: Process) -> None:
    """Alerts of other subjects or kinds do not stand in the way; what is over may come again."""
    alerts = Alerts(process.database.client)
    for each in (
        finding(holds=True),
        finding(holds=True, subject="worker@b:2"),
        finding(holds=True, kind=Kind.CONNECTIONS, subject=""),
        finding(holds=False),
        finding(holds=True),
    ):
        assert await alerts.store(each, await now(process))
    open_ones = await alerts.open_ones()
    assert set(open_ones) == {
        (Kind.MISSING_PROCESS, "worker@a:1"),
        (Kind.MISSING_PROCESS, "worker@b:2"),
        (Kind.CONNECTIONS, ""),
    }
    assert len(await states()) == 4


async def test_a_look_that_another_bot_has_overtaken(process: Process) -> None:
    """What was seen before another bot opened or closed the alert changes nothing any more."""
    alerts = Alerts(process.database.client)
    early = await now(process)
    assert await alerts.store(finding(holds=True), await now(process))
    assert not await alerts.store(finding(holds=False), early)
    early = await now(process)
    assert await alerts.store(finding(holds=False), await now(process))
    assert not await alerts.store(finding(holds=True), early)
    assert await states() == [("missing process", "worker@a:1", False)]


async def test_a_look_of_long_ago(process: Process) -> None:
    """A bot that was stopped between looking and storing changes nothing when it goes on."""
    alerts = Alerts(process.database.client)
    long_ago = await now(process) - timedelta(seconds=STALE_S)
    assert not await alerts.store(finding(holds=True), long_ago)
    assert await alerts.store(finding(holds=True), await now(process))
    await Alert.all().update(opened=long_ago - timedelta(minutes=1))
    assert not await alerts.store(finding(holds=False), long_ago)
    assert await states() == [("missing process", "worker@a:1", True)]


async def test_all_or_nothing(process: Process) -> None:
    """An alert whose lines cannot be stored is not opened, so it is not lost."""
    await subscribe("telegram:7")
    client = process.database.client
    await client.execute_script("ALTER TABLE fleet_outgoing ADD CONSTRAINT none CHECK (text = '')")
    with pytest.raises(OperationalError):
        await Alerts(client).store(finding(holds=True), await now(process))
    assert await states() == []
    await client.execute_script("ALTER TABLE fleet_outgoing DROP CONSTRAINT none")
    assert await Alerts(client).store(finding(holds=True), await now(process))
    assert await told() == [("telegram:7", "Alert")]


async def test_chat_that_nobody_reaches(process: Process) -> None:
    """Of a chat that no bot reaches a bounded number of lines is kept; others get theirs."""
    await subscribe("console")
    await Outgoing.bulk_create([Outgoing(chat="console", text="Alert of before") for _ in range(MOST_UNSAID)])
    await subscribe("telegram:7")
    assert await Alerts(process.database.client).store(finding(holds=True), await now(process))
    assert [chat for chat, _ in await told()].count("console") == MOST_UNSAID
    assert ("telegram:7", "Alert") in await told()


async def test_chat_that_refuses(process: Process) -> None:
    """A chat that is gone is unsubscribed, one that does not take an alert is not; others are told."""
    for chat in ("telegram:7", "telegram:8", "telegram:9"):
        await subscribe(chat)
    said = []

    async def send(chat: str, reply: Reply) -> None:
        if chat == "telegram:7":
            raise ChatGone("Forbidden: bot was blocked by the user")
        if chat == "telegram:9":
            raise BotApiRefused("Bad Request: not enough rights to send text messages to the chat")
        said.append((chat, reply.text))

    assert await Alerts(process.database.client).store(finding(holds=True), await now(process))
    async with unasked(process, "telegram", send):
        await until(_all_said)
    assert await subscribers() == ["telegram:8", "telegram:9"]
    ((chat, text),) = said
    assert chat == "telegram:8"
    assert re.fullmatch(r"Alert at \d\d:\d\d UTC: worker@a:1 is silent\.", text)


async def _all_said() -> bool:
    return await Outgoing.all().count() == 0


async def test_alerts_without_a_subject(process: Process) -> None:
    """Alerts of others, without a subject, may be open as often as they like, and are none of ours."""
    for _ in range(2):
        await Alert.create(kind="missing process", value=0.0)
    assert await Alerts(process.database.client).open_ones() == {}


# What is seen


async def test_idle_in_transaction(process: Process, environ: Environ) -> None:
    """Six sessions that are idle in a transaction are an alert; when they go on, it is over."""
    watch = Watch(process, AT_ONCE)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(6):
            session = await stack.enter_async_context(connect(Settings.load("poolctl", environ)))
            await stack.enter_async_context(session.transaction())
            await session.execute("SELECT 1")
        await watch.look_once()
        await watch.look_once()
        assert await states() == [("idle in transaction", "", True)]
    await until(lambda: _closed(watch))
    assert await states() == [("idle in transaction", "", False)]


async def _closed(watch: Watch) -> bool:
    await watch.look_once()
    return await Alert.filter(closed=None).count() == 0


async def test_idle_for_a_moment(process: Process, environ: Environ) -> None:
    """Sessions between two statements of a transaction are none."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(6):
            session = await stack.enter_async_context(connect(Settings.load("poolctl", environ)))
            await stack.enter_async_context(session.transaction())
            await session.execute("SELECT 1")
        await Watch(process, Thresholds(idle_s=3600.0)).look_once()
    assert await states() == []


async def test_crowded_server(process: Process, environ: Environ) -> None:
    """Connections above the head-room line, by the samples of the last minutes and now, are an alert until they go."""
    watch = Watch(process, Thresholds(crowded_s=60.0))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(78):  # the line is 77, and this process has some, too
            await stack.enter_async_context(connect(Settings.load("poolctl", environ)))
        await watch.look_once()
        assert await states() == []  # for how long is not known
        for before_s in (20, 40, 61):
            sample = await ConnectionSample.create(
                max_connections=100, total=80, active=1, idle=79, idle_in_transaction=0, by_application={}
            )
            await ConnectionSample.filter(id=sample.id).update(at=datetime.now(UTC) - timedelta(seconds=before_s))
        await watch.look_once()
        assert await states() == [("connections", "", True)]
    await until(lambda: _closed(watch))


async def opened(watch: Watch) -> None:
    """Look until an alert is stored."""

    async def look() -> bool:
        await watch.look_once()
        return bool(await states())

    await until(look, what="an alert")


async def test_crowded_by_own_observation(process: Process, environ: Environ) -> None:
    """Without any samples, what this bot saw before is enough."""
    watch = Watch(process, Thresholds(crowded_s=0.3))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(78):
            await stack.enter_async_context(connect(Settings.load("poolctl", environ)))
        await opened(watch)
    assert (await states())[0][0] == "connections"


async def test_old_queue(process: Process) -> None:
    """A job that nobody takes is an alert; when it is gone, that is over."""
    watch = Watch(process, AT_ONCE)
    job = await enqueue(process.queue, EXERCISE_POOL, ExercisePool())
    await opened(watch)
    assert await states() == [("old queue", "", True)]
    await process.queue.zrem(process.queue.default_queue_name, job.job_id)
    await watch.look_once()
    assert await states() == [("old queue", "", False)]
    assert await abort(process.queue, job.job_id) is False


async def test_redis_that_is_away(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """While Redis is away an alert about it neither opens nor closes, and one about the database does."""
    caplog.set_level(logging.INFO)
    async with open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as proxy:
        by_proxy = environ | {"REDIS_PORT": str(proxy.listens_on), "REDIS_SOCKET_TIMEOUT": "0.5"}
        async with open_process(Settings.load("bot", by_proxy)) as process:
            watch = Watch(process, AT_ONCE)
            await enqueue(process.queue, EXERCISE_POOL, ExercisePool())
            await opened(watch)
            assert await states() == [("old queue", "", True)]
            await proxy.stop()
            await process.database.client.execute_query("SELECT 1")
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(6):
                    session = await stack.enter_async_context(connect(Settings.load("poolctl", environ)))
                    await stack.enter_async_context(session.transaction())
                    await session.execute("SELECT 1")
                await watch.look_once()
                await watch.look_once()
            assert await states() == [("old queue", "", True), ("idle in transaction", "", True)]
            assert caplog.text.count("cannot look at processes and jobs for alerts") == 1
            await proxy.start()


async def test_redis_is_not_believed_at_once(process: Process) -> None:
    """Redis is believed only when this bot's own heartbeat was seen there for a while; an emptied one starts anew."""
    await enqueue(process.queue, EXERCISE_POOL, ExercisePool())
    watch = Watch(process, Thresholds(queue_s=0.0, trust_s=0.3))
    await watch.look_once()
    assert await states() == []

    async def opened() -> bool:
        await watch.look_once()
        return bool(await states())

    await until(opened, poll_s=0.1)
    await process.queue.flushall()
    await watch.look_once()
    assert await states() == [("old queue", "", True)]  # that the queue is empty means nothing yet


async def test_database_that_goes_away(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """While the database is away nothing opens or closes, nothing crashes, and it is said once; then it goes on."""
    caplog.set_level(logging.INFO)
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        by_proxy = environ | {"DB_PORT": str(proxy.listens_on), "DB_POOL_TIMEOUT": "1", "DB_CONNECT_TIMEOUT": "1"}
        async with (
            open_process(Settings.load("bot", by_proxy)) as process,
            watching(process, AT_ONCE, look_every_s=0.05),
        ):
            await proxy.stop()
            await until(lambda: "cannot look at the fleet for alerts" in caplog.text)
            await enqueue(process.queue, EXERCISE_POOL, ExercisePool())
            await proxy.start()
            await until(lambda: "the fleet is watched again" in caplog.text, timeout_s=60)
            await until(lambda: "alert opened: old queue" in caplog.text, timeout_s=60)
    assert caplog.text.count("cannot look at the fleet for alerts") == 1
    assert caplog.text.count("alert opened") == 1
