"""An app of somebody's own: APP names it, and every process follows."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config import Settings
from fleet import Job, NoArguments, enqueue, open_queue
from local import Tether
from tests.bot_api import OPERATOR, TOKEN, FakeBotApi, open_bot_api
from tests.conftest import Environ
from tests.local_fleet import open_project
from tests.processes import ROOT, Spawned, Spawner
from tests.secrecy import Secrecy
from tests.terminal import Terminal
from tests.waiting import until

pytestmark = pytest.mark.slow  # a fleet of its own for each

README = (ROOT / "examples" / "reminder" / "README.md").read_text(encoding="utf-8")
APP = {"APP": "examples.reminder"}
PATIENT_S = 90.0  # the machine may be busy


def without_numbers(text: str) -> str:
    """The text as on any day."""
    return re.sub(r"\d+", "N", text)


@pytest.fixture
def reminding(spawn: Spawner, environ: Environ) -> Environ:
    """The environment of a fleet with the app, migrated by `poolctl migrate`."""
    done = spawn.run("poolctl", "migrate", environ=environ | APP)
    assert done.returncode == 0, done.stderr
    assert "applied reminder.0001_initial" in done.stdout
    return environ | APP


@pytest.fixture
def worker(spawn: Spawner, reminding: Environ) -> Spawned:
    """A worker with the app, up."""
    process = spawn("worker", environ=reminding)
    process.wait_for(" is up", timeout_s=60)
    return process


def test_the_session_of_its_readme(spawn: Spawner, tether: Tether, reminding: Environ, worker: Spawned) -> None:
    """Who types what the app's README shows sees what it shows; the reminder comes by itself, once, over the prompt."""
    shown = re.search(r"<!-- session: begin -->\n```text\n(.*?)\n```\n<!-- session: end -->", README, re.DOTALL)
    assert shown is not None
    typed = re.findall(r"^> (.*)$", shown[1], re.MULTILINE)
    terminal = Terminal(tether, "bot", environ=reminding | {"LOG_LEVEL": "WARNING"}, cwd=spawn.folder)
    try:
        for number, line in enumerate(typed, 1):
            terminal.wait_until(
                lambda screen, number=number: screen.endswith("\n> ") and screen.count("\n> ") == number
            )
            terminal.type(f"{line}\n")
        terminal.wait_for(r"\nReminder: tea\n> $")
        assert without_numbers(terminal.screen().removesuffix("\n> ")) == without_numbers(shown[1])
        terminal.type("/reminders\n")
        terminal.wait_for(r"UTC  go home\n> $")
        terminal.type("/remind tea\n")
        terminal.wait_for(r"give a delay and a text\. Usage: /remind <delay> <text>\n> $")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
        assert terminal.screen().count("Reminder: tea") == 1
    finally:
        terminal.close()
    assert re.search(r"remind:\d+:remind is done", worker.output())


@pytest.fixture
async def api(secrecy: Secrecy) -> AsyncIterator[FakeBotApi]:
    secrecy.secrets.add(TOKEN.partition(":")[2])
    async with open_bot_api() as opened:
        yield opened


async def test_telegram(spawn: Spawner, reminding: Environ, worker: Spawned, api: FakeBotApi) -> None:
    """A reminder that was set in a chat of telegram arrives in that chat, once; by another bot than the first, too."""
    telegram = reminding | {"BOT_TOKEN": TOKEN, "BOT_API_URL": api.url, "BOT_ADMINS": str(OPERATOR)}
    bot = spawn("bot", environ=telegram)
    api.write("/remind 1s tea")
    await until(lambda: len(api.texts()) >= 2, timeout_s=PATIENT_S, what="the reminder")
    assert api.texts()[1:] == ["Reminder: tea"]
    api.write("/remind 2s a second cup & more")
    await until(lambda: len(api.texts()) >= 3, timeout_s=PATIENT_S, what="the answer")
    bot.send(signal.SIGTERM)
    assert await asyncio.to_thread(bot.wait, PATIENT_S) == 0
    spawn("bot", environ=telegram)
    await until(lambda: len(api.texts()) >= 4, timeout_s=PATIENT_S, what="the reminder by another bot")
    assert api.texts()[3:] == ["Reminder: a second cup & more"]


