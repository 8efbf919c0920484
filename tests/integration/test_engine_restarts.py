"""A server that restarts, a pooler that pauses or restarts, and the same check after each as after other faults."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tortoise.exceptions import DBConnectionError
from tortoise.transactions import in_transaction

from config import Settings
from db import migrate
from db.models import Subscriber
from local import LocalServers, Tether
from tests.engine_stage import ACQUIRE_S, LIMIT, Case, Stage, play, read
from tests.pgbouncer import open_pgbouncer
from tests.private_server import PrivateServer
from tests.proxy import open_proxy
from tests.superuser import create_role
from tests.waiting import until

Environ = dict[str, str]

pytestmark = pytest.mark.slow

# --- the server ---


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


async def test_after_a_restart_of_the_server_the_pool_is_whole(
    data_folder: Path, servers: LocalServers, tether: Tether
) -> None:
    """A server stops and comes back: all places are there, none is stray, and readers have waited for it."""
    server = PrivateServer(data_folder / "restarted", servers, tether)
    try:
        await server.start()
        await migrate(Settings.load("poolctl", server.environ))
        await create_role(server.environ, "ordinary")
        for case in RESTARTS:
            async with open_proxy(server.environ["DB_HOST"], server.environ["DB_PORT"]) as proxy:
                await play(case, Stage(server.environ, proxy, "ordinary", "pw-of-ordinary", server=server))
    finally:
        await server.close()


# --- the pooler ---


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


@pytest.mark.parametrize("case", POOLER, ids=lambda case: case.name)
async def test_after_a_fault_of_the_pooler_the_pool_is_whole(
    environ: Environ, ordinary_role: str, case: Case, data_folder: Path, tether: Tether
) -> None:
    """The same with PgBouncer's faults, in transaction mode, between proxy and server."""
    password = f"pw-of-{ordinary_role}"
    with open_pgbouncer(
        environ, data_folder, tether, users={ordinary_role: password}, settings={"query_wait_timeout": 1}
    ) as pgbouncer:
        async with open_proxy(pgbouncer.host, pgbouncer.port) as proxy:
            await play(case, Stage(environ, proxy, ordinary_role, password, pgbouncer=pgbouncer))
