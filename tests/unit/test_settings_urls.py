"""DATABASE_URL and REDIS_URL: how they are read, what may not stand in them or beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import Settings, SettingsError
from tests.settings_faults import faults

SECRET = "s3cr3t-Zx9"


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
