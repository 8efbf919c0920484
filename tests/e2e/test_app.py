"""The stack with the app of examples/reminder: its compose override, and what a person does with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.stack import Stack
from tests.waiting import wait_until

SAID_S = 120.0


@pytest.fixture(scope="module")
def up(stack: Stack) -> Stack:
    stack.set(COMPOSE_FILE="docker-compose.yml:examples/reminder/docker-compose.yml", WORKERS=1)
    stack.up()
    stack.wait_for_processes(2)
    return stack


def test_migrated(up: Stack) -> None:
    """`migrate` applied the app's migrations, and `poolctl check` knows them."""
    assert "applied reminder.0001_initial" in up.logs("migrate")
    assert up.psql("SELECT to_regclass('reminder')") == "reminder"
    assert "schema: up to date" in up.poolctl("check").stdout


def test_a_reminder(up: Stack) -> None:
    """What is typed into the bot fires in the worker, and the next console of that chat hears it."""
    bot = ("run", "--rm", "-T", "-e", "BOT_TRANSPORT=console", "bot")
    assert "I will remind you at" in up.compose(*bot, stdin="/remind 1s tea\n").stdout
    fired = "SELECT count(*) FROM reminder WHERE fired IS NOT NULL"
    wait_until(lambda: up.psql(fired) == "1", timeout_s=SAID_S, what="the reminder has fired", poll_s=1.0)
    wait_until(
        lambda: "Reminder: tea" in up.compose(*bot, stdin="/status\n/reminders\n").stdout,
        timeout_s=SAID_S,
        what="a console hears it",
        poll_s=1.0,
    )


def test_the_code_cannot_be_changed_from_inside(up: Stack) -> None:
    """The mounted code is read-only in the container."""
    done = up.compose("exec", "-T", "worker", "touch", "/app/examples/x", check=False)
    assert done.returncode != 0
    assert not Path(up.folder / "examples" / "x").exists()
