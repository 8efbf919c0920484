from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bot.commands import commands
from bot.router import Message, Router
from bot.runner import TOLD
from config import Settings
from db.server import connect
from fleet.process import Process, open_process
from tests.proxy import open_proxy


@pytest.fixture
async def process(environ: dict[str, str]) -> AsyncIterator[Process]:
    """An open bot process with a pool of one connection."""
    one = {"DB_POOL_MIN": "1", "DB_POOL_MAX": "1", "DB_POOL_TIMEOUT": "0.3", "DB_POOL_PRE_PING": "false"}
    async with open_process(Settings.load("bot", environ | one)) as opened:
        yield opened


async def ask(process: Process, text: str) -> list[str]:
    router = Router(commands(process), told=TOLD)
    return [reply.text async for reply in router.answer(Message(text, sender="ada", chat="ops"))]


async def test_connections_by_application_and_state(process: Process, environ: dict[str, str]) -> None:
    """/connections tells sessions of one application apart by their state."""
    named = Settings.load("poolctl", environ | {"DB_APPLICATION_NAME": "tester"})
    async with connect(named), connect(named) as busy, busy.transaction():
        await busy.execute("SELECT 1")
        (text,) = await ask(process, "/connections")
    rows = [line.rsplit(maxsplit=1) for line in text.splitlines()]
    seen = {" ".join(name.split()): count for name, count in rows if name.startswith("tester")}
    assert seen == {"tester idle": "1", "tester idle in transaction": "1"}


async def test_pool_that_is_in_use(process: Process) -> None:
    """With every connection in use, /status still shows the processes, then says what to do about the pool."""
    async with process.database.client.acquire_connection():
        processes, failure = await ask(process, "/status")
    assert "bot " in processes
    assert failure.startswith("/status failed: pool ")
    assert "DB_POOL_TIMEOUT" in failure


async def test_database_that_goes_away(environ: dict[str, str]) -> None:
    """While the database is away /status shows the processes and one line that names it; afterwards all is well."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        by_proxy = environ | {"DB_PORT": str(proxy.listens_on), "DB_POOL_TIMEOUT": "5"}
        async with open_process(Settings.load("bot", by_proxy)) as process:
            await proxy.stop()
            processes, failure = await ask(process, "/status")
            assert "bot " in processes
            assert failure.startswith(f"/status failed: postgres@127.0.0.1:{proxy.listens_on}/")
            assert "\n" not in failure
            await proxy.start()
            _, connections = await ask(process, "/status")
            assert "application" in connections


async def test_redis_that_goes_away(environ: dict[str, str]) -> None:
    """While Redis is away a command is one line that names it, and commands about the database still work."""
    async with open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as proxy:
        by_proxy = environ | {"REDIS_PORT": str(proxy.listens_on)}
        async with open_process(Settings.load("bot", by_proxy)) as process:
            await proxy.stop()
            failure = (await ask(process, "/exercise"))[-1]
            assert failure.startswith(f"/exercise failed: Redis at default@127.0.0.1:{proxy.listens_on}/0 ")
            assert "\n" not in failure
            (connections,) = await ask(process, "/connections")
            assert "application" in connections
            await proxy.start()
            (processes, _) = await ask(process, "/status")
            assert "bot " in processes


async def test_role_that_sees_no_states(environ: dict[str, str]) -> None:
    """A role that may not see others' sessions is shown their number with a hidden state."""
    async with connect(Settings.load("poolctl", environ)) as admin:
        await admin.execute("DROP ROLE IF EXISTS plain")
        await admin.execute("CREATE ROLE plain LOGIN PASSWORD 'plain-role-password'")
        await admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain")
        plain = environ | {"DB_USER": "plain", "DB_PASSWORD": "plain-role-password", "DB_POOL_MIN": "1"}
        async with open_process(Settings.load("bot", plain)) as process:
            (text,) = await ask(process, "/connections")
        await admin.execute("DROP OWNED BY plain")
        await admin.execute("DROP ROLE plain")
    assert "(hidden)" in text
    assert "bot@" in text
