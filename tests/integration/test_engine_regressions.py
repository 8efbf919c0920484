"""What stock Tortoise on asyncpg does to its connections, and our engine does not: faults A to N.

Each test runs the same on both engines, and where stock runs it shows the fault: should a new version of Tortoise no
longer have it, the guard against it may go. G, H and N are kept away by open_database instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import pytest
from arq.worker import Worker, func
from tortoise.connection import get_connection, get_connections
from tortoise.context import TortoiseContext
from tortoise.exceptions import BaseORMException, TransactionManagementError
from tortoise.transactions import in_transaction
from tortoise.warnings import TortoiseLoopSwitchWarning

from config import Settings
from db import connect, open_database
from db.models import Subscriber
from fleet.queue import open_queue
from pool import PoolTimeout
from pool.errors import PoolClosed
from tests.engines import (
    NAME,
    OURS,
    STOCK,
    backends,
    connection_config,
    free_slots,
    kill_backends,
    open_tortoise,
    subscribe,
)
from tests.proxy import Proxy, open_proxy, through
from tests.waiting import until

Environ = dict[str, str]

on_both_engines = pytest.mark.parametrize("engine", [OURS, STOCK])


async def chats() -> list[str]:
    """What is stored."""
    return sorted(await Subscriber.all().values_list("chat", flat=True))


async def none_left(environ: Environ, name: str = NAME) -> None:
    """Waits until the server has no connection of that name."""

    async def none() -> bool:
        return await backends(environ, name) == 0

    await until(none, timeout_s=5, what="all connections are closed")


@on_both_engines
async def test_a_cancelled_begin_keeps_no_slot(environ: Environ, engine: str) -> None:
    """A: two transactions are cancelled while BEGIN is on its way. Stock: both places are lost for good."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_tortoise(through(proxy, environ), engine, minsize=2) as client,
    ):
        proxy.freeze()
        beginning = []
        for number in range(2):
            sent = proxy.sent
            beginning.append(asyncio.create_task(subscribe(f"lost-{number}")))
            await until(lambda sent=sent: proxy.sent > sent, what="BEGIN is on its way")
        for task in beginning:
            task.cancel()
        results = await asyncio.gather(*beginning, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        proxy.thaw()
        assert await free_slots(client, 2) == (0 if engine == STOCK else 2)


@on_both_engines
async def test_a_failed_begin_leaves_no_dead_transaction(environ: Environ, engine: str) -> None:
    """A: the connection breaks in BEGIN. Stock: the task keeps the transaction that never began."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_tortoise(through(proxy, environ), engine, minsize=1) as client,
    ):

        async def fail_and_go_on() -> list[str]:
            proxy.cut_after(0, "server")
            with pytest.raises(Exception, match=r"lost|closed|reset"):
                await subscribe("never")
            return await chats()

        going_on = asyncio.create_task(fail_and_go_on())
        if engine == STOCK:
            with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                await going_on
        else:
            assert await going_on == []
            assert await free_slots(client, 2) == 2


@on_both_engines
async def test_an_exhausted_pool_is_waited_for_in_bounds(environ: Environ, engine: str) -> None:
    """B: the deadline's error names pool, numbers, and the holders. Stock: waits for ever."""
    async with (
        open_tortoise(environ, engine, guards={"acquire_timeout_s": 0.3}) as client,
        client.acquire_connection(),
        client.acquire_connection(),
    ):
        asking = asyncio.create_task(client.execute_query("SELECT 1"), name="the one that waits")
        if engine == STOCK:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asking, 1.0)
            return
        with pytest.raises(PoolTimeout) as caught:
            await asyncio.wait_for(asking, 1.3)
        text = str(caught.value)
        holder = asyncio.current_task()
        assert holder is not None
        for part in (f"pool '{NAME}'", "0.3 s (DB_POOL_TIMEOUT)", "limit=2", "size=2", "in use=2", holder.get_name()):
            assert part in text
        assert "same task" not in text


@on_both_engines
async def test_a_nested_acquire_is_called_by_its_name(environ: Environ, engine: str) -> None:
    """B: a task that holds the last connection asks for another. Stock: waits for itself, for ever."""
    async with open_tortoise(environ, engine, guards={"acquire_timeout_s": 0.3}, maxsize=1) as client:
        async with in_transaction():
            await Subscriber.create(chat="outer")
            if engine == STOCK:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await client.execute_query("SELECT 1")
            else:
                with pytest.raises(PoolTimeout, match="held by this same task"):
                    async with asyncio.timeout(1.3):
                        await client.execute_query("SELECT 1")
        assert await chats() == ["outer"]


