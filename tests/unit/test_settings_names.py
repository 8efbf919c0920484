"""Names that are no settings: refused where a pool setting was surely meant, else a warning or none."""

from __future__ import annotations

import pytest

from config import Settings
from tests.settings_faults import faults


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
