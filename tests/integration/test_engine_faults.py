"""Everything that breaks between the pool and the server, one case after the other, and the same check after each.

The faults are real: a TCP proxy before a real server, backends that are killed, a server and a pooler of the test's
own that stop and start.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tortoise.exceptions import DBConnectionError, OperationalError
from tortoise.transactions import in_transaction

from config import Settings
from db import connect, migrate
from db.models import Subscriber
from local import LocalServers, Tether
from local.account import server_account
from local.directory import prepare
from local.lock import locked
from local.postgres import DATABASE, PostgresServer, open_postgres
from pool import PoolTimeout
from pool.errors import PoolClosed, PoolSaturated, TooManyClients
from tests.engines import NAME, backends, free_slots, kill_backends, open_tortoise
from tests.pgbouncer import PgBouncer, open_pgbouncer
from tests.proxy import Proxy, open_proxy
from tests.waiting import until

Environ = dict[str, str]
T = TypeVar("T")

LIMIT = 3
ACQUIRE_S, CONNECT_S, COMMAND_S = 1.0, 0.5, 0.5  # the deadlines, where a case does not set its own
TOLERANCE_S = 1.0  # no wait is longer than its deadline and this
OVERHEAD_S = 0.25  # what a busy machine needs besides


@dataclass
class Stage:
    """Where a case plays: a client with 0 to LIMIT connections, the proxy before its server, the role it logs in as."""

    direct: Environ  # past the proxy, as superuser
    proxy: Proxy
    role: str
    password: str
    server: PrivateServer | None = None
    pgbouncer: PgBouncer | None = None
    client: Any = None

    async def admin(self, query: str, *arguments: object) -> Any:
        """A value from the server, past proxy and pool."""
        async with connect(Settings.load("poolctl", self.direct)) as connection:
            return await connection.fetchval(query, *arguments)

    async def outcome(self, work: Awaitable[Any], *, within_s: float) -> BaseException | None:
        """The error of `work`, which must end in time, counted from now."""
        task = asyncio.ensure_future(work)
        done, _ = await asyncio.wait({task}, timeout=within_s + TOLERANCE_S + OVERHEAD_S)
        if not done:
            task.cancel()
            raise AssertionError(f"not within {within_s:g} s and the tolerance")
        return task.exception()

    async def busy(self, query: str) -> None:
        """Waits until a connection of the pool runs, or waits to run, a query with that text in it."""
        statement = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = $1 AND state = 'active' AND position($2 in query) > 0"
        )

        async def is_busy() -> bool:
            return bool(await self.admin(statement, NAME, query))

        await until(is_busy, what=f"{query} runs")

    async def kill(self) -> None:
        """Ends all connections of the pool."""
        await self.admin(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
            " WHERE application_name = $1 AND datname = current_database()",
            NAME,
        )

    async def warm(self) -> None:
        """Opens all connections."""
        assert await free_slots(self.client, LIMIT, within_s=5) == LIMIT

    async def check_whole(self) -> None:
        """All places are there, nobody is counted who is gone, and the server has no connection that we forgot."""
        assert await free_slots(self.client, LIMIT) == LIMIT
        now = self.client.pool.snapshot()
        assert (now.in_use, now.waiting, now.limit) == (0, 0, LIMIT)
        assert now.acquires == now.releases
        await until(self._none_is_stray, timeout_s=5, what="the server has as many connections as the pool")

    async def check_gone(self) -> None:
        """After closing, the server has none of ours."""

        async def none() -> bool:
            return await self._connections() == 0

        await until(none, timeout_s=5, what="all connections are closed")

    async def _none_is_stray(self) -> bool:
        return bool(await self._connections() == self.client.pool.snapshot().size)

    async def _connections(self) -> int:
        if self.pgbouncer is not None:
            return sum(client["user"] == self.role for client in self.pgbouncer.ask("SHOW CLIENTS"))
        return await backends(self.direct)


Inject = Callable[[Stage], Coroutine[Any, Any, BaseException | None]]


@dataclass(frozen=True)
class Case:
    """A fault, and what its victim is told."""

    name: str
    inject: Inject  # makes the fault, lets somebody run into it, mends it; returns the error it met
    error: type[BaseException] | None = None  # exactly this class; None where nobody may notice
    text: str = ""  # of the error, as a regular expression
    certain: bool = True  # False: what came too late to be noticed is fine as well
    guards: dict[str, Any] = field(default_factory=dict)  # of our engine
    credentials: dict[str, Any] = field(default_factory=dict)  # of asyncpg


async def read() -> int:
    """What the ORM reads."""
    count: int = await Subscriber.all().count()
    return count


async def subscribe(chat: str) -> None:
    """A transaction with one statement."""
    async with in_transaction():
        await Subscriber.create(chat=chat)


# --- connections that die ---


async def killed_idle_read(stage: Stage) -> BaseException | None:
    await stage.warm()
    kill_backends(stage.direct)
    reads = asyncio.gather(*(read() for _ in range(2 * LIMIT)))
    return await stage.outcome(reads, within_s=0)


async def killed_idle_write(stage: Stage) -> BaseException | None:
    await stage.warm()
    kill_backends(stage.direct)
    error = await stage.outcome(Subscriber.create(chat="a"), within_s=0)
    assert await Subscriber.all().count() == (0 if error else 1)
    return error


async def reset_one_after_the_other(stage: Stage) -> BaseException | None:
    await stage.warm()
    stage.proxy.cut_after(0, "server", times=LIMIT)
    return await stage.outcome(read(), within_s=0)


async def killed_mid_query(stage: Stage) -> BaseException | None:
    asking = asyncio.create_task(stage.client.execute_query("SELECT pg_sleep(30)"))
    await stage.busy("pg_sleep(30)")
    await stage.kill()
    return await stage.outcome(asking, within_s=0)


async def killed_mid_read(stage: Stage) -> BaseException | None:
    async with connect(Settings.load("poolctl", stage.direct)) as other:
        async with other.transaction():
            await other.execute("LOCK TABLE fleet_subscriber IN ACCESS EXCLUSIVE MODE")
            reading = asyncio.create_task(read())
            await stage.busy("fleet_subscriber")
            await stage.kill()
            await stage.busy("fleet_subscriber")  # once more, on another connection
        return await stage.outcome(reading, within_s=0)


async def read_in_a_transaction() -> int:
    async with in_transaction():
        return await read()


async def killed_mid_read_in_a_transaction(stage: Stage) -> BaseException | None:
    async with connect(Settings.load("poolctl", stage.direct)) as other, other.transaction():
        await other.execute("LOCK TABLE fleet_subscriber IN ACCESS EXCLUSIVE MODE")
        reading = asyncio.create_task(read_in_a_transaction())
        await stage.busy("fleet_subscriber")
        await stage.kill()
        return await stage.outcome(reading, within_s=0)


async def killed_in_a_transaction(stage: Stage) -> BaseException | None:
    async def transact() -> None:
        async with in_transaction():
            await Subscriber.create(chat="before")
            await stage.kill()
            await Subscriber.create(chat="after")

    error = await stage.outcome(transact(), within_s=0)
    assert await Subscriber.all().count() == 0
    return error


async def cut_mid_answer(stage: Stage) -> BaseException | None:
    await stage.warm()
    stage.proxy.cut_after(40, "client")
    return await stage.outcome(stage.client.execute_query("SELECT repeat('x', 1000)"), within_s=0)


async def cut_mid_commit(stage: Stage) -> BaseException | None:
    async def transact() -> None:
        async with in_transaction():
            await Subscriber.create(chat="perhaps")
            stage.proxy.cut_after(0, "client")

    error = await stage.outcome(transact(), within_s=0)
    assert await Subscriber.all().count() == 1  # the server had committed, and nobody can know
    return error


# --- a server that is silent, slow, or not there ---


async def black_hole_mid_query(stage: Stage) -> BaseException | None:
    await stage.warm()
    stage.proxy.freeze()
    stage.proxy.deaf = True
    error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=COMMAND_S)
    stage.proxy.deaf = False
    stage.proxy.thaw()
    return error


async def black_hole_idle(stage: Stage) -> BaseException | None:
    await subscribe("before")
    stage.proxy.freeze()
    error = await stage.outcome(subscribe("after"), within_s=1.0)  # the ping's own
    stage.proxy.thaw()
    assert await read() == 2
    return error


async def black_hole_and_an_impatient_caller(stage: Stage) -> BaseException | None:
    await stage.warm()
    stage.proxy.freeze()
    stage.proxy.deaf = True
    asking = asyncio.wait_for(stage.client.execute_query("SELECT 1"), 0.3)
    error = await stage.outcome(asking, within_s=0.3)
    stage.proxy.deaf = False
    stage.proxy.thaw()
    return error


async def black_hole_mid_transaction(stage: Stage) -> BaseException | None:
    async def transact() -> None:
        async with in_transaction():
            await Subscriber.create(chat="never")
            stage.proxy.freeze()
            stage.proxy.deaf = True
            await Subscriber.create(chat="never either")

    error = await stage.outcome(transact(), within_s=COMMAND_S)
    stage.proxy.deaf = False
    stage.proxy.thaw()
    return error


async def black_hole_mid_connect(stage: Stage) -> BaseException | None:
    stage.proxy.deaf = True
    errors = await asyncio.gather(
        *(
            stage.outcome(stage.client.execute_query("SELECT 1"), within_s=min(CONNECT_S, ACQUIRE_S))
            for _ in range(2 * LIMIT)
        )
    )
    stage.proxy.deaf = False
    assert len({(type(error), str(error)) for error in errors}) == 1  # those in line are told the same, and as soon
    return errors[0]


async def connect_later_than_the_acquire_deadline(stage: Stage) -> BaseException | None:
    stage.proxy.deaf = True
    error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=0.3)
    stage.proxy.deaf = False
    return error


async def slow_connect(stage: Stage) -> BaseException | None:
    stage.proxy.delay_s = 0.02
    error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=ACQUIRE_S)
    stage.proxy.delay_s = 0.0
    return error


async def too_slow_connect(stage: Stage) -> BaseException | None:
    stage.proxy.delay_s = 0.2
    error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=CONNECT_S)
    stage.proxy.delay_s = 0.0
    return error


async def refused(stage: Stage) -> BaseException | None:
    await stage.warm()
    await stage.proxy.stop()
    await until(lambda: stage.client.pool.snapshot().size == 0, what="it noticed that all connections are cut")
    error = await stage.outcome(stage.client.execute_script("SELECT 1; SELECT 2"), within_s=0)
    await stage.proxy.start()
    return error


async def read_while_refused(stage: Stage) -> BaseException | None:
    await stage.proxy.stop()
    error = await stage.outcome(read(), within_s=CONNECT_S)
    await stage.proxy.start()
    return error


async def read_into_a_black_hole(stage: Stage) -> BaseException | None:
    stage.proxy.deaf = True
    error = await stage.outcome(read(), within_s=CONNECT_S)
    stage.proxy.deaf = False
    return error


async def read_while_refused_for_a_moment(stage: Stage) -> BaseException | None:
    await stage.warm()
    await stage.proxy.stop()
    reading = asyncio.create_task(read())
    failures = stage.client.pool.statistics
    await until(lambda: failures.connect_failures >= 2, what="it was tried again")
    await stage.proxy.start()
    return await stage.outcome(reading, within_s=CONNECT_S)


async def dns_failure(stage: Stage) -> BaseException | None:
    await stage.proxy.stop()
    error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=ACQUIRE_S)
    await stage.proxy.start()
    return error


# --- a server that says no ---


async def too_many_clients(stage: Stage) -> BaseException | None:
    await stage.admin(f"ALTER ROLE {stage.role} CONNECTION LIMIT 1")
    async with stage.client.acquire_connection():
        error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=0)
    await stage.admin(f"ALTER ROLE {stage.role} CONNECTION LIMIT -1")
    return error


async def password_rotated(stage: Stage) -> BaseException | None:
    async with stage.client.acquire_connection() as connection:
        await stage.admin(f"ALTER ROLE {stage.role} PASSWORD 'pw-that-is-new'")
        assert await connection.fetchval("SELECT 1") == 1  # who is in stays in
        error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=0)
    stage.password = "pw-that-is-new"
    return error


# --- a pool that is full, changes, or closes ---


async def full_pool(stage: Stage) -> BaseException | None:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(LIMIT):
            holding = asyncio.create_task(held.enter_async_context(stage.client.acquire_connection()), name="miser")
            await holding
        return await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=ACQUIRE_S)


async def saturated_pool(stage: Stage) -> BaseException | None:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(LIMIT):
            await held.enter_async_context(stage.client.acquire_connection())
        waiting = asyncio.create_task(stage.client.execute_query("SELECT 1"))
        await until(lambda: stage.client.pool.snapshot().waiting == 1)
        error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=-TOLERANCE_S)
    await waiting
    return error


async def nested_acquire(stage: Stage) -> BaseException | None:
    async def nest() -> None:
        async with in_transaction(), stage.client.acquire_connection(), stage.client.acquire_connection():
            await stage.client.execute_query("SELECT 1")

    return await stage.outcome(nest(), within_s=ACQUIRE_S)


async def resized_when_idle(stage: Stage) -> BaseException | None:
    await stage.warm()
    assert await stage.outcome(stage.client.pool.resize(1), within_s=0) is None
    assert stage.client.pool.snapshot().size == 1
    await until(stage._none_is_stray, timeout_s=5, what="the others are closed")
    return await stage.outcome(stage.client.pool.resize(LIMIT), within_s=0)


async def resized_when_awaited(stage: Stage) -> BaseException | None:
    pool = stage.client.pool
    await pool.resize(1)
    async with stage.client.acquire_connection():
        waiting = asyncio.create_task(stage.client.execute_query("SELECT 1"))
        await until(lambda: pool.snapshot().waiting == 1)
        await pool.resize(LIMIT)
        return await stage.outcome(waiting, within_s=0)


async def resized_under_load(stage: Stage) -> BaseException | None:
    pool = stage.client.pool
    over = False

    async def load() -> None:
        while not over:
            await stage.client.execute_query("SELECT 1")
            await asyncio.sleep(0)
            assert pool.snapshot().size <= LIMIT

    loads = [asyncio.create_task(load()) for _ in range(4 * LIMIT)]
    for limit in [1, LIMIT, 2, LIMIT, 1, 2] * 3:
        await pool.resize(limit)
        before = pool.snapshot().acquires
        await until(lambda limit=limit: pool.snapshot().size <= limit, timeout_s=5, what=f"no more than {limit}")
        await until(lambda before=before: pool.snapshot().acquires > before + 20, timeout_s=5, what="work goes on")
        assert pool.snapshot().in_use <= limit
        assert await backends(stage.direct) <= LIMIT
    await pool.resize(LIMIT)
    over = True
    return await stage.outcome(asyncio.gather(*loads), within_s=0)


async def closed_under_load(stage: Stage) -> BaseException | None:
    async def load() -> None:
        while True:
            await stage.client.execute_query("SELECT 1")

    loads = [asyncio.create_task(load()) for _ in range(4 * LIMIT)]
    await until(lambda: stage.client.pool.snapshot().acquires > 50)
    assert await stage.outcome(stage.client.close(), within_s=0) is None
    errors = await asyncio.gather(*(stage.outcome(load, within_s=0) for load in loads))
    assert {type(error) for error in errors} == {PoolClosed}
    await stage.check_gone()
    await stage.client.create_connection(with_db=True)
    return errors[0]


async def closed_while_somebody_waits(stage: Stage) -> BaseException | None:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(LIMIT):
            await held.enter_async_context(stage.client.acquire_connection())
        waiting = asyncio.create_task(stage.client.execute_query("SELECT 1"))
        await until(lambda: stage.client.pool.snapshot().waiting == 1)
        closing = asyncio.create_task(stage.client.close())
        error = await stage.outcome(waiting, within_s=-TOLERANCE_S)  # at once, not after the grace of those who hold
    await closing
    await stage.client.create_connection(with_db=True)
    return error


async def closed_upon_those_who_stay(stage: Stage) -> BaseException | None:
    asking = asyncio.create_task(stage.client.execute_query("SELECT pg_sleep(30)"))
    await stage.busy("pg_sleep(30)")
    assert await stage.outcome(stage.client.pool.close(grace_s=0.2), within_s=0.2) is None
    error = await stage.outcome(asking, within_s=0)
    await stage.kill()  # the server would sleep on
    await stage.client.create_connection(with_db=True)
    return error


CASES = [
    Case("idle backends killed, read", killed_idle_read),
    Case("idle backend killed, write", killed_idle_write, DBConnectionError, "terminating connection", certain=False),
    Case("idle connections reset one after the other, read", reset_one_after_the_other),
    Case("backend killed mid-query", killed_mid_query, DBConnectionError, "lost.*terminating connection"),
    Case("backend killed mid-read", killed_mid_read),
    Case(
        "backend killed mid-read in a transaction",
        killed_mid_read_in_a_transaction,
        DBConnectionError,
        "lost.*terminating",
    ),
    Case("backend killed in a transaction", killed_in_a_transaction, DBConnectionError, "lost.*(closed|terminating)"),
    Case("connection reset mid-answer", cut_mid_answer, DBConnectionError, "lost"),
    Case("connection reset mid-commit", cut_mid_commit, DBConnectionError, "lost"),
    Case(
        "black hole mid-query",
        black_hole_mid_query,
        OperationalError,
        "longer than DB_COMMAND_TIMEOUT",
        credentials={"command_timeout": COMMAND_S, "timeout": 30.0},
    ),
    Case("black hole idle", black_hole_idle, guards={"pre_ping_idle_s": 0.0, "acquire_timeout_s": 10.0}),
    Case("black hole and an impatient caller", black_hole_and_an_impatient_caller, TimeoutError),
    Case(
        "black hole mid-transaction",
        black_hole_mid_transaction,
        OperationalError,
        "longer than DB_COMMAND_TIMEOUT",
        credentials={"command_timeout": COMMAND_S, "timeout": 30.0},
    ),
    Case("black hole mid-connect", black_hole_mid_connect, DBConnectionError, "cannot connect: no answer in time"),
    Case(
        "black hole mid-connect, acquire deadline first",
        connect_later_than_the_acquire_deadline,
        DBConnectionError,
        r"could not be opened within 0.3 s \(DB_POOL_TIMEOUT\).*does the database answer",
        guards={"acquire_timeout_s": 0.3},
        credentials={"timeout": 30.0},
    ),
    Case("slow connect", slow_connect),
    Case("too slow connect", too_slow_connect, DBConnectionError, "cannot connect: no answer in time"),
    Case("connection refused", refused, DBConnectionError, "cannot connect: .*(refused|Connect call failed)"),
    Case(
        "connection refused for a moment, read",
        read_while_refused_for_a_moment,
        credentials={"timeout": 10.0},
    ),
    Case("connection refused, read", read_while_refused, DBConnectionError, "cannot connect: .*(refused|Connect call)"),
    Case(
        "black hole mid-connect, read", read_into_a_black_hole, DBConnectionError, "cannot connect: no answer in time"
    ),
    Case(
        "DNS failure",
        dns_failure,
        DBConnectionError,
        "cannot connect: .*([Nn]ame|nodename|host)",
        credentials={"host": ["127.0.0.1", "database.invalid"]},
    ),
    Case(
        "53300",
        too_many_clients,
        TooManyClients,
        r"with 1 of its 3 connections cannot connect: too many connections.*DB_POOL_MAX.*the server has \d+",
    ),
    Case("password rotated", password_rotated, DBConnectionError, "cannot connect: password authentication failed"),
    Case("full pool", full_pool, PoolTimeout, rf"{NAME}.* 1 s .*limit=3.*in use=3.*waiting=.*'miser' for .* s"),
    Case(
        "saturated pool",
        saturated_pool,
        PoolSaturated,
        rf"{NAME}.*DB_POOL_MAX_WAITING.*limit=3",
        guards={"max_waiting": 1},
    ),
    Case("nested acquire", nested_acquire, PoolTimeout, "held by this same task.*end its transaction"),
    Case("resize when idle", resized_when_idle, guards={"elastic": True}),
    Case("resize when somebody waits", resized_when_awaited, guards={"elastic": True, "acquire_timeout_s": 10.0}),
    Case("resize under load", resized_under_load, guards={"elastic": True}),
    Case("close under load", closed_under_load, PoolClosed, NAME),
    Case("close while somebody waits", closed_while_somebody_waits, PoolClosed, NAME),
    Case("close upon a long query", closed_upon_those_who_stay, DBConnectionError, "lost|closed"),
]


async def play(case: Case, stage: Stage) -> None:
    """The case, and the check that is the same for all."""
    guards = {"acquire_timeout_s": ACQUIRE_S} | case.guards
    hosts = case.credentials.get("host")
    credentials: dict[str, Any] = {
        "port": stage.proxy.listens_on if hosts is None else [stage.proxy.listens_on] * len(hosts),
        "user": stage.role,
        "password": lambda: stage.password,
        "maxsize": LIMIT,
        "timeout": CONNECT_S,
        "command_timeout": None,
    }
    async with open_tortoise(stage.direct, guards=guards, **credentials | case.credentials) as stage.client:
        error = await case.inject(stage)
        if case.error is None:
            assert error is None
        elif case.certain or error is not None:
            with pytest.raises(case.error, match=case.text or None) as caught:
                raise error or AssertionError("nobody noticed")
            assert type(caught.value) is case.error
            assert "\n" not in str(error)
            assert stage.password not in str(error)
            if case.error is not PoolClosed and case.error is not PoolSaturated:
                assert caught.value.__cause__ is not None
        await stage.check_whole()
    await stage.check_gone()


@pytest.fixture
async def role(environ: Environ) -> AsyncIterator[str]:
    """An ordinary role of this test's own, with the password `pw-of-` and its name."""
    name = f"ordinary_{environ['DB_NAME']}"
    async with connect(Settings.load("poolctl", environ)) as connection:
        await connection.execute(_create_role(name))
        yield name
        await connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def _create_role(name: str) -> str:
    return (
        f"CREATE ROLE {name} LOGIN PASSWORD 'pw-of-{name}';"
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name};"
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}"
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_after_a_fault_the_pool_is_whole(environ: Environ, role: str, case: Case) -> None:
    """The victim is told what happened, in time and in Tortoise's words; then all places are back, none is stray."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        await play(case, Stage(environ, proxy, role, f"pw-of-{role}"))


# --- a server that restarts ---


class PrivateServer:
    """A PostgreSQL of one test alone, which may stop and start while the event loop runs."""

    def __init__(self, directory: Path, servers: LocalServers, tether: Tether) -> None:
        self._directory, self._servers, self._tether = directory, servers, tether
        self._stack = contextlib.ExitStack()
        # Servers end with the thread that started them: one thread, as long as the test takes.
        self._thread = ThreadPoolExecutor(1)
        self.running: PostgresServer | None = None

    @property
    def environ(self) -> Environ:
        """The variables that lead to it, as superuser."""
        assert self.running is not None
        return self._servers.environ(DATABASE) | {"DB_PORT": str(self.running.port)}

    async def start(self) -> None:
        """Start it, on any port."""
        self.running = await self._in_thread(self._start)

    async def stop(self) -> None:
        """Fast shutdown."""
        await self._in_thread(self._stack.close)

    async def close(self) -> None:
        """Stop it for good."""
        await self.stop()
        self._thread.shutdown()

    def _start(self) -> PostgresServer:
        prepare(self._directory)
        return self._stack.enter_context(
            open_postgres(
                self._directory,
                self._servers.postgres.binary,
                self._tether,
                lock=self._stack.enter_context(locked(self._directory)),
                password=self._servers.database_password,
                max_connections=30,
                durable=False,
                account=server_account("postgres", "nobody"),
            )
        )

    async def _in_thread(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)


async def _restart(stage: Stage) -> None:
    assert stage.server is not None
    await stage.server.stop()
    await stage.server.start()
    stage.direct = stage.direct | stage.server.environ
    stage.proxy.port = int(stage.direct["DB_PORT"])


async def restarted_idle(stage: Stage) -> BaseException | None:
    await stage.warm()
    await _restart(stage)
    return await stage.outcome(asyncio.gather(*(read() for _ in range(2 * LIMIT))), within_s=0)


async def restarted_under_readers(stage: Stage) -> BaseException | None:
    over = False

    async def go_on_reading() -> None:
        while not over:
            await read()

    readers = [asyncio.create_task(go_on_reading()) for _ in range(2 * LIMIT)]
    await until(lambda: stage.client.pool.snapshot().acquires > 20)
    await _restart(stage)
    over = True
    return await stage.outcome(asyncio.gather(*readers), within_s=0)


async def restarted_in_a_transaction(stage: Stage) -> BaseException | None:
    async def transact() -> None:
        async with in_transaction():
            await Subscriber.create(chat="before")
            await _restart(stage)
            await Subscriber.create(chat="after")

    transacting = asyncio.create_task(transact())
    error = await stage.outcome(transacting, within_s=60)
    assert await Subscriber.all().count() == 0
    return error


async def crashed(stage: Stage) -> BaseException | None:
    await stage.warm()
    async with stage.client.acquire_connection() as connection:
        os.kill(connection.get_server_pid(), signal.SIGKILL)  # upon which the server ends all others and recovers
    return await stage.outcome(asyncio.gather(*(read() for _ in range(2 * LIMIT))), within_s=5)


async def stopped(stage: Stage) -> BaseException | None:
    assert stage.server is not None
    await stage.warm()
    await stage.server.stop()
    error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=ACQUIRE_S)
    await _restart(stage)
    return error


PATIENT = {"timeout": 30.0}
RESTARTS = [
    Case("restarted, read", restarted_idle),
    Case("restarted under readers", restarted_under_readers, credentials=PATIENT, guards={"acquire_timeout_s": 30.0}),
    Case("restarted in a transaction", restarted_in_a_transaction, DBConnectionError, "lost: .*closed|terminating"),
    Case("crashed", crashed, credentials=PATIENT, guards={"acquire_timeout_s": 30.0}),
    Case("stopped", stopped, DBConnectionError, "cannot connect"),
]


@pytest.mark.slow
async def test_after_a_restart_of_the_server_the_pool_is_whole(
    data_folder: Path, servers: LocalServers, tether: Tether
) -> None:
    """The same for a server that stops and comes back; readers wait for it."""
    server = PrivateServer(data_folder / "restarted", servers, tether)
    try:
        await server.start()
        await migrate(Settings.load("poolctl", server.environ))
        async with connect(Settings.load("poolctl", server.environ)) as connection:
            await connection.execute(_create_role("ordinary"))
        for case in RESTARTS:
            async with open_proxy(server.environ["DB_HOST"], server.environ["DB_PORT"]) as proxy:
                await play(case, Stage(server.environ, proxy, "ordinary", "pw-of-ordinary", server=server))
    finally:
        await server.close()


# --- a pooler that pauses and restarts ---


async def pooler_paused(stage: Stage) -> BaseException | None:
    assert stage.pgbouncer is not None
    await stage.warm()
    await asyncio.to_thread(stage.pgbouncer.pause)
    asking = [asyncio.create_task(stage.client.execute_query("SELECT 1")) for _ in range(2 * LIMIT)]
    waiting = "cl_waiting"

    def waits() -> bool:
        assert stage.pgbouncer is not None
        return sum(pool[waiting] for pool in stage.pgbouncer.ask("SHOW POOLS")) == LIMIT

    await until(waits, what="queries wait in the pooler")
    await asyncio.to_thread(stage.pgbouncer.resume)
    return await stage.outcome(asyncio.gather(*asking), within_s=0)


async def pooler_paused_for_too_long(stage: Stage) -> BaseException | None:
    assert stage.pgbouncer is not None
    await stage.warm()
    await asyncio.to_thread(stage.pgbouncer.pause)
    error = await stage.outcome(stage.client.execute_query("SELECT 1"), within_s=2.0)  # query_wait_timeout + its tick
    await asyncio.to_thread(stage.pgbouncer.resume)
    return error


async def pooler_restarted(stage: Stage) -> BaseException | None:
    assert stage.pgbouncer is not None
    await stage.warm()
    stage.pgbouncer.restart()
    return await stage.outcome(asyncio.gather(*(read() for _ in range(2 * LIMIT))), within_s=0)


async def pooler_restarted_in_a_transaction(stage: Stage) -> BaseException | None:
    async def transact() -> None:
        async with in_transaction():
            await Subscriber.create(chat="before")
            assert stage.pgbouncer is not None
            stage.pgbouncer.restart()
            await Subscriber.create(chat="after")

    error = await stage.outcome(transact(), within_s=5)
    assert await Subscriber.all().count() == 0
    return error


POOLER = [
    Case("pooler paused", pooler_paused, guards={"acquire_timeout_s": 10.0}),
    Case("pooler paused for too long", pooler_paused_for_too_long, DBConnectionError, "lost: .*query_wait_timeout"),
    Case("pooler restarted", pooler_restarted),
    Case("pooler restarted in a transaction", pooler_restarted_in_a_transaction, DBConnectionError, "lost"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", POOLER, ids=lambda case: case.name)
async def test_after_a_fault_of_the_pooler_the_pool_is_whole(
    environ: Environ, role: str, case: Case, data_folder: Path, tether: Tether
) -> None:
    """The same with PgBouncer, in transaction mode, between proxy and server."""
    password = f"pw-of-{role}"
    with open_pgbouncer(
        environ, data_folder, tether, users={role: password}, settings={"query_wait_timeout": 1}
    ) as pgbouncer:
        async with open_proxy(pgbouncer.host, pgbouncer.port) as proxy:
            await play(case, Stage(environ, proxy, role, password, pgbouncer=pgbouncer))


# --- callers that are cancelled ---

CANCELLATIONS = 160  # of each kind
AT_ONCE = 2 * LIMIT


@dataclass
class Sweep:
    """Callers, each cancelled a little later in its work than the one before; what became of them."""

    client: Any
    reached: Counter[str] = field(default_factory=Counter)  # how far they had come when they were cancelled
    finished: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)  # cancelled when everything was done but COMMIT and release

    async def transact(self, number: int) -> None:
        """BEGIN, INSERT, COMMIT, release."""
        chat, place = f"{number}", "BEGIN"
        try:
            async with in_transaction():
                place = "INSERT"
                await Subscriber.create(chat=chat)
                place = "COMMIT"
        except asyncio.CancelledError:
            self.reached[place] += 1
            if place == "COMMIT":
                self.leaving.add(chat)
            raise
        self.finished.add(chat)

    async def read(self, number: int) -> None:
        """What the ORM reads."""
        try:
            await Subscriber.filter(chat=f"{number}").count()
        except asyncio.CancelledError:
            self.reached["read"] += 1
            raise

    async def reset(self, number: int) -> None:
        """A connection in the user's hands, which must be reset at release."""
        place = "acquire"
        try:
            async with self.client.acquire_connection() as connection:
                place = "SET"
                await connection.execute("SET work_mem = '8MB'")
                place = "reset"
        except asyncio.CancelledError:
            self.reached[place] += 1
            raise

    async def reconnect(self, number: int) -> None:
        """A connection that has to be opened first."""
        await self.client.pool.expire_connections()
        place = "connect"
        try:
            async with self.client.acquire_connection():
                place = "release"
        except asyncio.CancelledError:
            self.reached[place] += 1
            raise

    async def run(self, work: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        """Runs `work` CANCELLATIONS times and more, AT_ONCE at a time, and checks the pool after each time."""
        started = time.monotonic()
        await asyncio.gather(*(work(-number) for number in range(1, AT_ONCE + 1)))
        whole_s = time.monotonic() - started
        cancelled = 0
        for number in itertools.count(step=AT_ONCE):
            tasks = [asyncio.create_task(work(number + each)) for each in range(AT_ONCE)]
            for each, task in enumerate(tasks):
                # a stride that is prime to the count: callers of one time are cancelled at different places
                share = (number + each) * 37 % CANCELLATIONS / CANCELLATIONS
                asyncio.get_running_loop().call_later(share * whole_s, task.cancel)
            async with asyncio.timeout(10):
                results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}, results
            cancelled += sum(task.cancelled() for task in tasks)
            assert await free_slots(self.client, LIMIT) == LIMIT
            now = self.client.pool.snapshot()
            assert (now.in_use, now.waiting) == (0, 0)
            if cancelled >= CANCELLATIONS:
                return
            assert number < 10 * CANCELLATIONS, "they were too fast to be cancelled"