@on_both_engines
async def test_a_release_that_fails_ends_the_transaction_all_the_same(environ: Environ, engine: str) -> None:
    """C: the connection breaks in the reset after COMMIT. Stock: raises, and the task keeps a dead transaction."""
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_tortoise(through(proxy, environ), engine, minsize=1) as client,
    ):

        async def commit_and_go_on() -> list[str]:
            with contextlib.suppress(OSError, asyncpg.PostgresError) if engine == STOCK else contextlib.nullcontext():
                async with in_transaction() as transaction:
                    await Subscriber.create(chat="kept")
                    await transaction.execute_script("SET work_mem = '8MB'")  # so that there is something to reset
                    await transaction.commit()
                    proxy.cut_after(0, "server")
            return await chats()

        going_on = asyncio.create_task(commit_and_go_on())
        if engine == STOCK:
            with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                await going_on
        else:
            assert await going_on == ["kept"]
            assert await free_slots(client, 2) == 2


async def fail_on_a_dead_connection(proxy: Proxy) -> None:
    """A transaction whose block raises when the connection is gone already."""
    async with in_transaction() as transaction:
        await Subscriber.create(chat="never")
        noticed = asyncio.Event()
        async with transaction.acquire_connection() as connection:
            connection.add_termination_listener(lambda _: noticed.set())
        proxy.cut()
        await asyncio.wait_for(noticed.wait(), 5)
        raise ZeroDivisionError


@on_both_engines
async def test_a_failed_rollback_does_not_hide_the_error(
    environ: Environ, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    """D: the connection is gone when the block raises. Stock: InterfaceError of the rollback takes its place."""
    caplog.set_level(logging.DEBUG, logger="pool")
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy,
        open_tortoise(through(proxy, environ), engine, minsize=1) as client,
    ):
        with pytest.raises(asyncpg.InterfaceError if engine == STOCK else ZeroDivisionError) as caught:
            await fail_on_a_dead_connection(proxy)
        if engine == STOCK:
            assert "cannot call Transaction.rollback()" in str(caught.value)
        else:
            assert "rollback" in caplog.text.lower()
            assert await chats() == []
            assert await free_slots(client, 2) == 2


@on_both_engines
async def test_a_query_after_close_is_refused(environ: Environ, engine: str) -> None:
    """E: closed is closed until somebody opens it again on purpose. Stock: silently opens a new pool."""
    async with open_tortoise(environ, engine, minsize=1) as client:
        await client.close()
        await none_left(environ)
        if engine == STOCK:
            assert await Subscriber.all().count() == 0
            assert await backends(environ) == 1
            await client.close()
        else:
            with pytest.raises(PoolClosed, match=NAME):
                await Subscriber.all().count()
            with pytest.raises(PoolClosed, match=NAME):
                await subscribe("late")
            assert await backends(environ) == 0
        await client.create_connection(with_db=True)
        await subscribe("again")
        assert await chats() == ["again"]
        await client.close()


@pytest.mark.slow
@on_both_engines
async def test_who_gives_back_late_is_not_punished(environ: Environ, engine: str) -> None:
    """F: a connection comes back after the pool was closed. Stock: AttributeError."""
    async with open_tortoise(environ, engine) as client:
        late = client.acquire_connection()
        connection = await late.__aenter__()
        assert await connection.fetchval("SELECT 1") == 1
        await client.close()
        if engine == STOCK:
            with pytest.raises(AttributeError, match="release"):
                await late.__aexit__(None, None, None)
        else:
            await late.__aexit__(None, None, None)
        await none_left(environ)


async def test_who_gives_back_late_does_not_disturb_the_next_pool(environ: Environ) -> None:
    """F: a connection of a pool that was closed comes back when its successor is open."""
    async with open_tortoise(environ) as client:
        late = client.acquire_connection()
        await late.__aenter__()
        client.pool.terminate()
        await client.close()
        await client.create_connection(with_db=True)
        await late.__aexit__(None, None, None)
        assert await free_slots(client, 2) == 2
        assert client.pool.snapshot().in_use == 0


async def test_an_event_loop_of_another_thread_costs_no_connection(environ: Environ) -> None:
    """G: Tortoise forgets the pool when a task on another loop asks; open_database closes it all the same."""
    settings = Settings.load("worker", environ | {"DB_POOL_MIN": "2"})
    name = settings.db.application_name

    async def ask_and_close() -> int:
        count = await Subscriber.all().count()
        await get_connection("default").close()
        return count

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TortoiseLoopSwitchWarning)
        async with open_database(settings):
            assert await backends(environ, name) == 2
            with ThreadPoolExecutor(1) as thread:
                run = contextvars.copy_context().run
                assert await asyncio.get_running_loop().run_in_executor(thread, run, asyncio.run, ask_and_close()) == 0
    await none_left(environ, name)