# A copy of the example.


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """`cp -r examples/reminder shop`, in a folder of its own."""
    return shutil.copytree(ROOT / "examples" / "reminder", tmp_path / "shop")


def edit(file: Path, old: str, new: str) -> None:
    """Replace a text that is in the file once."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{text.count(old)} × {old} in {file}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_a_copy(spawn: Spawner, tether: Tether, environ: Environ, copy: Path) -> None:
    """APP=shop runs the copy, and nothing of the original: its migration, its commands, its job."""
    edit(copy / "commands.py", "I will remind you at", "The shop will remind you at")
    edit(copy / "jobs.py", "Reminder: ", "From the shop: ")
    (copy / "migrations" / "0001_initial.py").rename(copy / "migrations" / "0001_of_the_shop.py")
    shop = environ | {"APP": "shop"}
    migrated = spawn.run("poolctl", "migrate", environ=shop, cwd=copy.parent)
    assert migrated.returncode == 0, migrated.stderr
    assert "applied reminder.0001_of_the_shop" in migrated.stdout
    worker = spawn("worker", environ=shop, cwd=copy.parent)
    worker.wait_for(" is up", timeout_s=60)
    terminal = Terminal(tether, "bot", environ=shop | {"LOG_LEVEL": "WARNING"}, cwd=copy.parent)
    try:
        terminal.wait_for(r"> $")
        terminal.type("/remind 1s tea\n")
        terminal.wait_for(r"\nThe shop will remind you at [\d:]+ UTC: tea\n")
        terminal.wait_for(r"\nFrom the shop: tea\n> $")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    finally:
        terminal.close()


def test_a_copy_with_names_of_its_own(spawn: Spawner, environ: Environ, copy: Path) -> None:
    """Renamed as the app's README says, the copy has a table and a migration beside those of the original."""
    edit(copy / "__init__.py", '"reminder"', '"shop"')
    edit(copy / "models.py", 'table = "reminder"', 'table = "shop_order"')
    commands = re.search(r"<!-- copy: begin -->\n```sh\n(.*?)```\n<!-- copy: end -->", README, re.DOTALL)
    assert commands is not None
    done = subprocess.run(
        ["sh", "-ec", commands[1]],
        cwd=copy.parent,
        env={"PATH": f"{Path(sys.executable).parent}:{os.defpath}"},
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for app, applied in ((APP, "reminder.0001_initial"), ({"APP": "shop"}, "shop.0001_initial")):
        migrated = spawn.run("poolctl", "migrate", environ=environ | app, cwd=copy.parent)
        assert migrated.returncode == 0, migrated.stderr
        assert f"applied {applied}" in migrated.stdout
    checked = spawn.run("poolctl", "check", environ=environ | {"APP": "shop"}, cwd=copy.parent)
    assert "schema: up to date" in checked.stdout, checked.stderr


# An app that cannot be.

PROCESSES = [("worker",), ("bot",), ("poolctl", "migrate"), ("poolctl", "check"), ("poolctl", "up", "--once")]


@pytest.mark.parametrize("command", PROCESSES, ids=" ".join)
def test_no_such_module(spawn: Spawner, environ: Environ, command: tuple[str, ...]) -> None:
    """Every process and every command refuses a wrong APP at its start, in one line, exit code 2."""
    done = spawn.run(*command, environ=environ | {"APP": "examples.remainder"})
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "APP=examples.remainder: there is no module examples.remainder: correct the name" in line


@pytest.mark.parametrize("command", PROCESSES, ids=" ".join)
def test_an_import_that_fails(spawn: Spawner, environ: Environ, tmp_path: Path, command: tuple[str, ...]) -> None:
    """An app whose own import fails is one line, exit code 2, with the traceback before it."""
    (tmp_path / "shop.py").write_text("price = 1 / 0\n")
    done = spawn.run(*command, environ=environ | {"APP": "shop"}, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "APP=shop: importing shop failed: ZeroDivisionError: division by zero" in done.stderr.splitlines()[-1]
    assert "price = 1 / 0" in done.stderr


SHOP = """
from bot import Command
from fleet import App, Job, JobCode, NoArguments, Process

SELL = Job("sell", NoArguments, int)

async def sell(process: Process, _: NoArguments) -> int:
    return 42

def commands(process: Process) -> list[Command]:
    return {commands}

app = App("shop", jobs=[JobCode(SELL, sell)], commands=commands)
"""


@pytest.mark.parametrize(
    ("commands", "told"),
    [
        ('[Command("status", "", None)]', "a command is called /status, and so is another one: rename it"),
        ('[Command("help", "", None)]', "a command is called /help, and so is another one: rename it"),
        ('["sell"]', "a command is of type str: make it a bot.Command"),
        ("[][1]", "making its commands failed: IndexError: list index out of range"),
    ],
)
def test_commands_that_cannot_be(spawn: Spawner, environ: Environ, tmp_path: Path, commands: str, told: str) -> None:
    """A bot whose app has a command of a name that is taken, or none, does not start: exit code 2."""
    (tmp_path / "shop.py").write_text(SHOP.replace("{commands}", commands))
    done = spawn.run("bot", environ=environ | {"APP": "shop", "LOG_FORMAT": "text"}, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"APP=shop: {told}" in done.stderr.splitlines()[-1]


CLOCK = """
import logging

from fleet import App, Hooks, Job, JobCode, NoArguments, Scheduled, Times

TICK = Job("tick", NoArguments, int)
log = logging.getLogger("clock")


async def tick(process, arguments):
    log.info("tick runs")
    return 0


async def before(job_id):
    log.info("before %s", job_id)


app = App(
    "clock",
    jobs=[JobCode(TICK, tick)],
    scheduled=[Scheduled(TICK, NoArguments(), Times(second=None))],
    hooks=Hooks(before=before),
)
"""


def test_certain_times_and_hooks(spawn: Spawner, environ: Environ, tmp_path: Path) -> None:
    """A worker runs what the app schedules, and calls its hooks."""
    (tmp_path / "clock.py").write_text(CLOCK)
    worker = spawn("worker", environ=environ | {"APP": "clock", "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    worker.wait_for("before tick:", timeout_s=60)
    worker.wait_for("tick runs", timeout_s=60)


def test_behind(spawn: Spawner, environ: Environ) -> None:
    """Where the app's migration is missing, no process starts, and `poolctl check` says so: exit code 3."""
    for command in (("worker",), ("bot",), ("poolctl", "check")):
        done = spawn.run(*command, environ=environ | APP)
        assert done.returncode == 3, done.stderr
        assert "not applied: reminder.0001_initial: run `poolctl migrate`" in done.stdout + done.stderr


async def test_up(spawn: Spawner, secrecy: Secrecy, tmp_path: Path) -> None:
    """`poolctl up` in the folder of an app, on servers of its own, runs its jobs."""
    (tmp_path / "shop.py").write_text(SHOP.replace("{commands}", "[]"))
    with open_project(tmp_path, spawn, secrecy) as project:
        fleet = project.up("--workers", "1", "--bots", "1", environ={"APP": "shop"})
        await asyncio.to_thread(fleet.wait_until_up)
        async with open_queue(Settings.load("poolctl", fleet.environ())) as queue:
            sold = await enqueue(queue, Job("sell", NoArguments, int), NoArguments())
            assert await sold.result(timeout=PATIENT_S) == 42
        fleet.process.send(signal.SIGTERM)
        assert await asyncio.to_thread(fleet.process.wait, PATIENT_S) == 0


def test_up_migrates(spawn: Spawner, secrecy: Secrecy, tmp_path: Path) -> None:
    """`poolctl up` applies the app's migrations to its own database."""
    with open_project(tmp_path, spawn, secrecy) as project:
        fleet = project.up("--workers", "1", "--once", environ=APP)
        assert fleet.process.wait(PATIENT_S) == 0, fleet.process.output()