@pytest.mark.slow
async def test_cancelled_at_any_await_nobody_takes_a_place_along(environ: Environ, role: str) -> None:
    """640 cancellations, swept through acquire, connect, ping, BEGIN, query, COMMIT, reset and release."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        proxy.delay_s = 0.001
        stage = Stage(environ, proxy, role, f"pw-of-{role}")
        guards = {"acquire_timeout_s": 10.0, "pre_ping_idle_s": 0.0}
        credentials = {"port": proxy.listens_on, "user": role, "password": stage.password, "maxsize": LIMIT}
        async with open_tortoise(environ, guards=guards, **credentials) as stage.client:
            sweep = Sweep(stage.client)
            for work in (sweep.transact, sweep.read, sweep.reset, sweep.reconnect):
                await sweep.run(work)
            rows = set(await Subscriber.all().values_list("chat", flat=True))
            assert sweep.finished <= rows <= sweep.finished | sweep.leaving
            for place in ("BEGIN", "INSERT", "COMMIT", "read", "acquire", "SET", "reset", "connect"):
                assert sweep.reached[place] >= 5, sweep.reached
            await stage.check_whole()
        await stage.check_gone()


async def hold(client: Any, over: asyncio.Event) -> None:
    """A connection in the user's hands: the way back is asyncpg's."""
    async with client.acquire_connection():
        await over.wait()


async def hold_in_a_transaction(client: Any, over: asyncio.Event) -> None:
    """A connection in the engine's hands: it is passed on."""
    async with in_transaction():
        await over.wait()


