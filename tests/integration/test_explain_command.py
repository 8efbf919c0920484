"""/explain and /jobs of an open bot process."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator

import pytest

from bot.command import Message, Reply
from bot.explain_command import NO_SUGGESTIONS
from bot.markup import messages
from bot.runner import build_router
from config import Settings
from db.explain import SPARE_S, STATEMENT_TIMEOUT_S
from db.server import connect
from fleet.dead_letters import read_dead
from fleet.jobs import enqueue
from fleet.process import Process, open_process
from tests.conftest import Environ
from tests.job_fleet import open_job_fleet
from tests.job_worker import TROUBLE, WORK, Trouble, Work
from tests.processes import Spawner
from tests.proxy import open_proxy
from tests.waiting import until


@pytest.fixture
async def process(environ: Environ) -> AsyncIterator[Process]:
    """An open bot process with a pool of one connection."""
    one = {"DB_POOL_MIN": "1", "DB_POOL_MAX": "1", "DB_POOL_TIMEOUT": "0.3", "DB_POOL_PRE_PING": "false"}
    async with open_process(Settings.load("bot", environ | one)) as opened:
        yield opened


async def replies(process: Process, text: str) -> list[Reply]:
    answer = build_router(process).answer(Message(text, sender="ada", chat="ops"))
    return [reply async for reply in answer if not reply.progress]


async def test_explain(process: Process, environ: Environ) -> None:
    """The plan in monospace, then what may make it faster; a message of several lines is fine."""
    async with connect(Settings.load("poolctl", environ)) as admin:
        await admin.execute("CREATE TABLE orders AS SELECT n AS id FROM generate_series(1, 30000) AS n; ANALYZE orders")
    plan, found = await replies(process, "/explain SELECT *\nFROM orders\nWHERE id < 5 AND 1 < 2;")
    assert plan.monospace
    assert plan.text.startswith("Seq Scan on orders  rows ")
    assert "filter: (id < 5)" in plan.text
    assert not found.monospace
    assert "CREATE INDEX ON public.orders (id)" in found.text
    _, nothing = await replies(process, "/explain select 1")
    assert nothing.text == NO_SUGGESTIONS


async def test_explain_of_what_telegram_cannot_show(process: Process) -> None:
    """A long plan with markup in it becomes a few messages at most."""
    union = " UNION ALL ".join(f"SELECT '<b>&{n}' WHERE random() < {n}" for n in range(150))
    plan, _ = await replies(process, f"/explain {union}")
    assert "more lines" in plan.text
    assert len(messages(plan)) <= 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/explain", "give a SELECT"),
        ("/explain DROP TABLE fleet_alert", "this begins with DROP"),
        ("/explain SELECT 1; DROP TABLE fleet_alert", "multiple commands"),
        ("/explain SELECT * FROM fleet_alert FOR UPDATE", "leave out FOR UPDATE"),
        ("/explain SELECT * FROM nowhere", 'relation "nowhere" does not exist'),
    ],
)
async def test_explain_refuses(process: Process, text: str, reason: str) -> None:
    """Anything but one SELECT is one line with the reason and the usage, and no failure."""
    (reply,) = await replies(process, text)
    assert reason in reply.text
    assert reply.text.endswith(". Usage: /explain <select>")
    assert "\n" not in reply.text


async def test_explain_on_a_full_pool(process: Process) -> None:
    """With every connection in use, /explain says what to do about the pool."""
    async with process.database.client.acquire_connection():
        (reply,) = await replies(process, "/explain SELECT 1")
    assert reply.text.startswith("/explain failed: pool ")


async def test_explain_without_a_database(environ: Environ) -> None:
    """While the database is away, /explain is one line that names it."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        by_proxy = environ | {"DB_PORT": str(proxy.listens_on), "DB_POOL_TIMEOUT": "5"}
        async with open_process(Settings.load("bot", by_proxy)) as process:
            await proxy.stop()
            (reply,) = await replies(process, "/explain SELECT 1")
    assert reply.text.startswith(f"/explain failed: postgres@127.0.0.1:{proxy.listens_on}/")
    assert "\n" not in reply.text


@pytest.mark.slow
@pytest.mark.parametrize("pre_ping", ["true", "false"])
async def test_explain_with_a_silent_database(environ: Environ, pre_ping: str) -> None:
    """A database that says nothing any more is one line that names it, long before the command's deadline."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        by_proxy = environ | {"DB_PORT": str(proxy.listens_on), "DB_POOL_PRE_PING": pre_ping}
        async with open_process(Settings.load("bot", by_proxy)) as process:
            proxy.deaf = True
            proxy.freeze()
            began = time.monotonic()
            (reply,) = await replies(process, "/explain SELECT 1")
            took_s = time.monotonic() - began
            proxy.deaf = False
            proxy.cut()
    assert reply.text.startswith(f"/explain failed: postgres@127.0.0.1:{proxy.listens_on}/")
    assert f"within {STATEMENT_TIMEOUT_S + SPARE_S:g} s" in reply.text
    assert took_s < 2 * (STATEMENT_TIMEOUT_S + SPARE_S)


async def test_jobs_of_an_idle_queue(process: Process) -> None:
    """An empty queue is five lines."""
    (reply,) = await replies(process, "/jobs")
    assert reply.monospace
    name = process.settings.worker.queue
    assert [line.split() for line in reply.text.splitlines()] == [
        ["queue", name],
        ["due", "0"],
        ["running", "0"],
        ["deferred", "0"],
        ["dead", "0"],
    ]


async def test_jobs(process: Process, environ: Environ, spawn: Spawner) -> None:
    """/jobs tells what is due, runs, is deferred, and what died of what, of a real worker."""
    async with open_job_fleet(environ, spawn) as fleet:
        worker = await fleet.start()
        for number in range(7):
            await enqueue(process.queue, TROUBLE, Trouble(key=f"bad-{number}"), job_id=f"bad-{number}")
        await until(lambda: _dead(process, 7), what="seven dead jobs")
        await enqueue(process.queue, WORK, Work(key="long", seconds=60.0), job_id="long")
        await enqueue(process.queue, WORK, Work(key="later"), after_s=3600.0)

        async def shown() -> tuple[str, str] | None:
            queue, dead = (reply.text for reply in await replies(process, "/jobs"))
            return (queue, dead) if re.search(rf"^long +worker@\S+:{worker.pid}$", queue, re.MULTILINE) else None

        queue, dead = await until(shown, what="the long job runs") or ("", "")
    assert re.search(r"^running +[1-9]$", queue, re.MULTILINE)
    assert re.search(r"^deferred +[1-9]$", queue, re.MULTILINE)
    assert re.search(r"^dead +7$", queue, re.MULTILINE)
    assert dead.startswith("the last 5 of 7 dead jobs\n")
    reasons = re.findall(r' trouble {"key": "bad-\d", "kind": "raise"}\n  ValueError: a job\'s own error', dead)
    assert len(reasons) == 5


async def _dead(process: Process, expected: int) -> bool:
    count, _ = await read_dead(process.queue)
    return count == expected


async def test_jobs_without_redis(environ: Environ) -> None:
    """While Redis is away, /jobs is one line that names it."""
    async with (
        open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as proxy,
        open_process(Settings.load("bot", environ | {"REDIS_PORT": str(proxy.listens_on)})) as process,
    ):
        await proxy.stop()
        (reply,) = await replies(process, "/jobs")
        await proxy.start()
    assert reply.text.startswith(f"/jobs failed: Redis at default@127.0.0.1:{proxy.listens_on}/0 ")
    assert "\n" not in reply.text
