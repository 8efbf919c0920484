"""What the bot is to say, between a job's transaction and the chat."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from tortoise.transactions import in_transaction

from bot.command import Reply
from bot.errors import BotApiAway, BotApiRefused, Flooded, Unclear
from bot.unasked import AT_ONCE, REST_S, unasked
from config import Settings
from db.models import Outgoing
from fleet import Process, open_process, say
from fleet.outbox import LEASE_S, MOST_OF_A_CHAT, Outbox
from tests.conftest import Environ
from tests.proxy import open_proxy
from tests.waiting import until


@pytest.fixture
async def process(environ: Environ) -> AsyncIterator[Process]:
    async with open_process(Settings.load("bot", environ)) as process:
        yield process


LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def lapse() -> None:
    """As if a bot had taken everything long ago, and died."""
    await Outgoing.all().update(taken=LONG_AGO)


async def test_said_with_the_work_or_not_at_all(process: Process) -> None:
    """What is said in a transaction that is rolled back is not said."""
    async with in_transaction() as connection:
        await say("console", "lost")
        await connection.rollback()
    async with in_transaction():
        await say("console", "kept")
    outbox = Outbox(process.database.client, "console")
    assert [said.text for said in await outbox.take(10)] == ["kept"]


async def test_each_is_taken_once(process: Process) -> None:
    """Of any number of bots that look at once, one gets each thing."""
    for number in range(40):
        await say(f"console:{number}", str(number))
    outboxes = [Outbox(process.database.client, "console") for _ in range(8)]
    taken = await asyncio.gather(*(outbox.take(10) for outbox in outboxes))
    texts = [said.text for each in taken for said in each]
    assert sorted(texts, key=int) == [str(number) for number in range(40)]


async def test_what_another_takes_is_not_waited_for(process: Process) -> None:
    """While another bot is about to take what is for one chat, a bot passes over it and takes the next chat's."""
    await say("console:1", "first")
    await say("console:2", "next")
    async with in_transaction() as other:
        (first,) = await Outbox(other, "console").take(1)  # type: ignore[arg-type] # a transaction is a client, too
        (following,) = await Outbox(process.database.client, "console").take(10)
    assert (first.text, following.text) == ("first", "next")


async def test_a_chat_is_one_bots_at_a_time(process: Process) -> None:
    """While a bot has, or is about to take, what comes first in a chat, no other gets what follows."""
    for number in range(MOST_OF_A_CHAT + 2):
        await say("console", str(number))
    second = Outbox(process.database.client, "console")
    async with in_transaction() as other:
        first = Outbox(other, "console")  # type: ignore[arg-type] # a transaction is a client, too
        taken = await first.take(2)
        assert await second.take(10) == []
    assert await second.take(10) == []
    for said in taken:
        await second.remove(said)
    assert [said.text for said in await second.take(10)] == ["2", "3", "4", "5", "6"]


async def test_taken_in_order_by_transport_and_chat(process: Process) -> None:
    """A transport gets what is for its own chats, the oldest first, without those that are busy."""
    for chat in ("telegram:1", "console", "telegram:2", "telegram:1", "telegraph:1"):
        await say(chat, chat)
    outbox = Outbox(process.database.client, "telegram")
    assert [said.chat for said in await outbox.take(10, busy=["telegram:2"])] == ["telegram:1", "telegram:1"]
    assert [said.chat for said in await outbox.take(10)] == ["telegram:2"]
    assert [said.chat for said in await Outbox(process.database.client, "console").take(10)] == ["console"]


async def test_a_dead_bots_are_taken_again(process: Process) -> None:
    """What was taken and never removed is anyone's when its lease is over; what is renewed or removed is not."""
    for text in ("dead", "renewed", "removed"):
        await say("console", text)
    outbox = Outbox(process.database.client, "console")
    _, renewed, removed = await outbox.take(10)
    assert await outbox.take(10) == []
    await lapse()
    assert [said.id for said in await outbox.renew([replace(renewed, taken=LONG_AGO)])] == [renewed.id]
    await outbox.remove(removed)
    assert [said.text for said in await outbox.take(10)] == ["dead"]


async def test_what_is_released_is_anyones_at_once(process: Process) -> None:
    """What a bot gives back is taken again in its place, also where a renewal of its lease comes late."""
    for text in ("said", "released", "next"):
        await say("console", text)
    outbox, other = (Outbox(process.database.client, "console") for _ in range(2))
    said, *rest = await outbox.take(10)
    await outbox.remove(said)
    await outbox.release(rest)
    await outbox.renew(rest)
    assert [said.text for said in await other.take(10)] == ["released", "next"]