async def test_transactions_share_one_pool(environ: Environ) -> None:
    """H: an alias first used inside a transaction. open_database has connected by then: nothing more is opened."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        settings = Settings.load("worker", through(proxy, environ) | {"DB_POOL_MIN": "1", "DB_POOL_MAX": "1"})
        async with open_database(settings) as database:
            accepted = proxy.accepted
            for number in range(5):
                await asyncio.create_task(subscribe(str(number)))
            assert await chats() == ["0", "1", "2", "3", "4"]
            assert proxy.accepted == accepted
            assert get_connection("default") is database.client
        await none_left(environ, settings.db.application_name)


@on_both_engines
async def test_a_task_that_outlives_its_transaction_is_told_so(environ: Environ, engine: str) -> None:
    """I: a task inherits the transaction it was started in. Stock: "released back to the pool"."""
    over = asyncio.Event()

    async def outlive() -> None:
        await over.wait()
        await Subscriber.create(chat="late")

    async with open_tortoise(environ, engine) as client:
        async with in_transaction():
            await Subscriber.create(chat="kept")
            child = asyncio.create_task(outlive())
        over.set()
        if engine == STOCK:
            with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                await child
        else:
            with pytest.raises(TransactionManagementError, match=r"transaction .*ended"):
                await child
            assert await free_slots(client, 2) == 2
        assert await chats() == ["kept"]


async def test_a_task_that_outlives_its_transaction_never_gets_another_s(environ: Environ) -> None:
    """I: nothing of it reaches the connection, which by then works for somebody else."""
    over = asyncio.Event()

    async def outlive() -> None:
        await over.wait()
        async with in_transaction():
            await Subscriber.create(chat="late")

    async with open_tortoise(environ, maxsize=1):
        async with in_transaction():
            child = asyncio.create_task(outlive())
        async with in_transaction():
            await Subscriber.create(chat="kept")
            over.set()
            with pytest.raises(TransactionManagementError, match=r"transaction .*ended"):
                await child
        assert await chats() == ["kept"]


@on_both_engines
async def test_savepoints_of_two_tasks_at_once_are_refused(environ: Environ, engine: str) -> None:
    """J: one connection has one stack of savepoints. Stock: "another operation is in progress"."""
    async with open_tortoise(environ, engine) as client:
        results: list[BaseException | None] = []
        async with asyncio.timeout(5):
            with contextlib.suppress(asyncpg.InterfaceError, asyncpg.PostgresError):  # stock, as it leaves the block
                async with in_transaction():
                    results = await asyncio.gather(*(subscribe(f"{n}") for n in range(3)), return_exceptions=True)
        errors = [error for error in results if error is not None]
        if engine == STOCK:
            assert any("another operation is in progress" in str(error) for error in errors)
            return
        assert errors
        for error in errors:
            assert type(error) is TransactionManagementError
            assert "task" in str(error)
        assert await chats() == [str(number) for number, error in enumerate(results) if error is None]
        assert await free_slots(client, 2) == 2


async def test_savepoints_of_two_tasks_one_after_another_work(environ: Environ) -> None:
    """J: only at the same time they are refused, and one that fails takes nothing else with it."""
    async with open_tortoise(environ):
        async with in_transaction():
            await asyncio.create_task(subscribe("a"))
            with pytest.raises(BaseORMException):
                await asyncio.create_task(subscribe("a"))
            await asyncio.create_task(subscribe("b"))
        assert await chats() == ["a", "b"]


@on_both_engines
async def test_single_statements_of_many_tasks_take_turns(environ: Environ, engine: str) -> None:
    """J: without savepoints, one transaction serves many tasks at once; so it does on stock."""
    async with open_tortoise(environ, engine, maxsize=1):
        async with asyncio.timeout(5), in_transaction():
            await asyncio.gather(*(Subscriber.create(chat=f"{number:02}") for number in range(20)))
        assert await chats() == [f"{number:02}" for number in range(20)]


@on_both_engines
async def test_a_cancelled_execute_many_rolls_back_itself(environ: Environ, engine: str) -> None:
    """K: cancelled while rows are inserted. Stock: asyncpg finds the open transaction at release, and complains."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    insert = "INSERT INTO fleet_subscriber (chat, created) VALUES ($1, now())"
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'"
    async with (
        open_tortoise(environ, engine, minsize=1) as client,
        connect(Settings.load("poolctl", environ)) as other,
    ):

        async def waits_for_the_lock() -> bool:
            return bool(await other.fetchval(waiting, NAME))

        async with other.transaction():
            await other.execute("LOCK TABLE fleet_subscriber IN EXCLUSIVE MODE")
            inserting = asyncio.create_task(client.execute_many(insert, [["a"], ["b"]]))
            await until(waits_for_the_lock)
            inserting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await inserting
        if engine == STOCK:
            assert any("active transaction" in complaint for complaint in complaints)
        else:
            assert complaints == []
        assert await chats() == []
        assert await free_slots(client, 2) == 2


