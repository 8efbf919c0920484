"""Settings.load: what the environment gives, and that nothing wrong passes."""

from __future__ import annotations

import dataclasses
import os
import re

import pytest
from pydantic import ValidationError

from config import Settings, SettingsError
from tests.settings_faults import faults


def test_defaults() -> None:
    """An empty environment gives the documented defaults."""
    settings = Settings.load("worker", {})
    db, redis, worker = settings.db, settings.redis, settings.worker
    assert (db.host, db.port, db.user, db.name) == (("localhost",), (5432,), "postgres", "postgres")
    assert db.password.get_secret_value() == "postgres"
    assert (db.pool_min, db.pool_max, db.pool_timeout, db.pool_max_waiting) == (2, 10, 30, 0)
    assert (db.pool_pre_ping, db.pool_pre_ping_idle, db.pool_reset) == (True, 1, "auto")
    assert (db.pool_mode, db.pool_log, db.pooler, db.leak_threshold) == ("pool", False, "auto", 0)
    assert (db.read_retry, db.engine) == (True, "pool")
    assert (db.max_queries, db.max_idle_time, db.max_lifetime, db.echo) == (50_000, 300, 3600, False)
    assert (db.connect_timeout, db.command_timeout, db.sslmode, db.target_session_attrs) == (10, 60, "prefer", "any")
    assert (db.direct_host, db.direct_port) == (db.host, db.port)
    assert (redis.host, redis.port, redis.db, redis.username, redis.password) == ("localhost", 6379, 0, None, None)
    assert (redis.max_connections, redis.connect_timeout, redis.socket_timeout) == (50, 5, 5)
    assert (redis.health_check_interval, redis.tls) == (30, False)
    assert (worker.max_jobs, worker.job_timeout, worker.max_tries) == (10, 300, 5)
    assert (worker.outage_tries, worker.lease, worker.max_payload) == (20, 20, 1_000_000)
    assert (worker.poll_delay, worker.shutdown_grace, worker.queue) == (1, 30, "arq:queue")
    assert (settings.bot.token, settings.bot.transport, settings.bot.admins) == (None, "auto", ())
    assert (settings.log.level, settings.log.format) == ("INFO", "auto")
    pgbouncer, stack = settings.pgbouncer, settings.stack
    assert (pgbouncer.host, pgbouncer.port, pgbouncer.user, pgbouncer.password) == (None, 6432, "pgbouncer", None)
    assert (pgbouncer.default_pool_size, pgbouncer.reserve_pool_size, pgbouncer.max_db_connections) == (25, 5, 0)
    assert (pgbouncer.max_client_conn, pgbouncer.max_prepared_statements) == (1000, 200)
    assert (pgbouncer.query_wait_timeout, pgbouncer.server_lifetime) == (120, 3600)
    assert (stack.compose_profiles, stack.pgbouncer, stack.postgres_max_connections) == ((), False, 100)
    assert (settings.legacy, settings.warnings) == (False, ())


@pytest.mark.parametrize(
    ("profiles", "on"),
    [("pgbouncer", True), ("tools, pgbouncer,", True), ("*", True), ("pgbouncer2", False), ("monitoring", False)],
)
def test_profile_as_compose_reads_it(profiles: str, on: bool) -> None:
    """PgBouncer's profile is on by its name, among others too, or by `*`; a comma at the end is nothing."""
    assert Settings.load("bot", {"COMPOSE_PROFILES": profiles}).stack.pgbouncer is on


