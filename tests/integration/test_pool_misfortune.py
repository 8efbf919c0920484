"""Blocks and pools that end where nobody expects it: nothing half done is committed, and every place comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

import asyncpg
import pytest
from tortoise.exceptions import OperationalError, TransactionManagementError
from tortoise.transactions import in_transaction

from db.models import Subscriber
from pool import PoolClosed, PoolError
from tests.engines import backends, free_slots, open_tortoise
from tests.pools import open_pool
from tests.proxy import open_proxy
from tests.waiting import until

Environ = dict[str, str]


async def failing() -> None:
    raise KeyError


async def test_a_nested_block_that_cannot_be_undone_is_not_committed(environ: Environ) -> None:
    """Its rollback comes while a sibling's statement runs, and fails: the outer block is rolled back too."""
    async with open_tortoise(environ, guards={"acquire_timeout_s": 1.0}) as client:

        async def work() -> None:
            async with in_transaction():
                with contextlib.suppress(KeyError):
                    async with in_transaction() as inner:
                        await Subscriber.create(chat="inner")
                        await asyncio.gather(inner.execute_query("SELECT pg_sleep(2)"), failing())

        with pytest.raises(TransactionManagementError, match="a nested transaction could not be ended"):
            await work()
        assert await Subscriber.all().count() == 0
        assert await free_slots(client, 2) == 2


async def test_a_commit_that_the_server_made_a_rollback_is_an_error(environ: Environ) -> None:
    """Who passes over a failed statement is told that nothing was kept."""
    async with open_tortoise(environ):

        async def work() -> None:
            async with in_transaction() as transaction:
                await Subscriber.create(chat="lost")
                with contextlib.suppress(OperationalError):
                    await transaction.execute_query("SELECT 1/0")

        with pytest.raises(TransactionManagementError, match="rolled back instead"):
            await work()
        assert await Subscriber.all().count() == 0


async def test_a_transaction_on_a_silent_line_ends_in_time(environ: Environ) -> None:
    """Cancelled in a statement behind a pulled cable, without any DB_COMMAND_TIMEOUT: two seconds at most."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_tortoise(environ | {"DB_PORT": str(proxy.listens_on)}, command_timeout=None) as client,
    ):
        inside = asyncio.Event()

        async def work() -> None:
            async with in_transaction() as transaction:
                await transaction.execute_query("SELECT 1")
                inside.set()
                await transaction.execute_query("SELECT pg_sleep(60)")

        working = asyncio.create_task(work())
        await inside.wait()
        proxy.freeze()
        started = time.monotonic()
        working.cancel()
        await asyncio.wait([working])
        assert time.monotonic() - started < 3.0
        assert working.cancelled()
        assert await free_slots(client, 2, within_s=3.0) == 2


async def test_a_block_that_ends_in_another_context_gives_its_connection_back(environ: Environ) -> None:
    """An async generator that is left open is closed by the event loop, where Tortoise's token is nobody's."""
    async with open_tortoise(environ) as client:

        async def rows() -> AsyncGenerator[int, None]:
            async with in_transaction() as transaction:
                for number in range(2):
                    await transaction.execute_query("SELECT 1")
                    yield number

        async def first_row() -> AsyncGenerator[int, None]:
            generator = rows()
            await anext(generator)
            return generator

        for _ in range(3):
            left_open = await asyncio.create_task(first_row())
            await asyncio.create_task(left_open.aclose())
        assert await free_slots(client, 2) == 2
        assert client.pool.snapshot().in_use == 0


async def test_closing_ends_an_opening(environ: Environ) -> None:
    """close() while the first query opens the pool: nothing is open afterwards, and a later query is refused."""
    async with open_tortoise(environ, minsize=2) as client:
        await client.close()
        client._pool = None  # as before anybody asked
        client._shut = False
        asking = asyncio.create_task(client.execute_query("SELECT 1"))
        await until(lambda: client._opening is not None, poll_s=0.0)
        await client.close()
        with pytest.raises((PoolClosed, asyncio.CancelledError)):
            await asking
        with pytest.raises(PoolClosed, match="create_connection"):
            await client.execute_query("SELECT 1")
        await until(lambda: none_left(environ), timeout_s=5)


async def test_who_opens_twice_has_one_pool(environ: Environ) -> None:
    """create_connection() from two tasks at once replaces a pool; it does not add one."""
    async with open_tortoise(environ, minsize=2) as client:
        await asyncio.gather(*(client.create_connection(with_db=True) for _ in range(3)))
        await until(lambda: as_many(environ, 2), timeout_s=5)
        await client.close()
        await until(lambda: none_left(environ), timeout_s=5)


async def none_left(environ: Environ) -> bool:
    return await as_many(environ, 0)


async def as_many(environ: Environ, count: int) -> bool:
    return await backends(environ) == count


@pytest.mark.parametrize(
    ("change", "question", "expected"),
    [
        ("SET ROLE pg_monitor", "SELECT current_user = session_user", True),
        ("SET SESSION AUTHORIZATION pg_monitor", "SELECT current_user = 'pg_monitor'", False),
        ("CREATE TEMP TABLE left_behind (n int)", "SELECT to_regclass('left_behind') IS NULL", True),
        ("SELECT 1 AS n INTO TEMP left_behind", "SELECT to_regclass('left_behind') IS NULL", True),
    ],
)
async def test_roles_and_temporary_tables_do_not_reach_the_next_user(
    environ: Environ, change: str, question: str, expected: bool
) -> None:
    """asyncpg's reset leaves them."""
    async with open_pool(environ, max_size=1) as pool:
        first = await pool.acquire()
        await first.execute(change)
        await pool.release(first)
        second = await pool.acquire()
        assert await second.fetchval(question) is expected
        await pool.release(second)


