"""README's session with the bot on a terminal, typed."""

from __future__ import annotations

import re

import pytest

from local import Tether
from tests.conftest import Environ
from tests.processes import ROOT, Spawned, Spawner
from tests.terminal import Terminal

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = "LOG_LEVEL=WARNING python -m bot"
PROMPT = "> "


def session() -> list[str]:
    """The lines that the terminal shows in README's session, what is typed among them."""
    found = re.search(r"<!-- console: begin -->\n```text\n(.*?)\n```\n<!-- console: end -->", README, re.DOTALL)
    assert found is not None, "README has no session between its marks"
    return found[1].splitlines()


def at_prompt(screen: str, number: int) -> bool:
    """Whether the terminal shows the prompt for the so-manieth line and nothing after it."""
    return screen.count(f"\n{PROMPT}") == number and screen.endswith(f"\n{PROMPT}")


def answers(lines: list[str]) -> list[list[str]]:
    """The lines of each answer, without what differs from run to run; rows in any order."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.startswith(PROMPT.rstrip()):
            found[-1].sort()
            found.append([line.rstrip()])
        else:
            found[-1].append(constant(line))
    found[-1].sort()
    return found


def constant(line: str) -> str:
    """A line with a process's address as ADDRESS, each number as N, and one space between columns."""
    addressed = re.sub(r"[\w.-]+:\d+", "ADDRESS", line)
    return " ".join(re.sub(r"\d+(\.\d+)?", "N", addressed).split())


@pytest.fixture
def worker(spawn: Spawner, environ: Environ) -> Spawned:
    process = spawn("worker", environ=environ)
    process.wait_for(" is up", timeout_s=60)
    return process


def test_session(spawn: Spawner, tether: Tether, environ: Environ, worker: Spawned) -> None:
    """What README shows of a session is what a person sees who types it, and Ctrl-D ends it."""
    assert f"`{COMMAND}` on a terminal" in README
    setting, _, module = COMMAND.partition(" python -m ")
    shown = session()
    terminal = Terminal(tether, module, environ=environ | dict([setting.split("=")]), cwd=spawn.folder)
    try:
        typed = [line.removeprefix(PROMPT) for line in shown if line.startswith(PROMPT)]
        for number, line in enumerate(typed):
            terminal.wait_until(lambda screen, number=number: at_prompt(screen, number + 1))
            terminal.type(f"{line}\n")
        terminal.wait_until(lambda screen: at_prompt(screen, len(typed) + 1))
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
        seen = terminal.screen().rstrip("\n").removesuffix(PROMPT).rstrip("\n")
    finally:
        terminal.close()
    assert answers(seen.splitlines()) == answers(shown)
