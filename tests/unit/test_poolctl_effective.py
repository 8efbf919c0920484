from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from dotenv.parser import parse_stream
from hypothesis import given
from hypothesis import strategies as st

from config import Settings
from config.effective import MASK, effective_settings
from config.environment import read
from config.settings import Role
from poolctl.effective import as_env, as_json, quoted


def env_of(role: Role, variables: dict[str, str]) -> str:
    return as_env(Settings.load(role, variables), read(variables))


def parsed(text: str) -> dict[str, str]:
    bindings = list(parse_stream(io.StringIO(text)))
    assert not any(binding.error for binding in bindings)
    return {binding.key: binding.value or "" for binding in bindings if binding.key}


def row(variables: dict[str, str], name: str, role: Role = "worker") -> tuple[object, str, str]:
    settings = Settings.load(role, variables)
    (found,) = (s for s in effective_settings(settings, read(variables)) if s.variable == name)
    return found.value, found.text, found.origin


@given(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), min_size=1))
def test_quoted_values_are_read_back(text: str) -> None:
    """Whatever a value holds, python-dotenv reads the quoted text back as it was."""
    assert parsed(f"A={quoted(text)}\nB=b") == {"A": text, "B": "b"}


WORDS = st.text(st.sampled_from("ab '\"\\#$={}ä–\n"), min_size=1).map(lambda text: f"x{text}x")
SETTABLE = st.fixed_dictionaries(
    {},
    optional={
        "DB_HOST": st.sampled_from(["db", "a,b", "::1"]),
        "DB_SCHEMA": st.just("app"),
        "DB_NAME": WORDS,
        "DB_USER": WORDS,
        "DB_PASSWORD": st.just("not-to-be-seen"),
        "DB_POOL_MAX": st.integers(10, 99).map(str),
        "WORKER_DB_POOL_MAX": st.integers(10, 99).map(str),
        "BOT_DB_POOL_TIMEOUT": st.floats(0.1, 99, allow_subnormal=False).map(str),
        "DB_ECHO": st.sampled_from(["yes", "0", "True"]),
        "DB_APPLICATION_NAME": st.sampled_from(["app-{pid}", "plain"]),
        "REDIS_PASSWORD": st.just("not-to-be-seen"),
        "WORKER_QUEUE": WORDS,
        "BOT_ADMINS": st.just("1, 2"),
        "LOG_LEVEL": st.just("debug"),
    },
)


@given(SETTABLE, st.sampled_from(["worker", "bot"]))
def test_env_gives_the_same_settings_again(variables: dict[str, str], role: Role) -> None:
    """The env format, with the secrets put in, loads to the settings that it was made from."""
    text = env_of(role, variables)
    assert "not-to-be-seen" not in text
    secrets = {name: value for name, value in variables.items() if name.endswith("PASSWORD")}
    again, before = Settings.load(role, parsed(text) | secrets), Settings.load(role, variables)
    assert (again.db, again.redis, again.bot, again.log) == (before.db, before.redis, before.bot, before.log)
    if role == "worker":  # a bot's file has none of the variables that are a worker's alone
        assert again.worker == before.worker


def test_env_of_a_secret_file(tmp_path: Path) -> None:
    """A secret's file is named, which is as good as the secret; what is in it is not shown."""
    (tmp_path / "pass word").write_text("not-to-be-seen\n")
    variables = {"WORKER_DB_PASSWORD_FILE": str(tmp_path / "pass word"), "DB_PASSWORD": "not-to-be-seen-either"}
    text = env_of("worker", variables)
    assert "not-to-be-seen" not in text
    assert parsed(text) == {"WORKER_DB_PASSWORD_FILE": str(tmp_path / "pass word")}
    assert row(variables, "DB_PASSWORD")[:2] == (MASK, MASK)


def test_env_names_the_variable_that_won() -> None:
    """What was set for one role only is written so, since the file is read by all roles."""
    assert parsed(env_of("worker", {"WORKER_DB_POOL_MAX": "7", "DB_POOL_MIN": "1"})) == {
        "WORKER_DB_POOL_MAX": "7",
        "DB_POOL_MIN": "1",
    }


def test_env_beside_urls() -> None:
    """With URLs in use, what they say and the pool settings they exclude are comments, and so are the URLs."""
    urls = {
        "DATABASE_URL": "postgres://ada:not-to-be-seen@db/fleet",
        "REDIS_URL": "redis://:not-to-be-seen@cache/3",
        "DB_SSLMODE": "require",
        "DB_HOST": "ignored",
        "REDIS_DB": "15",
    }
    text = env_of("worker", urls)
    assert "not-to-be-seen" not in text
    assert parsed(text) == {"DB_SSLMODE": "require"}
    for line in [
        f"# DATABASE_URL={MASK}  environment",
        "# DB_HOST=db  DATABASE_URL",
        "# DB_POOL_MAX=5  default",
        "# REDIS_DB=3  REDIS_URL",
    ]:
        assert line in text.splitlines()


def test_values_and_origins() -> None:
    """A value is typed for JSON and text for people, and says which variable won."""
    assert row({"DB_POOL_MAX": "7"}, "DB_POOL_MAX") == (7, "7", "environment")
    assert row({"WORKER_DB_POOL_MAX": "7"}, "DB_POOL_MAX") == (7, "7", "environment (WORKER_DB_POOL_MAX)")
    assert row({"WORKER_DB_POOL_MAX": "7"}, "DB_POOL_MAX", "bot") == (10, "10", "default")
    assert row({}, "DB_SSLROOTCERT") == (None, "–", "default")
    assert row({"DB_HOST": "a,b"}, "DB_HOST") == (["a", "b"], "a,b", "environment")


def test_secrets_are_masked() -> None:
    """A secret shows only that there is one; a password inside another value hides that value too."""
    assert row({"BOT_TOKEN": "1:x"}, "BOT_TOKEN") == (MASK, MASK, "environment")
    assert row({}, "BOT_TOKEN") == (None, "–", "default")
    assert row({}, "DB_PASSWORD") == (MASK, MASK, "default")
    assert row({"BOT_API_URL": "http://user:pass@host"}, "BOT_API_URL") == (MASK, MASK, "environment")
    assert row({"BOT_API_URL": "http://host:81"}, "BOT_API_URL")[1] == "http://host:81"


def test_application_name_is_the_template() -> None:
    """The application name is shown unfilled: filled in, it would hold the process id of the command."""
    assert row({}, "DB_APPLICATION_NAME")[0] == "{role}@{host}:{pid}"
    assert row({"WORKER_DB_APPLICATION_NAME": "w-{pid}"}, "DB_APPLICATION_NAME")[0] == "w-{pid}"
    named = {"DATABASE_URL": "postgres://db/fleet?application_name=app"}
    assert row(named, "DB_APPLICATION_NAME")[0] == "app"


@pytest.mark.parametrize("role", ["worker", "bot"])
def test_json(role: Role) -> None:
    """JSON has role, legacy mode and warnings beside the settings."""
    variables = {"DATABASE_URL": "postgres://db/fleet", "DB_NAME": "ignored"}
    shown = json.loads(as_json(Settings.load(role, variables), read(variables)))
    assert (shown["role"], shown["legacy"]) == (role, True)
    assert "DB_NAME" in shown["warnings"][0]
    assert shown["settings"]["DB_NAME"] == {"value": "fleet", "origin": "DATABASE_URL"}
