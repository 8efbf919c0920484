"""Settings.load: what the environment gives, and that nothing wrong passes."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from config import Settings, SettingsError
from config.variables import VARIABLES

SECRET = "s3cr3t-Zx9"


def faults(role: str = "worker", **environ: str) -> list[str]:
    """The lines of the SettingsError that `environ` raises."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(role, environ)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.faults)
    return lines


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


class TestPrecedence:
    def test_dotenv_below_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The environment wins over `.env`, and an empty variable is unset in both."""
        (tmp_path / ".env").write_text('DB_POOL_MAX=7\nDB_POOL_MIN=3\nDB_USER="app # 1"\nDB_NAME=\n')
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DB_POOL_MAX", "8")
        monkeypatch.setenv("DB_POOL_MIN", "")
        settings = Settings.load("worker")
        assert (settings.db.pool_max, settings.db.pool_min) == (8, 3)
        assert (settings.db.user, settings.db.name) == ("app # 1", "postgres")
        assert settings.origins["DB_POOL_MAX"] == "environment"
        assert settings.origins["DB_POOL_MIN"] == ".env"
        assert settings.origins["DB_NAME"] == "default"

    def test_dotenv_is_not_read_when_environ_is_handed_in(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`Settings.load(role, environ)` reads no `.env`."""
        (tmp_path / ".env").write_text("DB_POOL_MAX=7\n")
        monkeypatch.chdir(tmp_path)
        assert Settings.load("worker", {}).db.pool_max == 10

    def test_broken_dotenv_is_a_fault(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line of `.env` that is not NAME=value is refused by its number, and its text is not shown."""
        (tmp_path / ".env").write_text(f"DB_HOST=db\n'{SECRET} = =\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SettingsError, match=r"\.env line 2 is not NAME=value") as caught:
            Settings.load("worker")
        assert SECRET not in str(caught.value)

    def test_dotenv_line_without_a_value(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bare name in `.env` sets nothing, so it is refused rather than passed over."""
        (tmp_path / ".env").write_text("DB_POOL_MAX\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SettingsError, match=r"\.env line 1 is not NAME=value"):
            Settings.load("worker")

    def test_dotenv_that_is_not_utf8(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A `.env` in another encoding is a fault, not a traceback."""
        (tmp_path / ".env").write_bytes(b"DB_USER=\xff\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SettingsError, match=r"\.env is not UTF-8 text"):
            Settings.load("worker")

    def test_role_wins(self) -> None:
        """`WORKER_DB_*` counts for workers only, `BOT_DB_*` for bots only, and both win over `DB_*`."""
        environ = {"DB_POOL_MAX": "8", "WORKER_DB_POOL_MAX": "5", "BOT_DB_POOL_TIMEOUT": "10", "WORKER_DB_HOST": "w"}
        worker, bot, tool = (Settings.load(role, environ) for role in ("worker", "bot", "poolctl"))  # type: ignore[arg-type]
        assert (worker.db.pool_max, worker.db.pool_timeout, worker.db.host) == (5, 30, ("w",))
        assert (bot.db.pool_max, bot.db.pool_timeout, bot.db.host) == (8, 10, ("localhost",))
        assert (tool.db.pool_max, tool.db.pool_timeout) == (8, 30)
        assert worker.origins["DB_POOL_MAX"] == "environment (WORKER_DB_POOL_MAX)"

    @pytest.mark.parametrize("variable", [v for v in VARIABLES if v.group == "DB" and v.field], ids=lambda v: v.name)
    def test_every_database_setting_has_a_role_form(self, variable: object) -> None:
        """Each `DB_*` can be given with a role's prefix: a bad value there is a fault of that name."""
        name = f"BOT_{variable.name}"  # type: ignore[attr-defined]
        Settings.load("worker", {name: "\0"})
        if not variable.secret:  # type: ignore[attr-defined]
            assert any(line.startswith(f"{name}=") for line in faults("bot", **{name: "\0"}))


class TestSecrets:
    @pytest.mark.parametrize(
        "name", ["DB_PASSWORD", "REDIS_PASSWORD", "BOT_TOKEN", "WORKER_DB_PASSWORD", "PGBOUNCER_PASSWORD"]
    )
    def test_from_file(self, tmp_path: Path, name: str) -> None:
        """A secret may come from the file that NAME_FILE names; its last line break is not part of it."""
        file = tmp_path / "secret"
        file.write_text(f" {SECRET}\n")
        settings = Settings.load("worker", {f"{name}_FILE": str(file)})
        secret = {
            "DB_PASSWORD": settings.db.password,
            "REDIS_PASSWORD": settings.redis.password,
            "BOT_TOKEN": settings.bot.token,
            "WORKER_DB_PASSWORD": settings.db.password,
            "PGBOUNCER_PASSWORD": settings.pgbouncer.password,
        }[name]
        assert secret is not None
        assert secret.get_secret_value() == f" {SECRET}"
        assert f"file {file}" in settings.origins[name.removeprefix("WORKER_")]

    def test_urls_from_file(self, tmp_path: Path) -> None:
        """DATABASE_URL and REDIS_URL may come from files."""
        (tmp_path / "db").write_text(f"postgres://app:{SECRET}@db/shop\n")
        (tmp_path / "redis").write_text(f"redis://:{SECRET}@cache\r\n")
        settings = Settings.load(
            "worker", {"DATABASE_URL_FILE": str(tmp_path / "db"), "REDIS_URL_FILE": str(tmp_path / "redis")}
        )
        assert (settings.db.host, settings.db.password.get_secret_value()) == (("db",), SECRET)
        assert settings.redis.password is not None
        assert (settings.redis.host, settings.redis.password.get_secret_value()) == ("cache", SECRET)

    @pytest.mark.parametrize("name", ["DB_PASSWORD", "REDIS_PASSWORD", "BOT_TOKEN", "DATABASE_URL", "REDIS_URL"])
    def test_both_is_an_error(self, tmp_path: Path, name: str) -> None:
        """NAME and NAME_FILE together are refused."""
        file = tmp_path / "secret"
        file.write_text(SECRET)
        (line,) = faults(**{name: "postgres://h", f"{name}_FILE": str(file)})
        assert line == f"{name} and {name}_FILE are both set: unset one of {name} and {name}_FILE"

    @pytest.mark.parametrize(
        ("content", "problem"),
        [(b"", "is empty"), (b"\n", "is empty"), (b"\xff\xfe", "is not UTF-8 text"), (b"a\0b", "has a NUL byte")],
    )
    def test_bad_file(self, tmp_path: Path, content: bytes, problem: str) -> None:
        """An empty file, one that is not UTF-8 and one with a NUL byte are refused with the file's name."""
        file = tmp_path / "secret"
        file.write_bytes(content)
        (line,) = faults(DB_PASSWORD_FILE=str(file))
        assert line.startswith(f"DB_PASSWORD_FILE={file} {problem}: ")

    def test_unreadable_file(self, tmp_path: Path) -> None:
        """A missing file and a folder are refused with the system's reason."""
        (line,) = faults(DB_PASSWORD_FILE=str(tmp_path / "none"))
        assert "cannot be read (No such file or directory)" in line
        (line,) = faults(DB_PASSWORD_FILE=str(tmp_path))
        assert "cannot be read (Is a directory)" in line

    def test_only_secrets_come_from_files(self) -> None:
        """`DB_POOL_MAX_FILE` is refused rather than ignored."""
        (line,) = faults(DB_POOL_MAX_FILE="/x")
        assert line == "DB_POOL_MAX_FILE=/x is not a setting: only secrets are read from files: set DB_POOL_MAX"

    def test_no_repr_shows_one(self) -> None:
        """No repr, str or pool line of the settings shows a secret."""
        settings = Settings.load(
            "worker", {"DB_PASSWORD": SECRET, "REDIS_URL": f"redis://u:{SECRET}@h", "BOT_TOKEN": SECRET}
        )
        for text in (repr(settings), str(settings), settings.pool_line(), repr(settings.db), str(settings.redis)):
            assert SECRET not in text

    def test_a_secret_in_the_wrong_variable_is_not_shown(self) -> None:
        """A fault hides a value that holds a known secret, or the password of a URL."""
        assert SECRET not in "\n".join(faults(DB_PASSWORD=SECRET, DB_PORT=f"x{SECRET}"))
        assert SECRET not in "\n".join(faults(DB_PORT=f"postgres://u:{SECRET}@h/db"))


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


class TestNearMisses:
    @pytest.mark.parametrize(
        ("environ", "remedy"),
        [
            ({"DB_POOL_SIZE": "20", "DB_MAX_OVERFLOW": "40"}, "set DB_POOL_MIN=20, DB_POOL_MAX=60"),
            (
                {"DB_POOL_SIZE": "20"},
                "set DB_POOL_MIN=20, DB_POOL_MAX=30 (SQLAlchemy's default max_overflow 10 taken for the other)",
            ),
            (
                {"DB_MAX_OVERFLOW": "7"},
                "set DB_POOL_MIN=5, DB_POOL_MAX=12 (SQLAlchemy's default pool_size 5 taken for the other)",
            ),
            ({"PG_POOL_SIZE": "4", "PG_MAX_OVERFLOW": "0"}, "set DB_POOL_MIN=4, DB_POOL_MAX=4"),
            ({"WORKER_DB_POOL_SIZE": "4"}, "set WORKER_DB_POOL_MIN=4, WORKER_DB_POOL_MAX=14"),
            ({"DB_POOL_SIZE": "0"}, "set DB_POOL_MIN and DB_POOL_MAX: a pool always has a limit here"),
            ({"DB_POOL_RECYCLE": "1800"}, "the name here is DB_MAX_LIFETIME"),
            ({"PG_POOL_RECYCLE": "1800"}, "the name here is DB_MAX_LIFETIME"),
            ({"DB_MAXSIZE": "10"}, "the name here is DB_POOL_MAX"),
            ({"DB_POOL_MAX_SIZE": "10"}, "the name here is DB_POOL_MAX"),
            ({"PG_POOL_MIN": "1"}, "the name here is DB_POOL_MIN"),
            ({"PG_POOL_WHATEVER": "1"}, "pool settings here are DB_POOL_MIN, DB_POOL_MAX"),
            ({"POOL_PRE_PING": "true"}, "the name here is DB_POOL_PRE_PING"),
            ({"POOL_USE_LIFO": "true"}, "remove it: the connection returned last is always reused first here"),
            ({"DISABLE_SQLALCHEMY_POOLING": "1"}, "remove it: every process has a pool; DB_POOL_MODE=none is to do"),
            ({"DB_POOLCLASS": "NullPool"}, "remove it: every process has a pool; DB_POOL_MODE=none is SQLAlchemy's"),
            ({"DB_MAX_WAITING": "20"}, "the name here is DB_POOL_MAX_WAITING"),
            ({"PG_POOL_MAX_WAITING": "20"}, "the name here is DB_POOL_MAX_WAITING"),
            ({"SQLALCHEMY_ECHO_POOL": "debug"}, "the name here is DB_POOL_LOG"),
            ({"DB_POOL_RESET_ON_RETURN": "rollback"}, "the name here is DB_POOL_RESET"),
            ({"WORKER_DB_LEAK_DETECTION_THRESHOLD": "2"}, "the name here is WORKER_DB_LEAK_THRESHOLD"),
            ({"DB_POOLER_MODE": "transaction"}, "the name here is DB_POOLER"),
            ({"DB_LEAK_TRESHOLD": "5"}, "did you mean DB_LEAK_THRESHOLD?"),
            ({"DB_POLL_MAX": "5"}, "did you mean DB_POOL_MAX?"),
            ({"DB_PO0L_MAXX": "5"}, "did you mean DB_POOL_MAX?"),
            ({"BD_POOL_MAX": "5"}, "did you mean DB_POOL_MAX?"),
            ({"db_pool_max": "5"}, "did you mean DB_POOL_MAX?"),
            ({"WORKER_DB_POL_MAX": "5"}, "did you mean WORKER_DB_POOL_MAX?"),
            ({"DB_MAX_LIFETIMES": "5"}, "did you mean DB_MAX_LIFETIME?"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_is_an_error_with_the_right_name(self, environ: dict[str, str], remedy: str) -> None:
        """A name that was surely meant as a pool setting is refused, and the right one named."""
        lines = faults(**environ)
        assert len(lines) == len(environ)
        for line, (name, value) in zip(lines, environ.items(), strict=True):
            assert line.startswith(f"{name}={value} is not a setting: {remedy}")

    def test_settings_are_no_misspellings_of_each_other(self) -> None:
        """Every known name passes, although DB_POOL_MIN is within distance 2 of DB_POOL_MAX."""
        Settings.load("worker", {"DB_POOL_MIN": "3", "DB_POOL_MAX": "4", "WORKER_DB_POOL_MIN": "2"})

    @pytest.mark.parametrize(
        ("name", "warning"),
        [
            ("DB_FOO", "DB_FOO is not a setting and is ignored: remove it, or see README for the settings"),
            ("WORKER_DB_FOO", "WORKER_DB_FOO is not a setting and is ignored: remove it, or see README"),
            ("DB_URL", "DB_URL is not a setting and is ignored: did you mean DATABASE_URL?"),
            ("DB_USERNAME", "DB_USERNAME is not a setting and is ignored: did you mean DB_USER?"),
            ("WORKER_MAX_JOB", "WORKER_MAX_JOB is not a setting and is ignored: did you mean WORKER_MAX_JOBS?"),
            ("DB_POOL_COLOUR", "DB_POOL_COLOUR is not a setting and is ignored"),
            ("DB_POOL", "DB_POOL is not a setting and is ignored: did you mean DB_POOL_MAX?"),
            ("DB_POLLER", "DB_POLLER is not a setting and is ignored: did you mean DB_POOLER?"),
            ("DB_PGBOUNCER", "DB_PGBOUNCER is not a setting and is ignored: did you mean DB_POOLER?"),
            (
                "PGBOUNCER_POOL_SIZE",
                "PGBOUNCER_POOL_SIZE is not a setting and is ignored: did you mean PGBOUNCER_DEFAU",
            ),
            ("PGBOUNCER_MAX_CLIENT_CON", "PGBOUNCER_MAX_CLIENT_CON is not a setting and is ignored: did you mean PGB"),
            ("PGBOUNCER_POOL_MODE", "PGBOUNCER_POOL_MODE is not a setting and is ignored: remove it, or see README"),
            ("POSTGRES_MAX_CONECTIONS", "POSTGRES_MAX_CONECTIONS is not a setting and is ignored: did you mean POST"),
            ("COMPOSE_PROFILE", "COMPOSE_PROFILE is not a setting and is ignored: did you mean COMPOSE_PROFILES?"),
            ("PGBOUNCER_IMAGES", "PGBOUNCER_IMAGES is not a setting and is ignored: did you mean PGBOUNCER_IMAGE?"),
            ("DB_READRETRY", "DB_READRETRY is not a setting and is ignored: did you mean DB_READ_RETRY?"),
        ],
    )
    def test_other_unknown_names_warn(self, name: str, warning: str) -> None:
        """An unknown DB_* name, or a misspelt other setting, is a warning."""
        (found,) = Settings.load("worker", {name: "1"}).warnings
        assert found.startswith(warning)

    @pytest.mark.parametrize(
        "name",
        [
            *("DB_SERVICE_HOST", "DB_PORT_5432_TCP_ADDR", "PGBOUNCER_SERVICE_PORT", "PATH", "POOL_MODE"),
            *("PG_MAX_CONNECTIONS", "POSTGRES_PASSWORD", "POSTGRES_USER", "COMPOSE_FILE", "COMPOSE_PROJECT_NAME"),
            *("STACK_POSTGRES_HOST", "STACK_PGBOUNCER_HOST", "STACK_REDIS_HOST"),
            *("SECRETS_DIR", "POOLCTL_IMAGE", "PGBOUNCER_IMAGE", "POSTGRES_IMAGE", "COMPOSE_PROFILES"),
        ],
    )
    def test_foreign_names_are_left_alone(self, name: str) -> None:
        """What Kubernetes injects, what compose reads, and words that others use too, neither fail nor warn."""
        assert Settings.load("worker", {name: "x"}).warnings == ()


class TestDatabaseUrl:
    URL = f"postgresql://app:{SECRET}@db.example:6000/shop"

    def test_parts(self) -> None:
        """The URL gives the connection; the pool is Tortoise's own 1 to 5, and so are a worker's jobs."""
        settings = Settings.load("worker", {"DATABASE_URL": self.URL})
        db = settings.db
        assert (db.host, db.port, db.user, db.name) == (("db.example",), (6000,), "app", "shop")
        assert db.password.get_secret_value() == SECRET
        assert (db.pool_min, db.pool_max, settings.worker.max_jobs) == (1, 5, 5)
        assert (db.pool_timeout, db.max_queries) == (30, 50_000)
        assert settings.legacy
        assert settings.pool_line().startswith("legacy mode (DATABASE_URL), this process: 1–5 connections")

    @pytest.mark.parametrize(
        ("url", "host", "port", "user", "password", "name"),
        [
            ("postgres://h", ("h",), (5432,), "postgres", "", "postgres"),
            ("postgres:///d", ("localhost",), (5432,), "postgres", "", "d"),
            ("asyncpg://u@h:1/d", ("h",), (1,), "u", "", "d"),
            ("postgres://u:p%40%2F%3A%25@h/d%20x", ("h",), (5432,), "u", "p@/:%", "d x"),
            ("postgres://u:a@b@h/d", ("h",), (5432,), "u", "a@b", "d"),
            ("postgres://u:p@a:1,b,c:3/d", ("a", "b", "c"), (1, 5432, 3), "u", "p", "d"),
            ("postgres://u:p@[::1]:7/d", ("::1",), (7,), "u", "p", "d"),
            ("postgres://u:p@%2Frun%2Fpg/d", ("/run/pg",), (5432,), "u", "p", "d"),
        ],
    )
    def test_forms(
        self, url: str, host: tuple[str, ...], port: tuple[int, ...], user: str, password: str, name: str
    ) -> None:
        """The forms that libpq knows are read as libpq reads them."""
        db = Settings.load("worker", {"DATABASE_URL": url}).db
        assert (db.host, db.port, db.user, db.name) == (host, port, user, name)
        assert db.password.get_secret_value() == password

    def test_session_parameters(self) -> None:
        """libpq's session parameters work, and win over the variables; where the URL is silent these apply."""
        url = (
            f"{self.URL}?sslmode=verify-full&sslrootcert=/ca.pem&application_name=x&connect_timeout=3"
            "&target_session_attrs=read-write"
        )
        environ = {"DATABASE_URL": url, "DB_SSLMODE": "disable", "DB_COMMAND_TIMEOUT": "7", "DB_SCHEMA": "s"}
        db = Settings.load("worker", environ).db
        assert (db.sslmode, db.sslrootcert, db.application_name) == ("verify-full", "/ca.pem", "x")
        assert (db.connect_timeout, db.target_session_attrs) == (3, "read-write")
        assert (db.command_timeout, db.schema_name) == (7, "s")

    @pytest.mark.parametrize(
        "name",
        [
            "DB_POOL_MIN",
            "DB_POOL_MAX",
            "DB_POOL_TIMEOUT",
            "DB_POOL_PRE_PING",
            "DB_POOL_MAX_WAITING",
            "DB_POOL_PRE_PING_IDLE",
            "DB_POOL_LOG",
            "DB_POOL_RESET",
            "DB_POOL_MODE",
            "DB_LEAK_THRESHOLD",
            "DB_MAX_QUERIES",
            "DB_MAX_IDLE_TIME",
            "DB_MAX_LIFETIME",
            "WORKER_DB_POOL_MAX",
            "BOT_DB_MAX_QUERIES",
            "BOT_DB_LEAK_THRESHOLD",
            "DB_LEAK_TRESHOLD",
            "DB_POOL_WHATEVER",
            "DB_POOL_SIZE",
            "DB_POLL_MAX",
            "PG_POOL_SIZE",
            "POOL_PRE_PING",
        ],
    )
    def test_excludes_pool_settings(self, name: str) -> None:
        """Beside DATABASE_URL any pool setting, of any role and also misspelt, is refused by name."""
        (line,) = faults(DATABASE_URL=self.URL, **{name: "1"})
        assert line == (
            f"{name}=1 is a pool setting beside DATABASE_URL, and they exclude each other: unset it; or unset"
            " DATABASE_URL and set DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME"
        )

    def test_what_is_no_pool_setting_may_stand_beside_it(self) -> None:
        """What the address is of, whether a read is tried again, and the engine: no URL can say these."""
        environ = {"DB_POOLER": "transaction", "DB_READ_RETRY": "false", "DB_ENGINE": "tortoise"}
        settings = Settings.load("worker", {"DATABASE_URL": self.URL, **environ})
        assert (settings.db.pooler, settings.db.read_retry, settings.db.engine) == ("transaction", False, "tortoise")
        assert settings.warnings == ()

    def test_excludes_pool_settings_of_dotenv(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pool setting in `.env` is refused beside a DATABASE_URL of the environment."""
        (tmp_path / ".env").write_text("DB_POOL_MAX=7\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DATABASE_URL", self.URL)
        with pytest.raises(SettingsError, match="DB_POOL_MAX=7 is a pool setting beside DATABASE_URL"):
            Settings.load("worker")

    def test_names_each(self) -> None:
        """All pool settings beside a URL are named, each on its line."""
        lines = faults(DATABASE_URL=self.URL, DB_POOL_MIN="1", DB_POOL_MAX="x", WORKER_DB_MAX_QUERIES="9")
        assert [line.partition("=")[0] for line in lines] == ["DB_POOL_MIN", "DB_POOL_MAX", "WORKER_DB_MAX_QUERIES"]

    @pytest.mark.parametrize(
        "parameter", ["minsize", "maxsize", "min_size", "max_size", "max_queries", "pool_size", "max_overflow"]
    )
    def test_refuses_pool_parameters_of_the_query(self, parameter: str) -> None:
        """Pool parameters inside the URL are refused by name."""
        (line,) = faults(DATABASE_URL=f"{self.URL}?{parameter}=5")
        assert line.startswith(f"DATABASE_URL has the pool parameter '{parameter}', and DATABASE_URL and pool settings")
        assert SECRET not in line

    @pytest.mark.parametrize("parameter", ["ssl", "foo", "options", "user", "SSLMODE"])
    def test_refuses_unknown_parameters(self, parameter: str) -> None:
        """Any other query parameter is refused by name, with those that work."""
        (line,) = faults(DATABASE_URL=f"{self.URL}?{parameter}=false")
        assert line.startswith(
            f"DATABASE_URL has the parameter '{parameter}', which is not known here: remove it; known"
        )

    def test_parts_beside_it_warn(self) -> None:
        """The URL wins over DB_HOST and the other parts, and one warning names them all."""
        settings = Settings.load(
            "worker", {"DATABASE_URL": self.URL, "DB_HOST": "x", "DB_PASSWORD": "y", "WORKER_DB_PORT": "9"}
        )
        assert settings.db.host == ("db.example",)
        assert settings.warnings == ("DATABASE_URL is set, so these are ignored: DB_HOST, WORKER_DB_PORT, DB_PASSWORD",)

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("mysql://u:{}@h/d", "DATABASE_URL has the scheme 'mysql'"),
            ("u:{}@h/d", "DATABASE_URL has no scheme"),
            ("{}", "DATABASE_URL has no scheme"),
            ("postgres://u:{}@h:99999/d", "DATABASE_URL (port) is greater than 65535"),
            ("postgres://u:{}@h:x/d", "DATABASE_URL (port) is not a whole number"),
            ("postgres://u:a/{}@h/d", "DATABASE_URL has an '@' after the host"),
            ("postgres://u:a?{}@h/d", "DATABASE_URL has an '@' after the host"),
            ("postgres://u:a#{}@h/d", "DATABASE_URL has a '#' that is not percent-encoded"),
            ("postgres://u:{}@h/d/e", "DATABASE_URL has more than one '/' after the host"),
            ("postgres://u:{}@h,/d", "DATABASE_URL has an empty host"),
            ("postgres://u:{}@[h/d", "DATABASE_URL is not a URL"),
            ("postgres://u:{}@h/d?sslmode=on", "DATABASE_URL (sslmode) is not one of disable, allow"),
            ("postgres://u:{}@h/d?connect_timeout=0", "DATABASE_URL (connect_timeout) is not greater than 0"),
        ],
    )
    def test_bad_urls(self, url: str, problem: str) -> None:
        """A URL that cannot be read is refused with the reason and without any part of its password."""
        lines = faults(DATABASE_URL=url.format(SECRET))
        assert lines[0].startswith(problem)
        assert SECRET not in "".join(lines)


class TestRedisUrl:
    def test_parts(self) -> None:
        """REDIS_URL gives the connection, and `rediss` switches TLS on; parts beside it are named and ignored."""
        settings = Settings.load(
            "worker",
            {"REDIS_URL": f"rediss://u:{SECRET}@cache:7000/3", "REDIS_HOST": "x", "REDIS_MAX_CONNECTIONS": "9"},
        )
        redis = settings.redis
        assert (redis.host, redis.port, redis.db, redis.username, redis.tls) == ("cache", 7000, 3, "u", True)
        assert redis.password is not None
        assert redis.password.get_secret_value() == SECRET
        assert redis.max_connections == 9
        assert settings.warnings == ("REDIS_URL is set, so these are ignored: REDIS_HOST",)

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("http://{}@h", "REDIS_URL has the scheme 'http'"),
            ("redis://:{}@h:99999", "REDIS_URL has a port that is not a whole number"),
            ("redis://:{}@h/x", "REDIS_URL (db) is not a whole number"),
            ("redis://:{}@h?timeout=1", "REDIS_URL has the parameter 'timeout', which is not known here"),
            ("redis://:a/{}@h", "REDIS_URL has an '@' after the host"),
        ],
    )
    def test_bad_urls(self, url: str, problem: str) -> None:
        """A REDIS_URL that cannot be read is refused with the reason and without its password."""
        lines = faults(REDIS_URL=url.format(SECRET))
        assert lines[0].startswith(problem)
        assert SECRET not in "".join(lines)


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
