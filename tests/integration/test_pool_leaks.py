"""The leak watch in a pool: real connections that are held for too long, by users, the engine and transactions."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

import pytest
from tortoise.transactions import in_transaction

from pool import Pool
from tests.engines import open_tortoise
from tests.observer import backend, observed_pool
from tests.waiting import until

Environ = dict[str, str]

THRESHOLD_S = 0.2


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


async def leaks(pool: Pool, count: int) -> None:
    await until(lambda: pool.snapshot().leaks == count, timeout_s=5, what=f"{count} leaks")


async def work(pool: Pool, done: asyncio.Event) -> None:
    """Takes a connection, and goes on to something else."""
    connection = await pool.acquire()
    await something_else(done)
    await pool.release(connection)


async def something_else(done: asyncio.Event) -> None:
    await done.wait()


async def test_who_holds_a_connection_for_too_long_is_shown(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """Once: the task, for how long, the line on which it acquired, and the stack where it is now, down to the wait."""
    async with observed_pool(environ, leak_threshold_s=THRESHOLD_S) as (pool, _):
        done = asyncio.Event()
        task = asyncio.create_task(work(pool, done), name="careless")
        await leaks(pool, 1)
        (warning,) = warnings(caplog)
        first, *stack = warning.splitlines()
        assert "pool 'tested': a connection has been held for 0." in first
        assert "(DB_LEAK_THRESHOLD=0.2) by task 'careless', acquired at " in first
        assert f"test_pool_leaks.py:{line_of(work, 'pool.acquire')} in work; the task is now at" in first
        assert f"test_pool_leaks.py:{line_of(work, 'something_else')} in work" in stack[0]
        assert f"test_pool_leaks.py:{line_of(something_else, 'done.wait')} in something_else" in stack[1]
        done.set()
        await task
        await asyncio.sleep(2 * THRESHOLD_S)  # it would be reported again in this time
        assert len(warnings(caplog)) == pool.snapshot().leaks == 1


def line_of(function: Any, text: str) -> int:
    """The number of the line of `function` that holds `text`."""
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


async def test_each_checkout_counts_by_itself(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """The same connection, held for too long twice; those held for a short time do not count, nor idle ones."""
    async with observed_pool(environ, max_size=1, leak_threshold_s=THRESHOLD_S) as (pool, _):
        for expected in (1, 2):
            connection = await pool.acquire()
            await leaks(pool, expected)
            await pool.release(connection)
            for _ in range(20):
                await backend(pool)
        await asyncio.sleep(2 * THRESHOLD_S)
        assert len(warnings(caplog)) == pool.snapshot().leaks == 2


async def test_a_task_that_ended_without_giving_back(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """That is a leak for good, and is called one."""
    async with observed_pool(environ, leak_threshold_s=THRESHOLD_S) as (pool, _):
        connection = await asyncio.create_task(take(pool), name="gone")
        await leaks(pool, 1)
        assert "by task 'gone'" in warnings(caplog)[0]
        assert "its task has ended without giving it back" in warnings(caplog)[0]
        await pool.release(connection)


async def take(pool: Pool) -> Any:
    return await pool.acquire()


async def test_a_transaction_and_a_slow_statement_are_watched_too(
    environ: Environ, caplog: pytest.LogCaptureFixture
) -> None:
    """What the engine checked out itself, in the line of who asked Tortoise."""
    async with open_tortoise(environ, guards={"leak_threshold_s": THRESHOLD_S}) as client:
        async with in_transaction() as transaction:
            await transaction.execute_query("SELECT 1")
            await leaks(client.pool, 1)
        await client.execute_query("SELECT pg_sleep(0.5)")
        assert client.pool.snapshot().leaks == 2
        told = warnings(caplog)
        assert all("test_a_transaction_and_a_slow_statement" in warning.splitlines()[0] for warning in told)
        assert "pool/engine.py" in told[1], "the stack shows where the statement is"


async def test_nobody_is_watched_unless_asked_for(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """0 is off: no warning, no line remembered, no timer."""
    async with observed_pool(environ) as (pool, _):
        connection = await pool.checkout()
        assert connection.acquired_at is None
        assert connection.holder is asyncio.current_task()
        await asyncio.sleep(2 * THRESHOLD_S)
        assert (pool.snapshot().leaks, warnings(caplog)) == (0, [])
        await pool.checkin(connection)
        assert connection.holder is None


async def test_nobody_is_watched_after_closing(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """What was cut off is nobody's any more."""
    async with observed_pool(environ, leak_threshold_s=THRESHOLD_S) as (pool, _):
        await pool.acquire()
        await pool.close(grace_s=0.0)
        await asyncio.sleep(2 * THRESHOLD_S)
        assert pool.snapshot().leaks == 0
        assert all("DB_LEAK_THRESHOLD" not in warning for warning in warnings(caplog))
