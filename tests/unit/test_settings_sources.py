"""Where a setting comes from: the environment before `.env`, a role's own variable first, a secret's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import Settings, SettingsError
from config.variables import VARIABLES
from tests.settings_faults import faults

SECRET = "s3cr3t-Zx9"


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
