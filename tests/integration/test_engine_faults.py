"""Everything that breaks between the pool and the server, one case after the other, and the same check after each.

The faults are real: a TCP proxy before a real server, and backends that are killed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from tortoise.exceptions import DBConnectionError, OperationalError
from tortoise.transactions import in_transaction

from config import Settings
from db import connect
from db.models import Subscriber
from pool.errors import TooManyClients
from tests.engine_stage import ACQUIRE_S, COMMAND_S, CONNECT_S, LIMIT, Case, Stage, play, read
from tests.engines import kill_backends, open_tortoise, subscribe
from tests.proxy import open_proxy
from tests.waiting import until

Environ = dict[str, str]

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
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_after_a_fault_the_pool_is_whole(environ: Environ, ordinary_role: str, case: Case) -> None:
    """The victim is told what happened, in time and in Tortoise's words; then all places are back, none is stray."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        await play(case, Stage(environ, proxy, ordinary_role, f"pw-of-{ordinary_role}"))


# --- connections that break at any byte ---


def _bytes() -> Iterator[tuple[str, int]]:
    yield from itertools.product(("client", "server"), range(0, 130, 3))


@pytest.mark.slow
async def test_cut_off_at_any_byte_a_read_works_and_a_write_is_not_done_twice(
    environ: Environ, ordinary_role: str
) -> None:
    """Through the messages of a read and of a transaction, in both directions."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        stage = Stage(environ, proxy, ordinary_role, f"pw-of-{ordinary_role}")
        credentials = {"port": proxy.listens_on, "user": stage.role, "password": stage.password, "maxsize": LIMIT}
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
