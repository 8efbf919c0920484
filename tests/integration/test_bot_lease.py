from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from arq.connections import ArqRedis

from bot.errors import LeaseLost
from bot.inbox import REMEMBERED_S, Inbox
from bot.lease import ASK_EVERY_S, LEASE_S, MARGIN_S, Lease
from config import Settings
from fleet.queue import open_queue
from tests.proxy import open_proxy
from tests.waiting import until

pytestmark = pytest.mark.slow  # leases run out in real time

KEY = "bot:test"
MARK = "bot:test:handled"


@pytest.fixture
async def queue(environ: dict[str, str]) -> AsyncIterator[ArqRedis]:
    async with open_queue(Settings.load("bot", environ)) as opened:
        yield opened


class Turn:
    """Holds a lease in a task of its own, as often as it can; `loss` is why it last lost it."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.holds = False
        self.lost_at = 0.0
        self.loss = ""
        self.task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        while True:
            try:
                async with self.lease.held():
                    self.holds = True
                    try:
                        await asyncio.Event().wait()
                    finally:
                        self.holds = False
                        self.lost_at = asyncio.get_running_loop().time()
            except LeaseLost as error:
                self.loss = str(error)


@asynccontextmanager
async def turn(queue: ArqRedis, name: str) -> AsyncIterator[Turn]:
    opened = Turn(Lease(queue, KEY, name))
    try:
        yield opened
    finally:
        opened.task.cancel()
        await asyncio.wait({opened.task})


def test_takeover_in_time() -> None:
    """A lease that is not renewed is taken over within 15 s, and ended by its own holder before that."""
    assert LEASE_S + ASK_EVERY_S < 15
    assert MARGIN_S > 0


async def test_one_holds_it(queue: ArqRedis) -> None:
    """Of several that want it, one has it; when that one lets go, another has it at once."""
    async with turn(queue, "bot@c:3") as third:
        await until(lambda: third.holds)
        async with turn(queue, "bot@a:1") as first, turn(queue, "bot@b:2") as second:
            await asyncio.sleep(2 * ASK_EVERY_S)  # long enough for each to have asked
            assert not first.holds
            assert not second.holds
            third.task.cancel()
            await until(lambda: first.holds or second.holds, timeout_s=LEASE_S - MARGIN_S)
            assert first.holds != second.holds


async def test_released_whenever_it_is_cancelled(queue: ArqRedis) -> None:
    """One that is cancelled, while it asks or while it holds, leaves no lease behind."""

    async def hold() -> None:
        async with Lease(queue, KEY, "bot@a:1").held():
            await asyncio.Event().wait()

    for steps in range(30):
        task = asyncio.create_task(hold())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert not await queue.exists(KEY)


async def test_partition(environ: dict[str, str], queue: ArqRedis) -> None:
    """A holder that Redis does not hear from any more gives up before another can have the lease."""
    async with open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as proxy:
        behind = Settings.load("bot", environ | {"REDIS_PORT": str(proxy.listens_on)})
        async with open_queue(behind) as partitioned, turn(partitioned, "bot@a:1") as first:
            await until(lambda: first.holds)
            async with turn(queue, "bot@b:2") as second:
                proxy.freeze()
                proxy.deaf = True
                await until(lambda: not first.holds, timeout_s=2 * LEASE_S)
                assert not second.holds
                await until(lambda: second.holds, timeout_s=2 * LEASE_S)
                await until(lambda: "Redis does not answer" in first.loss)
                proxy.deaf = False
                proxy.thaw()


async def test_redis_that_was_emptied(queue: ArqRedis) -> None:
    """A lease that Redis has lost is taken up again by its holder, if nobody else was faster."""
    async with turn(queue, "bot@a:1") as only:
        await until(lambda: only.holds)
        await queue.flushall()
        await until(lambda: queue.exists(KEY))
        assert only.holds


async def test_holder_learns_of_another(queue: ArqRedis) -> None:
    """A holder that finds another in its place stops at once."""
    async with turn(queue, "bot@a:1") as first:
        await until(lambda: first.holds)
        await queue.set(KEY, "bot@b:2 other", px=60_000)
        await until(lambda: not first.holds, timeout_s=LEASE_S - MARGIN_S)
        await until(lambda: first.loss == "bot@b:2 holds it", what="the reason")


async def test_error_inside(queue: ArqRedis) -> None:
    """What is raised inside comes out, a TimeoutError of the body's own too, and the lease is free."""
    with pytest.raises(TimeoutError, match="of its own"):
        async with Lease(queue, KEY, "bot@a:1").held():
            raise TimeoutError("of its own")
    assert not await queue.exists(KEY)


# Inbox


async def test_claimed_once(queue: ArqRedis) -> None:
    """A number is claimed once, by the holder of the lease, and what is below it never again."""
    lease = Lease(queue, KEY, "bot@a:1")
    async with lease.held():
        inbox = Inbox(queue, MARK, lease)
        await inbox.refresh()
        assert inbox.following is None
        assert await inbox.claim(10)
        assert not await inbox.claim(10)
        assert not await inbox.claim(9)
        assert await inbox.claim(12)
        assert inbox.following == 13
    assert 0 < await queue.pttl(MARK) <= REMEMBERED_S * 1000


async def test_claim_needs_the_lease(queue: ArqRedis) -> None:
    """A bot that was frozen while another took over may claim nothing, though it believes to hold the lease."""
    frozen, successor = Lease(queue, KEY, "bot@a:1"), Lease(queue, KEY, "bot@b:2")
    await queue.set(KEY, successor.holder, px=60_000)
    assert await Inbox(queue, MARK, successor).claim(10)
    with pytest.raises(LeaseLost):
        await Inbox(queue, MARK, frozen).claim(11)


async def test_successor_knows_what_was_claimed(queue: ArqRedis) -> None:
    """A bot that takes over asks for what comes after the last claim, and cannot claim that one again."""
    for name, expected in (("bot@a:1", True), ("bot@b:2", False)):
        lease = Lease(queue, KEY, name)
        async with lease.held():
            assert await Inbox(queue, MARK, lease).claim(10) is expected
            inbox = Inbox(queue, MARK, lease)
            await inbox.refresh()
            assert inbox.following == 11


async def test_forgotten_in_memory_as_in_redis(queue: ArqRedis) -> None:
    """A bot that heard nothing for so long takes lower numbers: the transport's may start anew."""
    lease = Lease(queue, KEY, "bot@a:1")
    async with lease.held():
        inbox = Inbox(queue, MARK, lease, remembered_s=0.2)
        assert await inbox.claim(10)
        await until(lambda: inbox.following is None)

        async def forgotten() -> bool:
            return not await queue.exists(MARK)

        await until(forgotten)
        assert await inbox.claim(3)
        assert inbox.following == 4


async def test_claim_whose_answer_was_lost(queue: ArqRedis) -> None:
    """A claim that Redis made while its answer was lost is still this bot's own."""
    lease = Lease(queue, KEY, "bot@a:1")
    async with lease.held():
        await queue.set(MARK, f"10 {lease.holder}")
        inbox = Inbox(queue, MARK, lease)
        assert await inbox.claim(10)
        assert not await inbox.claim(10)
