"""PLAN_CHECK: a process that would make the fleet too large for the server says so, or does not start."""

from __future__ import annotations

import signal

import redis

from tests.conftest import Environ
from tests.processes import Spawner
from tests.waiting import wait_until


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
    assert "lower DB_POOL_MAX to 77, run fewer processes, raise max_connections to 126" in output


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


def test_processes_that_start_together_count_each_other(environ: Environ, spawn: Spawner) -> None:
    """Three that do not fit together, started at one moment, never all start."""
    environ |= {"PLAN_CHECK": "error", "DB_POOL_MAX": "40", "DB_POOL_MIN": "1"}
    workers = [spawn("worker", environ=environ) for _ in range(3)]
    for worker in workers:
        wait_until(lambda w=worker: " is up" in w.output() or w.child.exit_code() is not None)
    assert 3 in [worker.child.exit_code() for worker in workers]


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


def test_migrate_checks_the_deployment(environ: Environ, spawn: Spawner) -> None:
    """`poolctl migrate` refuses a WORKERS that does not fit, with the ways out, before it migrates."""
    too_many = environ | {"WORKERS": "10", "PLAN_CHECK": "error"}
    refused = spawn.run("poolctl", "migrate", environ=too_many)
    assert refused.returncode == 1
    assert "WORKERS=10 × DB_POOL_MAX=10 + 10 overhead = 110 connections, available 97" in refused.stderr
    for way in ("DB_POOL_MAX=6", "POSTGRES_MAX_CONNECTIONS=141", "COMPOSE_PROFILES=pgbouncer"):
        assert way in refused.stderr
    assert refused.stdout == ""
    warned = spawn.run("poolctl", "migrate", environ=too_many | {"PLAN_CHECK": "warn"})
    assert warned.returncode == 0
    assert "warning: WORKERS=10" in warned.stderr
    fits = spawn.run("poolctl", "migrate", environ=too_many | {"WORKERS": "6"})
    assert (fits.returncode, fits.stderr) == (0, "")