async def test_what_another_has_taken_since_stays_its_own(process: Process) -> None:
    """A bot whose lease ran out renews and gives back nothing that another one says by now."""
    await say("console", "slow")
    late, other, third = (Outbox(process.database.client, "console") for _ in range(3))
    (mine,) = await late.take(10)
    await lapse()
    (taken,) = await other.take(10)
    assert await late.renew([mine]) == []
    await late.release([mine])
    assert await third.take(10) == []
    (renewed,) = await other.renew([taken])
    assert renewed.taken > taken.taken
    await other.release([renewed])
    assert [said.text for said in await third.take(10)] == ["slow"]


async def test_no_chat_takes_the_place_of_all(process: Process) -> None:
    """Of a chat that has much to hear a few things are taken, and those of the others beside them."""
    for number in range(MOST_OF_A_CHAT * 3):
        await say("telegram:much", str(number))
    await say("telegram:little", "x")
    outbox = Outbox(process.database.client, "telegram")
    first = await outbox.take(MOST_OF_A_CHAT * 2)
    assert [said.text for said in first] == [*map(str, range(MOST_OF_A_CHAT)), "x"]
    for said in first:
        await outbox.remove(said)
    following = await outbox.take(100)
    assert [said.text for said in following] == [*map(str, range(MOST_OF_A_CHAT, MOST_OF_A_CHAT * 2))]


class Chats:
    """Chats that take, wait or fail as a test wants."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.under_way: Counter[str] = Counter()
        self.most_under_way = 0  # in one chat
        self.most_at_once = 0
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def send(self, chat: str, reply: Reply) -> None:
        self.under_way[chat] += 1
        self.most_under_way = max(self.most_under_way, self.under_way[chat])
        self.most_at_once = max(self.most_at_once, self.under_way.total())
        try:
            if chat.startswith("telegram:slow"):
                await self.open.wait()
        finally:
            self.under_way[chat] -= 1
        if self.error is not None:
            raise self.error
        self.heard.append((chat, reply.text))


async def emptied() -> bool:
    return await Outgoing.all().count() == 0


async def taken() -> bool:
    return await Outgoing.filter(taken=None).count() == 0


async def test_a_chat_that_waits_keeps_no_other_waiting(process: Process) -> None:
    """Each chat hears its things in order, and a slow one does not hold up the others."""
    chats = Chats()
    async with unasked(process, "telegram", chats.send):
        for text in ("a", "b"):
            await say("telegram:slow", text)
            await say("telegram:1", text)
        await until(lambda: len(chats.heard) == 2, what="the other chat has heard")
        assert chats.heard == [("telegram:1", "a"), ("telegram:1", "b")]
        await say("telegram:slow", "c")
        await say("telegram:1", "c")
        await until(lambda: len(chats.heard) == 3, what="the outbox was looked into again")
        chats.open.set()
        await until(emptied, what="nothing is left to say")
    assert chats.heard[3:] == [("telegram:slow", text) for text in "abc"]
    assert chats.most_under_way == 1


@pytest.mark.slow
async def test_a_chat_with_much_to_hear_keeps_no_other_waiting(process: Process) -> None:
    """While a chat has more to hear than a bot takes at once, another hears its own."""
    chats = Chats()
    await Outgoing.bulk_create([Outgoing(chat="telegram:slow", text=str(number)) for number in range(AT_ONCE * 2)])
    await say("telegram:1", "x")
    async with unasked(process, "telegram", chats.send):
        await until(lambda: chats.heard == [("telegram:1", "x")], what="the other chat has heard")


@pytest.mark.slow
async def test_many_chats_that_wait_keep_no_other_waiting(process: Process) -> None:
    """While a hundred chats wait, another hears its own at once; what a bot takes at most is bounded all the same."""
    chats = Chats()

    async def crowd(count: int) -> None:
        names = [f"telegram:slow{number}" for number in range(count)]
        lines = [Outgoing(chat=name, text=str(number)) for number in range(MOST_OF_A_CHAT) for name in names]
        await Outgoing.bulk_create(lines)

    await crowd(100)
    async with unasked(process, "telegram", chats.send):
        await until(lambda: chats.under_way.total() == 100, what="they wait")
        await say("telegram:1", "x")
        await until(lambda: chats.heard == [("telegram:1", "x")], what="the other chat has heard", timeout_s=5.0)
        await crowd(AT_ONCE + 10)
        await until(lambda: chats.under_way.total() == AT_ONCE, what="as many as may be")
    assert chats.most_at_once == AT_ONCE
    assert await Outgoing.exclude(taken=None).count() == 0


@pytest.mark.slow
async def test_a_slow_chats_lease_is_renewed(process: Process) -> None:
    """What takes longer to say than a lease is not taken by another bot meanwhile."""
    chats = Chats()
    async with unasked(process, "telegram", chats.send):
        await say("telegram:slow", "long")
        await until(taken, what="it is under way")
        first = (await Outgoing.get()).taken

        async def renewed() -> bool:
            return (await Outgoing.get()).taken != first

        await until(renewed, timeout_s=LEASE_S, what="the lease is renewed before it is over")
        chats.open.set()


async def test_a_refusing_chat_is_left_out(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    """What a chat will never take is dropped, and the log says so."""
    chats = Chats()
    chats.error = BotApiRefused("the bot was blocked by the user")
    async with unasked(process, "telegram", chats.send):
        await say("telegram:1", "hello")
        await until(emptied, what="it is dropped")
    assert "chat telegram:1 does not take what was to be said, left out: the bot was blocked" in caplog.text


async def test_an_unclear_answer_is_left_out(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    """What was tried for long enough without a clear answer is dropped, and keeps its chat waiting no longer."""
    chats = Chats()
    chats.error = Unclear("Not Found")
    async with unasked(process, "telegram", chats.send):
        await say("telegram:1", "hello")
        await until(emptied, what="it is dropped")
    assert "chat telegram:1 does not take what was to be said, left out: Not Found" in caplog.text


@pytest.mark.slow
async def test_what_could_not_be_said_is_said_soon(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    """While the chat's server is away things stay; they are said in order, long before a lease would be over."""
    chats = Chats()
    chats.error = BotApiAway("nobody answers")
    async with unasked(process, "telegram", chats.send):
        await say("telegram:1", "opened")
        await until(lambda: "not said in chat telegram:1, to be tried again" in caplog.text, what="the failure is told")
        assert not await emptied()
        chats.error = None
        await say("telegram:1", "closed")
        await until(emptied, what="it is said", timeout_s=LEASE_S / 2)
    assert chats.heard == [("telegram:1", "opened"), ("telegram:1", "closed")]
    assert REST_S < LEASE_S / 2