async def test_a_use_that_failed_is_reset(environ: Environ) -> None:
    """Whatever raised inside of acquire_connection()."""
    async with open_tortoise(environ) as client:
        with contextlib.suppress(KeyError):
            async with client.acquire_connection() as connection:
                await connection.fetchval("SELECT 1")
                raise KeyError
        assert client.pool.snapshot().resets == 1


async def test_a_shrink_that_is_cancelled_goes_on(environ: Environ) -> None:
    """The surplus is closed though nobody waits for it."""
    async with open_pool(environ, min_size=6, max_size=6, elastic=True) as pool:
        shrinking = asyncio.create_task(pool.resize(2))
        await asyncio.sleep(0)
        shrinking.cancel()
        await asyncio.wait([shrinking])
        await until(lambda: pool.snapshot().size == 2, timeout_s=5)


async def test_another_event_loop_is_refused(environ: Environ) -> None:
    """A pool belongs to the loop that opened it, and says so."""
    async with open_pool(environ) as pool:

        async def elsewhere() -> None:
            with pytest.raises(PoolError, match="belongs to another event loop"):
                await pool.acquire()

        await asyncio.to_thread(asyncio.run, elsewhere())
        await pool.release(await pool.acquire())


async def test_a_begin_that_is_cancelled_makes_no_noise(environ: Environ) -> None:
    """asyncio's exception handler hears nothing of transactions that were left open."""
    heard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_tortoise(environ | {"DB_PORT": str(proxy.listens_on)}) as client,
    ):
        await client.execute_query("SELECT 1")
        proxy.delay_s = 0.01
        for step in range(20):

            async def begin() -> None:
                async with in_transaction():
                    pass

            beginning = asyncio.create_task(begin())
            asyncio.get_running_loop().call_later(step * 0.003, beginning.cancel)
            await asyncio.wait([beginning])
        proxy.delay_s = 0.0
        assert await free_slots(client, 2) == 2
    assert heard == []


@pytest.mark.parametrize("wrong", [{"reset": "Always"}, {"mode": None}, {"pooler": "pgbouncer"}])
async def test_a_slip_of_an_option_is_refused(environ: Environ, wrong: dict[str, object]) -> None:
    """By name, value and what it may be."""
    with pytest.raises(ValueError, match="one of"):
        async with open_pool(environ, **wrong):
            pass


async def test_statements_keep_their_errors_for_users_of_a_connection(environ: Environ) -> None:
    """Who has asyncpg's connection gets asyncpg's errors; docs/pool.md says so."""
    async with open_tortoise(environ) as client, client.acquire_connection() as connection:
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await connection.execute("SELEKT 1")
