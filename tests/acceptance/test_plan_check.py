"""PLAN_CHECK: a process that would make the fleet too large for the server says so, or does not start."""

from __future__ import annotations

import asyncio
import signal

import pytest
import redis

from config import Settings
from db import connect
from fleet.queue import open_queue
from fleet.registry import Identity, Registry, read_fleet
from pool import PoolSnapshot
from tests.conftest import Environ
from tests.processes import Spawner
from tests.proxy import open_proxy
from tests.waiting import until, wait_until

pytestmark = pytest.mark.slow  # a fleet of its own for each


def test_share_is_logged(environ: Environ, spawn: Spawner) -> None:
    """Each process logs its share of the server, and the sum of all pools."""
    first = spawn("worker", environ=environ | {"DB_POOL_MAX": "7"})
    output = first.wait_for(" is up")
    assert "up to 7 of 77 usable; 1 process × 7 = 7" in output
    second = spawn("bot", environ=environ | {"DB_POOL_MAX": "10"})
    output = second.wait_for(" is up")
    assert "up to 10 of 77 usable; 1 process × 7 + 1 process × 10 = 17" in output


def test_warns_and_goes_on(environ: Environ, spawn: Spawner) -> None:
    """By default a process that takes the fleet over the server's limit warns with the remedy, and starts."""
    worker = spawn("worker", environ=environ | {"DB_POOL_MAX": "98"})
    output = worker.wait_for(" is up")
    assert "the fleet is too large for the server: 1 process × 98 = 98, available 97 of max_connections=100" in output
    assert "set WORKER_DB_POOL_MAX=67, or set POSTGRES_MAX_CONNECTIONS=138, or run fewer workers" in output


def test_error_does_not_start(environ: Environ, spawn: Spawner) -> None:
    """With PLAN_CHECK=error it does not start, says what to do, and leaves nothing behind."""
    environ |= {"PLAN_CHECK": "error"}
    fits = spawn("worker", environ=environ | {"DB_POOL_MAX": "60"})
    fits.wait_for(" is up")
    refused = spawn("bot", environ=environ | {"DB_POOL_MAX": "38"})
    assert refused.wait() == 3
    assert "the fleet is too large for the server: 1 process × 38 + 1 process × 60 = 98" in refused.output()
    assert "PLAN_CHECK=error, so this process does not start" in refused.output()
    assert "Traceback" not in refused.output()
    small = spawn("bot", environ=environ | {"DB_POOL_MAX": "37"})  # the refused one is no longer counted
    small.wait_for(" is up")


def test_of_processes_that_start_together_the_last_ones_are_refused(environ: Environ, spawn: Spawner) -> None:
    """Of three of which two fit, started at one moment, two start and one does not."""
    environ |= {"PLAN_CHECK": "error", "DB_POOL_MAX": "40", "DB_POOL_MIN": "1"}
    workers = [spawn("worker", environ=environ) for _ in range(3)]
    for worker in workers:
        wait_until(lambda w=worker: " is up" in w.output() or w.child.exit_code() is not None)
    assert sorted(worker.child.exit_code() or 0 for worker in workers) == [0, 0, 3]


async def test_a_process_is_counted_while_it_checks(environ: Environ, spawn: Spawner) -> None:
    """A process announces itself before it checks: who starts while it is still checking finds the room taken."""
    environ |= {"PLAN_CHECK": "error", "DB_POOL_MAX": "60", "DB_POOL_MIN": "1", "REDIS_CONNECT_TIMEOUT": "60"}
    async with (
        open_proxy(environ["DB_HOST"], environ["DB_PORT"]) as postgres,
        open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as queue,
        open_queue(Settings.load("poolctl", environ)) as registry,
    ):
        queue.delay_s = 0.2  # long enough to pull the cable to the database between the first connect and the check
        ports = {"DB_PORT": str(postgres.listens_on), "REDIS_PORT": str(queue.listens_on)}
        # No ping, or the frozen connection would be replaced.
        first = spawn("worker", environ=environ | ports | {"DB_POOL_PRE_PING": "false"})
        await until(lambda: queue.accepted, what="the database is open, Redis is next")
        postgres.freeze()
        await until(lambda: read_fleet(registry), what="the first process is in the registry")
        second = spawn("bot", environ=environ)
        assert await asyncio.to_thread(second.wait) == 3
        # Nor does the first one count who came later, and stayed.
        third = spawn("bot", environ=environ | {"PLAN_CHECK": "warn"})
        await asyncio.to_thread(third.wait_for, " is up")
        assert "2 processes × 60 = 120" in third.output()
        assert "process × 60" not in first.output()  # it still checks
        postgres.thaw()
        await asyncio.to_thread(first.wait_for, " is up")
        assert "cannot tell" not in first.output()


