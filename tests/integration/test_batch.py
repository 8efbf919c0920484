from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from config import Settings
from fleet.batch import Batch
from fleet.queue import open_queue
from fleet.script import Script
from tests.proxy import Proxy, open_proxy

ECHO = Script("if ARGV[1] == 'bad' then return redis.error_reply('BAD no') end return ARGV[1]")


@pytest.fixture
async def proxy(environ: dict[str, str]) -> AsyncIterator[Proxy]:
    async with open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as opened:
        yield opened


@pytest.fixture
async def queue(environ: dict[str, str], proxy: Proxy) -> AsyncIterator[ArqRedis]:
    async with open_queue(Settings.load("worker", environ | {"REDIS_PORT": str(proxy.listens_on)})) as opened:
        yield opened


async def test_each_caller_gets_its_own_answer(queue: ArqRedis) -> None:
    """A hundred calls at once are answered each with its own, by a server that did not know the script."""
    await queue.script_flush()
    batch = Batch(queue, "q", ECHO)
    answers = await asyncio.gather(*(batch(number) for number in range(100)))
    assert answers == [str(number).encode() for number in range(100)]


async def test_calls_share_a_round_trip(queue: ArqRedis, proxy: Proxy) -> None:
    """Calls that come while one is under way are one more round trip together."""
    batch = Batch(queue, "q", ECHO)
    await batch(0)
    proxy.delay_s = 0.05
    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.gather(*(batch(number) for number in range(50)))
    assert loop.time() - started < 10 * 2 * 0.05


async def test_an_error_is_its_callers(queue: ArqRedis) -> None:
    """The script's error reaches the caller whose call it was, and no other."""
    batch = Batch(queue, "q", ECHO)
    answers = await asyncio.gather(*(batch(word) for word in ("a", "bad", "b", "bad")), return_exceptions=True)
    assert (answers[0], answers[2]) == (b"a", b"b")
    assert isinstance(answers[1], ResponseError)
    assert isinstance(answers[3], ResponseError)


async def test_a_lost_connection_is_everybodys(queue: ArqRedis, proxy: Proxy) -> None:
    """When the connection is lost every caller hears of it, and later calls go on."""
    batch = Batch(queue, "q", ECHO)
    await batch("first")
    await proxy.stop()
    answers = await asyncio.gather(*(batch(number) for number in range(10)), return_exceptions=True)
    assert all(isinstance(answer, RedisConnectionError) for answer in answers)
    await proxy.start()
    assert await batch("again") == b"again"


async def test_a_cancelled_caller(queue: ArqRedis) -> None:
    """A caller that is cancelled takes nothing from the others."""
    batch = Batch(queue, "q", ECHO)
    calls = [asyncio.create_task(batch(number)) for number in range(10)]
    await asyncio.sleep(0)
    calls[3].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers.pop(3), asyncio.CancelledError)
    assert len([answer for answer in answers if isinstance(answer, bytes)]) == 9
