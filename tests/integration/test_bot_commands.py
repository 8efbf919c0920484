from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bot.command import Message
from bot.runner import build_router
from bot.subscribers import subscribe, subscribers
from config import Settings
from db import migrate
from db.server import connect
from fleet.app import load_app
from fleet.process import Process, open_process
from tests.proxy import open_proxy


@pytest.fixture
async def process(environ: dict[str, str]) -> AsyncIterator[Process]:
    """An open bot process with a pool of one connection."""
    one = {"DB_POOL_MIN": "1", "DB_POOL_MAX": "1", "DB_POOL_TIMEOUT": "0.3", "DB_POOL_PRE_PING": "false"}
    async with open_process(Settings.load("bot", environ | one)) as opened:
        yield opened


async def ask(process: Process, text: str) -> list[str]:
    replies = build_router(process).answer(Message(text, sender="ada", chat="ops"))
    return [reply.text async for reply in replies if not reply.progress]


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


@pytest.fixture
async def reminding(environ: dict[str, str]) -> dict[str, str]:
    """With an app that has commands of its own: /remind stores a row and enqueues a job."""
    reminding = environ | {"APP": "examples.reminder", "REDIS_SOCKET_TIMEOUT": "1", "DB_POOL_TIMEOUT": "3"}
    settings = Settings.load("poolctl", reminding)
    await migrate(settings, apps=load_app(settings).tables)
    return reminding


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "gone"])
@pytest.mark.parametrize("server", ["REDIS", "DB"])
async def test_command_of_an_app_in_an_outage(reminding: dict[str, str], server: str, frozen: bool) -> None:
    """While Redis or the database is away, a command of an app is one line that names it, too."""
    async with open_proxy(reminding[f"{server}_HOST"], reminding[f"{server}_PORT"]) as proxy:
        by_proxy = reminding | {f"{server}_PORT": str(proxy.listens_on), "DB_COMMAND_TIMEOUT": "2"}
        async with open_process(Settings.load("bot", by_proxy)) as process:
            if frozen:
                proxy.deaf = True
                proxy.freeze()
            else:
                await proxy.stop()
            (failure,) = await ask(process, "/remind 1h tea")
            proxy.deaf = False
            proxy.cut()
    who = f"Redis at default@127.0.0.1:{proxy.listens_on}/0 does not answer (" if server == "REDIS" else "postgres@"
    assert failure.startswith(f"/remind failed: {who}")
    assert f"@127.0.0.1:{proxy.listens_on}/" in failure
    assert "\n" not in failure


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


async def test_settings(environ: dict[str, str]) -> None:
    """/settings shows what is in force and where it came from, secrets masked; with words only what they are in."""
    variables = environ | {"DB_POOL_MAX": "7", "BOT_TOKEN": "1234:verysecret"}
    async with open_process(Settings.load("bot", variables)) as process:
        (everything,) = await ask(process, "/settings")
        (some,) = await ask(process, "/settings pool_m")
        (none,) = await ask(process, "/settings nonsense")
    lines = {line.split()[0]: line.split() for line in everything.splitlines()}
    assert lines["DB_POOL_MAX"] == ["DB_POOL_MAX", "7", "environment"]
    assert lines["DB_POOL_TIMEOUT"][1:] == ["30", "default"]
    assert lines["DB_PASSWORD"][1] == lines["BOT_TOKEN"][1] == lines["REDIS_PASSWORD"][1] == "***"
    assert "verysecret" not in everything
    names = ["DB_POOL_MIN", "DB_POOL_MAX", "DB_POOL_MAX_WAITING", "DB_POOL_MODE"]
    assert [line.split()[0] for line in some.splitlines()[1:]] == names
    assert none == "no setting has nonsense in its name. Usage: /settings [part of a name]"


async def test_subscribe_and_unsubscribe(process: Process) -> None:
    """A chat subscribes once and unsubscribes once, and is told; other chats stay."""
    await subscribe("telegram:7")
    assert await ask(process, "/subscribe") == ["This chat gets alerts from now on."]
    assert await ask(process, "/subscribe") == ["This chat gets alerts already."]
    assert await subscribers() == ["telegram:7", "ops"]
    assert await ask(process, "/unsubscribe") == ["This chat gets no alerts any more."]
    assert await ask(process, "/unsubscribe") == ["This chat did not get alerts."]
    assert await subscribers() == ["telegram:7"]


async def test_subscribe_many_times_at_once(environ: dict[str, str]) -> None:
    """Of many that subscribe one chat at the same time one is the first, and none fails."""
    async with open_process(Settings.load("bot", environ)):
        assert sorted(await asyncio.gather(*(subscribe("telegram:8") for _ in range(8)))) == [False] * 7 + [True]
        assert await subscribers() == ["telegram:8"]


@pytest.mark.slow
async def test_subscribe_without_a_database(environ: dict[str, str]) -> None:
    """While the database is away, /subscribe is one line that names it."""
    async with open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as proxy:
        by_proxy = environ | {"DB_PORT": str(proxy.listens_on), "DB_POOL_TIMEOUT": "5"}
        async with open_process(Settings.load("bot", by_proxy)) as process:
            await proxy.stop()
            (failure,) = await ask(process, "/subscribe")
    assert failure.startswith(f"/subscribe failed: postgres@127.0.0.1:{proxy.listens_on}/")
    assert "\n" not in failure