def test_a_dead_process_is_replaced_at_once(environ: Environ, spawn: Spawner) -> None:
    """One that was killed on the same host does not take the room of the one that replaces it."""
    environ |= {"PLAN_CHECK": "error", "DB_POOL_MAX": "40", "DB_POOL_MIN": "1"}
    killed, other = (spawn("worker", environ=environ) for _ in range(2))
    for worker in (killed, other):
        worker.wait_for(" is up")
    killed.send(signal.SIGKILL)
    killed.wait()
    replacement = spawn("worker", environ=environ)
    assert "waits up to" not in replacement.wait_for(" is up")


@pytest.mark.parametrize("lives", [False, True])
async def test_of_another_host_one_waits_for_a_sign(environ: Environ, spawn: Spawner, lives: bool) -> None:
    """What died elsewhere is waited out; what lives elsewhere shows it, and then the process is refused."""
    async with open_queue(Settings.load("poolctl", environ)) as queue:
        pool = PoolSnapshot("worker", 1, 60, 1, 1, 0, 0, 0, 0, 0, 0, 0.0)
        heartbeat_s = 1.0 if lives else 600.0
        registry = Registry(queue, Identity("worker", "elsewhere", 7), lambda: pool, heartbeat_s=heartbeat_s)
        async with registry.announced():
            worker = spawn("worker", environ=environ | {"PLAN_CHECK": "error", "DB_POOL_MAX": "38"})
            await asyncio.to_thread(worker.wait_for, "waits up to 15 s for a sign of worker@elsewhere:7")
            if lives:
                assert await asyncio.to_thread(worker.wait) == 3
            else:
                await asyncio.to_thread(worker.wait_for, " is up")


def test_off_says_nothing(environ: Environ, spawn: Spawner) -> None:
    """PLAN_CHECK=off checks nothing."""
    worker = spawn("worker", environ=environ | {"PLAN_CHECK": "off", "DB_POOL_MAX": "98"})
    output = worker.wait_for(" is up")
    assert "too large" not in output
    assert "usable" not in output


def test_behind_a_pooler_it_does_not_judge(environ: Environ, spawn: Spawner) -> None:
    """Where DB_HOST is not the server itself, the pools' connections are not the server's."""
    environ |= {"PLAN_CHECK": "error", "DB_POOL_MAX": "98", "DB_DIRECT_HOST": "localhost"}
    worker = spawn("worker", environ=environ | {"DB_DIRECT_PORT": environ["DB_PORT"]})
    output = worker.wait_for(" is up")
    assert "behind a pooler" in output


def test_fails_open(environ: Environ, spawn: Spawner) -> None:
    """A registry that cannot be read is one warning, and the process starts."""
    with redis.Redis(
        host=environ["REDIS_HOST"],
        port=int(environ["REDIS_PORT"]),
        password=environ["REDIS_PASSWORD"],
        username="default",
    ) as client:
        # May do all but read many keys at once, as the registry's readers do.
        client.acl_setuser(
            "nosy", enabled=True, passwords=["+nosy-password-9f"], keys=["*"], commands=["+@all", "-mget", "-smembers"]
        )
        try:
            environ |= {"REDIS_USERNAME": "nosy", "REDIS_PASSWORD": "nosy-password-9f", "PLAN_CHECK": "error"}
            worker = spawn("worker", environ=environ)
            output = worker.wait_for(" is up")
        finally:
            client.acl_deluser("nosy")
    assert output.count("PLAN_CHECK: cannot tell whether the fleet fits") == 1
    worker.send(signal.SIGTERM)
    worker.wait()


async def test_fails_open_on_a_server_that_cannot_be(environ: Environ, spawn: Spawner) -> None:
    """Limits that no server has are one warning, too."""
    async with connect(Settings.load("poolctl", environ)) as connection:
        # Found before pg_catalog's: the process reads the limits of a server that reserves all it has.
        for statement in (
            "CREATE SCHEMA odd",
            """
            CREATE FUNCTION odd.current_setting(text) RETURNS text LANGUAGE sql AS $$
            SELECT CASE $1 WHEN 'superuser_reserved_connections' THEN '100' ELSE pg_catalog.current_setting($1) END
            $$
            """,
            f"ALTER DATABASE {environ['DB_NAME']} SET search_path = odd, pg_catalog, public",
        ):
            await connection.execute(statement)
    worker = spawn("worker", environ=environ | {"PLAN_CHECK": "error"})
    output = await asyncio.to_thread(worker.wait_for, " is up")
    assert output.count("PLAN_CHECK: cannot tell whether the fleet fits: PlanError: max_connections=100") == 1