def test_frozen() -> None:
    """Nothing in the settings can be changed after loading."""
    settings = Settings.load("worker", {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.role = "bot"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.db.pool_max = 99  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.origins["DB_HOST"] = "x"  # type: ignore[index]


def test_environ_is_not_touched_and_process_environment_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handed-in environment is the only one that counts."""
    monkeypatch.setenv("DB_POOL_MAX", "77")
    environ = {"DB_HOST": "db"}
    assert Settings.load("worker", environ).db.pool_max == 10
    assert environ == {"DB_HOST": "db"}


class TestFaults:
    def test_all_at_once(self) -> None:
        """Every fault of every group is in one error, each on its line."""
        lines = faults(
            DB_POOL_MAX="many", DB_POOL_TIMEOUT="-1", DB_PORT="0", REDIS_DB="x", WORKER_MAX_TRIES="0", LOG_LEVEL="loud"
        )
        assert [line.partition("=")[0] for line in lines] == [
            "DB_PORT",
            "DB_POOL_MAX",
            "DB_POOL_TIMEOUT",
            "REDIS_DB",
            "WORKER_MAX_TRIES",
            "LOG_LEVEL",
        ]

    @pytest.mark.parametrize(
        ("environ", "line"),
        [
            (
                {"DB_POOL_MAX": "ten"},
                "DB_POOL_MAX=ten is not a whole number from 1 to 10000: give one, or unset it for the default (10)",
            ),
            ({"DB_POOL_MIN": "-1"}, "DB_POOL_MIN=-1 is less than 0: give a whole number from 0 to 10000, or unset"),
            ({"DB_POOL_MAX": "0"}, "DB_POOL_MAX=0 is less than 1: give a whole number from 1 to 10000, or unset"),
            ({"DB_POOL_MAX": "1e9"}, "DB_POOL_MAX=1e9 is not a whole number from 1 to 10000: give one"),
            ({"DB_POOL_MAX": "2.5"}, "DB_POOL_MAX=2.5 is not a whole number from 1 to 10000: give one"),
            ({"DB_POOL_MAX": "10001"}, "DB_POOL_MAX=10001 is greater than 10000: give"),
            ({"DB_POOL_TIMEOUT": "0"}, "DB_POOL_TIMEOUT=0 is not greater than 0: give a number above 0"),
            ({"DB_POOL_TIMEOUT": "nan"}, "DB_POOL_TIMEOUT=nan is not a number above 0, up to 31536000: give one"),
            ({"DB_COMMAND_TIMEOUT": "inf"}, "DB_COMMAND_TIMEOUT=inf is not a number from 0 to 31536000: give one"),
            ({"DB_PORT": "65536"}, "DB_PORT=65536 is greater than 65535: give a whole number from 1 to 65535, or"),
            ({"DB_PORT": "5432,0"}, "DB_PORT=5432,0 is less than 1: give"),
            ({"DB_HOST": "u:s3cret@h"}, "DB_HOST is a URL or user@host, not a host: give the host alone, or set"),
            ({"REDIS_HOST": "redis://h"}, "REDIS_HOST is a URL or user@host, not a host: give the host alone, or set"),
            ({"WORKER_DATABASE_URL": "postgres://h"}, "WORKER_DATABASE_URL is not a setting: only DB_* can be given"),
            ({"BOT_REDIS_PASSWORD": "x"}, "BOT_REDIS_PASSWORD is not a setting: only DB_* can be given for one"),
            ({"DB_HOST": "a,,b"}, "DB_HOST=a,,b has an empty item: give"),
            (
                {"DB_HOST": "a,b", "DB_PORT": "1,2,3"},
                "DB_PORT=1,2,3 has 3 ports for the 2 hosts of DB_HOST: give one port for all, or one for each host",
            ),
            ({"DB_SSLMODE": "on"}, "DB_SSLMODE=on is not one of disable, allow, prefer, require, verify-ca, verify"),
            ({"DB_POOL_MAX_WAITING": "-1"}, "DB_POOL_MAX_WAITING=-1 is less than 0: give a whole number from 0 to"),
            ({"DB_POOL_PRE_PING_IDLE": "-1"}, "DB_POOL_PRE_PING_IDLE=-1 is less than 0: give a number from 0 to"),
            ({"DB_LEAK_THRESHOLD": "-0.1"}, "DB_LEAK_THRESHOLD=-0.1 is less than 0: give a number from 0 to"),
            ({"DB_POOL_RESET": "rollback"}, "DB_POOL_RESET=rollback is not one of auto, always, never: give one"),
            ({"DB_POOL_MODE": "transaction"}, "DB_POOL_MODE=transaction is not one of pool, none: give one"),
            ({"DB_POOLER": "statement"}, "DB_POOLER=statement is not one of auto, none, transaction, session: give"),
            ({"DB_POOL_LOG": "debug"}, "DB_POOL_LOG=debug is not true or false: give one"),
            ({"DB_READ_RETRY": "3"}, "DB_READ_RETRY=3 is not true or false: give one"),
            ({"DB_ENGINE": "django.db.backends.postgresql"}, "DB_ENGINE=django.db.backends.postgresql is not one of p"),
            (
                {"DB_ENGINE": "tortoise", "DB_HOST": "a,b"},
                "DB_ENGINE=tortoise takes one host, and DB_HOST names 2: name one host, or unset DB_ENGINE",
            ),
            (
                {"WORKER_DB_ENGINE": "tortoise", "DATABASE_URL": "postgres://a,b,c"},
                "WORKER_DB_ENGINE=tortoise takes one host, and DATABASE_URL names 3: name one host, or unset",
            ),
            ({"DB_POOL_PRE_PING": "maybe"}, "DB_POOL_PRE_PING=maybe is not true or false: give one, or unset it"),
            (
                {"DB_POOL_MIN": "12"},
                "DB_POOL_MIN=12 is greater than DB_POOL_MAX=10: lower DB_POOL_MIN or raise DB_POOL_MAX",
            ),
            (
                {"WORKER_DB_POOL_MIN": "6", "DB_POOL_MAX": "5"},
                "WORKER_DB_POOL_MIN=6 is greater than DB_POOL_MAX=5: lower WORKER_DB_POOL_MIN or raise DB_POOL_MAX",
            ),
            (
                {"REDIS_PORT": "tcp://10.0.0.1:6379"},
                (
                    "REDIS_PORT=tcp://10.0.0.1:6379 is what Kubernetes injects for a Service named 'redis', not a whole"
                    " number from 1 to 65535: set enableServiceLinks: false in the pod's spec, or set REDIS_PORT there"
                ),
            ),
            ({"DB_PORT": "tcp://10.0.0.1:5432"}, "DB_PORT=tcp://10.0.0.1:5432 is what Kubernetes injects for a"),
            (
                {"DB_SCHEMA": "Shop"},
                "DB_SCHEMA=Shop is not a name of lower-case letters, digits and underscores: give one",
            ),
            (
                {"POSTGRES_MAX_CONNECTIONS": "many"},
                "POSTGRES_MAX_CONNECTIONS=many is not a whole number from 1 to 262143",
            ),
            ({"POSTGRES_MAX_CONNECTIONS": "262144"}, "POSTGRES_MAX_CONNECTIONS=262144 is greater than 262143: give a"),
            ({"PGBOUNCER_DEFAULT_POOL_SIZE": "0"}, "PGBOUNCER_DEFAULT_POOL_SIZE=0 is less than 1: give a whole number"),
            ({"PGBOUNCER_SERVER_LIFETIME": "1h"}, "PGBOUNCER_SERVER_LIFETIME=1h is not a number from 0 to 31536000: g"),
            ({"PGBOUNCER_HOST": "u:s3cret@h"}, "PGBOUNCER_HOST is a URL or user@host, not a host: give the host alone"),
            (
                {"PGBOUNCER_PORT": "tcp://10.0.0.1:6432"},
                "PGBOUNCER_PORT=tcp://10.0.0.1:6432 is what Kubernetes injects for a Service named 'pgbouncer', not a",
            ),
            ({"DB_USER": "a\nb\0"}, r"DB_USER=a\nb\x00 has a NUL byte: give a text"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_each(self, environ: dict[str, str], line: str) -> None:
        """A fault says which variable, which value, which bound and what to do."""
        (found,) = faults(**environ)
        assert found.startswith(line)

    def test_default_floor_follows_a_small_ceiling(self) -> None:
        """DB_POOL_MAX=1 alone is fine: the default floor is at most the ceiling."""
        assert Settings.load("worker", {"DB_POOL_MAX": "1"}).db.pool_min == 1

    def test_min_above_max_is_reported_beside_other_faults(self) -> None:
        """A contradiction between two variables is found although a third is faulty."""
        assert any("DB_POOL_MIN=5 is greater than" in x for x in faults(DB_POOL_MIN="5", DB_POOL_MAX="4", DB_PORT="x"))

    def test_a_fault_stays_on_one_line(self) -> None:
        """A value with line breaks or of great length does not break the list of faults."""
        (line,) = faults(DB_PORT="1\n2" + "x" * 500)
        assert len(line) < 300


class TestWorkerLease:
    def test_outlasts_commands_that_hang(self) -> None:
        """A lease below three time-outs of Redis is refused for a worker, with both names; the others have no lease."""
        with pytest.raises(SettingsError) as refused:
            Settings.load("worker", {"WORKER_LEASE": "14.9"})
        assert str(refused.value) == (
            "WORKER_LEASE=14.9 is less than 3 times REDIS_SOCKET_TIMEOUT=5: give at least 15, or lower"
            " REDIS_SOCKET_TIMEOUT"
        )
        with pytest.raises(SettingsError, match="WORKER_LEASE=20 is less than 3 times REDIS_SOCKET_TIMEOUT=30: give"):
            Settings.load("worker", {"REDIS_SOCKET_TIMEOUT": "30"})
        assert Settings.load("worker", {"WORKER_LEASE": "15"}).worker.lease == 15
        assert Settings.load("bot", {"WORKER_LEASE": "14.9"}).worker.lease == 14.9


class TestWorkerMaxJobs:
    def test_follows_the_workers_pool(self) -> None:
        """WORKER_MAX_JOBS is the worker's DB_POOL_MAX, also in the settings of a bot."""
        environ = {"DB_POOL_MAX": "8", "WORKER_DB_POOL_MAX": "5", "BOT_DB_POOL_MAX": "3"}
        assert Settings.load("worker", environ).worker.max_jobs == 5
        assert Settings.load("bot", environ).worker.max_jobs == 5

    def test_above_the_pool_warns(self) -> None:
        """More jobs than connections is allowed with a warning that says what it means."""
        (warning,) = Settings.load("worker", {"WORKER_MAX_JOBS": "20"}).warnings
        assert warning.startswith("WORKER_MAX_JOBS=20 is greater than DB_POOL_MAX=10: jobs will queue for connections")
        assert Settings.load("bot", {"WORKER_MAX_JOBS": "20"}).warnings == ()


class TestApplicationName:
    def test_default(self) -> None:
        """The default names role, host and process id."""
        name = Settings.load("bot", {}).db.application_name
        assert re.fullmatch(rf"bot@.+:{os.getpid()}", name)

    def test_cut_to_63_bytes_of_the_host(self) -> None:
        """A long name loses bytes of its host and keeps the process id; characters stay whole."""
        name = Settings.load("worker", {"DB_APPLICATION_NAME": "ä" * 25 + "@{host}:{pid}"}).db.application_name
        assert len(name.encode()) <= 63
        assert name.endswith(f":{os.getpid()}")
        long = Settings.load("worker", {"DB_APPLICATION_NAME": "ä" * 40}).db.application_name
        assert long == "ä" * 31


def test_direct_host() -> None:
    """DB_DIRECT_* are DB_HOST and DB_PORT unless set; a direct host alone is at 5432."""
    pooled = {"DB_HOST": "pgbouncer", "DB_PORT": "6432"}
    assert Settings.load("worker", pooled).db.direct_addresses == "pgbouncer:6432"
    assert Settings.load("worker", {**pooled, "DB_DIRECT_HOST": "postgres"}).db.direct_addresses == "postgres:5432"
    assert Settings.load("worker", {**pooled, "DB_DIRECT_PORT": "5433"}).db.direct_addresses == "pgbouncer:5433"


def test_root_certificate_that_checks_nothing_warns() -> None:
    """As in libpq a root certificate is not used below sslmode=require, which is worth a line."""
    settings = Settings.load("worker", {"DB_SSLROOTCERT": "/ca.pem"})
    assert settings.warnings == (
        "DB_SSLROOTCERT is set, but DB_SSLMODE=prefer checks no certificate: set DB_SSLMODE=verify-full",
    )
    assert Settings.load("worker", {"DB_SSLROOTCERT": "/ca.pem", "DB_SSLMODE": "verify-ca"}).warnings == ()


def test_pool_line() -> None:
    """The line logged at start says how many connections this process is, and where to."""
    line = Settings.load("worker", {"DB_APPLICATION_NAME": "w"}).pool_line()
    assert line == (
        "this process: 2–10 connections to postgres@localhost:5432/postgres as w, wait at most 30 s,"
        " replaced after 50000 queries or 3600 s, closed after 300 s idle"
    )


def test_sentinels() -> None:
    """Sentinels are host:port pairs; an address beside them is told to be unused, and what is no pair is refused."""
    settings = Settings.load("worker", {"REDIS_SENTINELS": "a:26379, [::1]:26380", "REDIS_HOST": "elsewhere"})
    assert settings.redis.sentinels == ("a:26379", "[::1]:26380")
    assert settings.redis.sentinel_master == "mymaster"
    assert settings.warnings == ("REDIS_HOST is not used: REDIS_SENTINELS say where Redis is",)
    with pytest.raises(SettingsError) as caught:
        Settings.load("worker", {"REDIS_SENTINELS": "a:26379,b"})
    assert "is not host:port, or several, comma-separated" in str(caught.value)