@on_both_engines
async def test_reads_do_not_see_that_the_server_ended_their_connections(environ: Environ, engine: str) -> None:
    """L: idle backends are killed, and queries come before the pool can know. Stock: asyncpg's raw errors."""
    async with open_tortoise(environ, engine, minsize=2) as client:
        kill_backends(environ)
        results = await asyncio.gather(*(Subscriber.all().count() for _ in range(6)), return_exceptions=True)
        if engine == STOCK:
            raw = (asyncpg.PostgresError, asyncpg.InternalClientError, asyncpg.InterfaceError)
            assert any(isinstance(result, raw) for result in results)
        else:
            assert results == [0] * 6
            assert await free_slots(client, 2) == 2


WRITES: dict[str, Callable[[Any], Awaitable[object]]] = {
    "create": lambda client: Subscriber.create(chat="stored"),
    "transaction": lambda client: subscribe("stored"),
    "execute_query": lambda client: client.execute_query("INSERT INTO fleet_subscriber VALUES (1, 'stored', now())"),
    "execute_script": lambda client: client.execute_script("INSERT INTO fleet_subscriber VALUES (1, 'stored', now())"),
    "execute_many": lambda client: client.execute_many(
        "INSERT INTO fleet_subscriber VALUES (1, $1, now())", [["stored"]]
    ),
}


@pytest.mark.parametrize("write", WRITES)
@on_both_engines
async def test_a_write_is_done_or_fails_with_an_error_of_tortoise(environ: Environ, engine: str, write: str) -> None:
    """L: nothing but a read is run again; the error is one that callers can name. Stock: asyncpg's raw errors."""
    async with open_tortoise(environ, engine, minsize=1) as client:
        kill_backends(environ)
        (result,) = await asyncio.gather(WRITES[write](client), return_exceptions=True)
        if engine == STOCK:
            assert isinstance(result, (asyncpg.PostgresError, asyncpg.InternalClientError, asyncpg.InterfaceError))
        elif isinstance(result, BaseException):
            assert isinstance(result, BaseORMException)
            assert result.__cause__ is not None
            assert await chats() == []
        else:
            assert await chats() == ["stored"]
        assert await free_slots(client, 2) == 2


@on_both_engines
async def test_one_close_that_fails_does_not_stop_the_others(environ: Environ, engine: str) -> None:
    """M: who closes all inherited a transaction that is over. Stock: raises, waits for none, leaves one pool open."""
    over = asyncio.Event()

    async def close_all() -> None:
        await over.wait()
        await get_connections().close_all()

    connections = {alias: connection_config(environ, engine, minsize=1) for alias in ("one", "other")}
    apps = {"fleet": {"models": ["db.models"], "default_connection": "one"}}
    async with TortoiseContext() as context:
        await context.init(config={"connections": connections, "apps": apps})
        for alias in connections:
            await context.db(alias).create_connection(with_db=True)
        async with in_transaction("one"):
            closing = asyncio.create_task(close_all())
        assert await backends(environ) == 2
        over.set()
        if engine == STOCK:
            with pytest.raises(AttributeError):
                await closing
            assert await backends(environ) >= 1
        else:
            await closing
            await none_left(environ)
    await none_left(environ)


@pytest.mark.filterwarnings("ignore:Call to deprecated close")  # arq's own, as it closes its Redis
async def test_what_arq_starts_and_ends_sees_the_database(environ: Environ) -> None:
    """N: arq runs jobs and on_shutdown in tasks apart. open_database is around both, and closes after both."""
    settings = Settings.load("worker", environ)
    seen: dict[str, int] = {}

    async def note(context: dict[str, Any], place: str) -> None:
        await Subscriber.create(chat=place)
        seen[place] = await Subscriber.all().count()

    async def on_startup(context: dict[str, Any]) -> None:
        await note(context, "on_startup")

    async def on_shutdown(context: dict[str, Any]) -> None:
        await note(context, "on_shutdown")

    async with open_database(settings), open_queue(settings) as queue:
        await queue.enqueue_job("note", "job")
        worker = Worker(
            [func(note, name="note")],
            redis_pool=queue,
            queue_name=queue.default_queue_name,
            job_serializer=queue.job_serializer,
            job_deserializer=queue.job_deserializer,
            on_startup=on_startup,
            on_shutdown=on_shutdown,
            handle_signals=False,
            burst=True,
            poll_delay=0.01,
        )
        await asyncio.create_task(worker.main())
        await asyncio.create_task(worker.close())
        assert seen == {"on_startup": 1, "job": 2, "on_shutdown": 3}
    await none_left(environ, settings.db.application_name)
