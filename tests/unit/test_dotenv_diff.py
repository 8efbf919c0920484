"""What of a `.env` a diff shows."""

from __future__ import annotations

import io
import re

from dotenv.parser import parse_stream
from hypothesis import assume, given

from config.reference import env_example
from poolctl.dotenv_diff import unified_diff
from poolctl.dotenv_text import with_value
from tests.unit.test_dotenv_text import NAMES, texts

SECRETS = """\
# from the old machine, password hunter2-a
DB_PASSWORD=hunter2-b
export AWS_SECRET_ACCESS_KEY = 'hunter2-c
hunter2-d'
WORKERS=2 # token hunter2-e
#BOT_TOKEN=hunter2-f
# BOT_TOKEN: hunter2-f
BOT_API_URL=https://me:hunter2-g@example.com/
# postgres://me:hunter2-h@example.com/
STRANGE=hunter2-i
"""


def test_a_change() -> None:
    before = "# a fleet\nWORKERS=2\nDB_POOL_MIN=1\n"
    assert unified_diff(before, with_value(before, "WORKERS", "10")) == (
        "--- .env\n+++ .env\n@@ -1,3 +1,3 @@\n # a fleet\n-WORKERS=2\n+WORKERS=10\n DB_POOL_MIN=1"
    )


def test_a_new_file() -> None:
    assert unified_diff(None, "WORKERS=10\n") == "--- /dev/null\n+++ .env\n@@ -0,0 +1 @@\n+WORKERS=10"


def test_a_line_without_end() -> None:
    """As diff tells it, or a line would seem to change that looks the same."""
    assert unified_diff("A=1\r\nWORKERS=2", "A=1\r\nWORKERS=3").splitlines()[3:] == [
        " A=***",
        "-WORKERS=2",
        "\\ No newline at end of file",
        "+WORKERS=3",
        "\\ No newline at end of file",
    ]


def test_secrets_are_masked() -> None:
    """In values by their names, unknown ones too, in values of several lines, and in comments."""
    diff = unified_diff(SECRETS, with_value(with_value(SECRETS, "WORKERS", "10"), "COMPOSE_PROFILES", "pgbouncer"))
    assert "hunter2" not in diff
    for line in (
        "-WORKERS=2 # ***",
        "+WORKERS=10 # ***",
        "+COMPOSE_PROFILES=pgbouncer",
        " export AWS_SECRET_ACCESS_KEY = ***",
        " #BOT_TOKEN=***",
        " BOT_API_URL=https://***@example.com/",
        " STRANGE=***",
    ):
        assert line in diff.splitlines()


def test_the_example_is_shown_as_it_is() -> None:
    """Its comments speak of passwords, and hold none."""
    before = env_example()
    diff = unified_diff(before, with_value(before, "DB_NAME", "shop"))
    assert "***" not in diff
    assert "+DB_NAME=shop" in diff


def test_nothing_moves_the_cursor() -> None:
    diff = unified_diff("# \x1b[2J\u202e\nWORKERS=2\n", "# \x1b[2J\u202e\nWORKERS=3\n")
    assert " # \\x1b[2J\\u202e" in diff.splitlines()


@given(texts())
def test_no_value_of_a_secret(text: str) -> None:
    """However it is written: quoted, on several lines, twice, commented out, with a comment after it."""
    marked = re.sub("|".join(NAMES), "DB_PASSWORD", text).replace("a", "hunter2")
    for binding in parse_stream(io.StringIO(marked)):  # a secret in prose only a person could tell
        assume(binding.key or "hunter2" not in binding.original.string or "#DB_PASSWORD=" in binding.original.string)
    assert "hunter2" not in unified_diff(marked, with_value(marked, "WORKERS", "3"))