async def test_what_one_bot_cannot_say_another_does(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    """What fails in one bot is said by another that can, in order, and at once."""
    broken, well = Chats(), Chats()
    broken.error = BotApiAway("nobody answers")
    async with unasked(process, "telegram", broken.send):
        for text in "abc":
            await say("telegram:1", text)
        await until(lambda: "not said in chat telegram:1" in caplog.text, what="it failed")
        async with unasked(process, "telegram", well.send):
            await until(emptied, what="the other says it", timeout_s=LEASE_S / 2)
    assert well.heard == [("telegram:1", text) for text in "abc"]


@pytest.mark.slow
async def test_a_chat_rests_for_a_long_flood(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    """What meets a flood limit of an hour is given back, and not tried again before that is over."""
    chats = Chats()
    async with unasked(process, "telegram", chats.send):
        for chat, error in (
            ("telegram:1", Flooded("asks to wait for 3600 s", 3600.0)),
            ("telegram:2", BotApiAway("nobody answers")),
        ):
            chats.error = error
            await say(chat, "hello")
            await until(lambda chat=chat: f"not said in chat {chat}" in caplog.text, what="it failed")
        chats.error = None
        await until(lambda: chats.heard, what="the other one's rest is over")
        assert await Outgoing.filter(chat="telegram:1", taken=None).count() == 1
    assert chats.heard == [("telegram:2", "hello")]


async def test_what_cannot_be_released_keeps_its_lease(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """Where the database is away when something could not be said, the lease says when it is anyone's again."""
    chats = Chats()
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        by_proxy = environ | {"DB_PORT": str(proxy.listens_on), "DB_POOL_TIMEOUT": "1"}
        async with open_process(Settings.load("bot", by_proxy)) as process:
            async with unasked(process, "telegram", chats.send):
                await say("telegram:slow", "hello")
                await until(lambda: chats.under_way["telegram:slow"], what="it is under way")
                await proxy.stop()
                chats.error = BotApiAway("nobody answers")
                chats.open.set()
                await until(
                    lambda: f"cannot be given back, so it waits for {LEASE_S:g} s" in caplog.text,
                    what="the log says so",
                )
            await proxy.start()
            assert await Outbox(process.database.client, "telegram").take(10) == []
            await lapse()
            (said,) = await Outbox(process.database.client, "telegram").take(10)
    assert said.text == "hello"


async def test_the_end_waits_for_what_is_under_way(process: Process) -> None:
    """A bot that ends says what it has begun to say."""
    chats = Chats()
    async with unasked(process, "telegram", chats.send):
        await say("telegram:slow", "in time")
        await until(taken, what="it is under way")
        asyncio.get_running_loop().call_later(0.2, chats.open.set)
    assert chats.heard == [("telegram:slow", "in time")]
    assert await emptied()


@pytest.mark.slow
async def test_the_end_does_not_wait_for_ever(process: Process) -> None:
    """What a bot that ends cannot say in time the next one says, in order, and at once."""
    chats = Chats()
    for text in "abc":
        await say("telegram:slow", text)
    async with unasked(process, "telegram", chats.send):
        await until(taken, what="it is under way")
    assert chats.heard == []
    chats.open.set()
    async with unasked(process, "telegram", chats.send):
        await until(emptied, what="the next one says it", timeout_s=LEASE_S / 2)
    assert chats.heard == [("telegram:slow", text) for text in "abc"]