@pytest.mark.parametrize("holding", [hold, hold_in_a_transaction])
async def test_cancelled_in_the_moment_of_being_served_nobody_takes_a_place_along(
    environ: Environ, holding: Callable[[Any, asyncio.Event], Coroutine[Any, Any, None]]
) -> None:
    """The only connection comes back, and who waits for it is cancelled so many steps of the event loop later."""
    async with open_tortoise(environ, guards={"acquire_timeout_s": ACQUIRE_S}, minsize=1, maxsize=1) as client:
        for steps in range(30):
            over = asyncio.Event()
            holder = asyncio.create_task(holding(client, over))
            await until(lambda: client.pool.snapshot().in_use == 1, poll_s=0)
            waiter = asyncio.create_task(client.execute_query("SELECT 1"))
            await until(lambda: client.pool.snapshot().waiting == 1, poll_s=0)
            over.set()
            if steps % 2:  # the same, but counted from the moment that the place is the waiter's
                await until(lambda: client.pool.snapshot().waiting == 0, poll_s=0)
            for _ in range(steps // 2):
                await asyncio.sleep(0)
            waiter.cancel()
            await asyncio.gather(holder, waiter, return_exceptions=True)
            assert await free_slots(client, 1) == 1


# --- connections that break at any byte ---


def _bytes() -> Iterator[tuple[str, int]]:
    yield from itertools.product(("client", "server"), range(0, 130, 3))


@pytest.mark.slow
async def test_cut_off_at_any_byte_a_read_works_and_a_write_is_not_done_twice(environ: Environ, role: str) -> None:
    """Through the messages of a read and of a transaction, in both directions."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        stage = Stage(environ, proxy, role, f"pw-of-{role}")
        credentials = {"port": proxy.listens_on, "user": role, "password": stage.password, "maxsize": LIMIT}
        async with open_tortoise(environ, guards={"acquire_timeout_s": ACQUIRE_S}, **credentials) as stage.client:
            stored = 0
            for number, (towards, count) in enumerate(_bytes()):
                proxy.cut_after(count, towards)  # type: ignore[arg-type]
                assert await Subscriber.filter(chat="nobody").count() == 0
                proxy.cut_after(count, towards)  # type: ignore[arg-type]
                error = await stage.outcome(subscribe(str(number)), within_s=0)
                assert error is None or type(error) is DBConnectionError, repr(error)
                proxy.cut_after(10**9, towards)  # type: ignore[arg-type]
                now_stored = await Subscriber.all().count()
                assert now_stored - stored == 1 if error is None else now_stored - stored in (0, 1)
                stored = now_stored
                await stage.check_whole()
        await stage.check_gone()