def test_migrate_checks_the_deployment(environ: Environ, spawn: Spawner) -> None:
    """`poolctl migrate` refuses a WORKERS that does not fit, with the ways out, before it migrates."""
    too_many = environ | {"WORKERS": "10", "PLAN_CHECK": "error"}
    refused = spawn.run("poolctl", "migrate", environ=too_many)
    assert refused.returncode == 1
    assert "WORKERS=10 × DB_POOL_MAX=10 + 10 overhead = 110 connections, available 97" in refused.stderr
    for way in ("WORKER_DB_POOL_MAX=6", "POSTGRES_MAX_CONNECTIONS=141", "COMPOSE_PROFILES=pgbouncer"):
        assert way in refused.stderr
    assert (refused.stdout, len(refused.stderr.splitlines())) == ("", 1)
    warned = spawn.run("poolctl", "migrate", environ=too_many | {"PLAN_CHECK": "warn"})
    assert warned.returncode == 0
    assert "warning: WORKERS=10" in warned.stderr
    # Behind a pooler the pools' connections are not the server's.
    pooled = {"DB_DIRECT_HOST": "localhost", "DB_DIRECT_PORT": environ["DB_PORT"]}
    assert spawn.run("poolctl", "migrate", environ=too_many | pooled).returncode == 0
    for workers in ("6", "8"):  # fits, and tight
        done = spawn.run("poolctl", "migrate", environ=too_many | {"WORKERS": workers})
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("settings", "says", "way"),
    [
        (
            {"WORKERS": "200", "DB_POOL_MAX": "5"},
            "× DB_POOL_MAX=5 + 10 overhead = 1010 clients of PgBouncer, PGBOUNCER_MAX_CLIENT_CONN=1000 let in",
            {"PGBOUNCER_MAX_CLIENT_CONN": "2010"},
        ),
        (
            {"WORKERS": "20", "DB_POOL_MAX": "5", "PGBOUNCER_DEFAULT_POOL_SIZE": "83"},
            "PgBouncer's PGBOUNCER_DEFAULT_POOL_SIZE=83 + 5 reserve + 10 overhead = 98 connections, available 97 of",
            {"PGBOUNCER_DEFAULT_POOL_SIZE": "62"},
        ),
        (
            {"WORKERS": "200", "DB_POOL_MAX": "5", "PGBOUNCER_DEFAULT_POOL_SIZE": "90"},
            "let in, and PgBouncer's PGBOUNCER_DEFAULT_POOL_SIZE=90 + 5 reserve + 10 overhead = 105 connections",
            {"PGBOUNCER_DEFAULT_POOL_SIZE": "62", "PGBOUNCER_MAX_CLIENT_CONN": "2010"},
        ),
    ],
    ids=["too many clients", "too many connections to the server", "both"],
)
def test_migrate_refuses_behind_a_pooler(
    environ: Environ, spawn: Spawner, settings: dict[str, str], says: str, way: dict[str, str]
) -> None:
    """Behind a pooler clients and connections to the server are judged, in one line with a way out that is one."""
    pooled = {"DB_DIRECT_HOST": "localhost", "DB_DIRECT_PORT": environ["DB_PORT"]}
    environ |= {"PLAN_CHECK": "error"} | pooled | settings
    refused = spawn.run("poolctl", "migrate", environ=environ)
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (1, "", 1)
    assert says in refused.stderr
    assert " ".join(f"{name}={value}" for name, value in way.items()) in refused.stderr
    assert refused.stderr.endswith("PLAN_CHECK=error, so nothing was migrated\n")
    done = spawn.run("poolctl", "migrate", environ=environ | way)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"WORKERS": "9", "DB_POOL_MAX": "8", "BOT_DB_POOL_MAX": "60"},
            "WORKERS=9 × DB_POOL_MAX=8 + 60 overhead = 132",
        ),
        ({"WORKERS": "1", "DB_POOL_MAX": "101"}, "WORKERS=1: pool_max=101 is greater than max_connections=100"),
    ],
    ids=["a large bot", "a pool above the server"],
)
def test_migrate_refuses(environ: Environ, spawn: Spawner, settings: dict[str, str], says: str) -> None:
    """The bot's pool counts where it is larger than the overhead, and a pool above the server is too large."""
    refused = spawn.run("poolctl", "migrate", environ=environ | {"PLAN_CHECK": "error"} | settings)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert says in refused.stderr


@pytest.mark.parametrize("check", ["warn", "error"])
@pytest.mark.parametrize(
    ("settings", "warnings"),
    [
        ({"WORKER_DB_USER": "nobody_of_that_name"}, 0),
        ({"WORKER_DB_POOL_MAX": "many"}, 1),
        ({"BOT_DB_POOL_MIN": "20"}, 1),
    ],
    ids=["the worker cannot log in", "the worker's settings are wrong", "the bot's settings are wrong"],
)
def test_migrate_fails_open(
    environ: Environ, spawn: Spawner, check: str, settings: dict[str, str], warnings: int
) -> None:
    """What is wrong with the processes' settings does not keep the schema from being migrated."""
    environ |= {"WORKERS": "3", "PLAN_CHECK": check} | settings
    done = spawn.run("poolctl", "migrate", environ=environ)
    assert (done.returncode, len(done.stderr.splitlines())) == (0, warnings), done.stderr
    assert ("PLAN_CHECK: cannot tell whether WORKERS=3 fit: " in done.stderr) is bool(warnings)
    assert done.stdout
