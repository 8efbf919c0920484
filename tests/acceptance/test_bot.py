from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from local import Tether
from tests.processes import ROOT, Spawned, Spawner
from tests.proxy import open_proxy
from tests.terminal import Terminal
from tests.waiting import wait_until


@pytest.fixture
def console(environ: dict[str, str]) -> dict[str, str]:
    """An environment for a bot that reads commands from a pipe."""
    return environ | {"BOT_TRANSPORT": "console"}


@pytest.fixture
def bot(spawn: Spawner, console: dict[str, str]) -> Iterator[Spawned]:
    """A bot that reads commands from a pipe, which stays open."""
    process = spawn("bot", environ=console, stdin=True)
    with process.child.input:
        yield process


@pytest.fixture
def worker(spawn: Spawner, environ: dict[str, str]) -> Spawned:
    """A worker that is up."""
    process = spawn("worker", environ=environ | {"DB_POOL_MAX": "4"})
    process.wait_for(" is up")
    return process


def test_help_and_nonsense(spawn: Spawner, console: dict[str, str]) -> None:
    """On a pipe, /help, an unknown command and other text are answered, and the end of input is exit 0."""
    done = spawn.run("bot", environ=console, stdin="/help\n/nope\nhello\n/exercise 0\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in ("help", "status", "connections", "exercise", "settings", "subscribe", "unsubscribe"):
        assert any(line.startswith(f"/{name} ") for line in lines)
    assert lines[-3:] == [
        "Sorry, I do not know /nope: /help lists what I know.",
        "I only understand commands: /help lists them.",
        "n must be a number from 1 to 1000. Usage: /exercise [n]",
    ]


def test_status(spawn: Spawner, console: dict[str, str], worker: Spawned) -> None:
    """/status shows each live process with its pool, and the connections against max_connections."""
    done = spawn.run("bot", environ=console, stdin="/status\n")
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["role", "process", "in", "use", "size", "limit", "jobs", "done", "failed"]
    processes = {row.split()[0]: row.split() for row in rows if row.startswith(("bot ", "worker "))}
    assert processes.keys() == {"bot", "worker"}
    assert processes["worker"][1].endswith(f":{worker.pid}")
    assert processes["worker"][4] == "4"
    assert re.search(rf"^worker@\S+:{worker.pid} +[2-4] +[2-4]%$", done.stdout, re.MULTILINE)
    assert re.search(r"^bot@\S+ +[12] +[12]%$", done.stdout, re.MULTILINE)
    assert re.search(r"^all +\d+ +\d+% of 100$", done.stdout, re.MULTILINE)
    assert re.search(r"^97 of 100 are for everyone, 3 are reserved$", done.stdout, re.MULTILINE)


def test_connections(spawn: Spawner, console: dict[str, str]) -> None:
    """/connections counts by application and state; the bot sees itself at work."""
    done = spawn.run("bot", environ=console, stdin="/connections\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["application", "state", "connections"]
    assert re.search(r"^bot@\S+ +active +[1-9]$", done.stdout, re.MULTILINE)  # its watch may be at work, too


def test_exercise(spawn: Spawner, console: dict[str, str], worker: Spawned) -> None:
    """/exercise 5 runs five jobs on a real worker, shows progress, and sums up the results."""
    done = spawn.run("bot", environ=console, stdin="/exercise 5\n/status\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "0 of 5 done"
    assert "5 of 5 done" in lines
    assert re.search(rf"^jobs by worker: worker@\S+:{worker.pid} 5$", done.stdout, re.MULTILINE)
    assert re.search(r"^\d+ queries, 125 reads, 125 transactions, 0 errors$", done.stdout, re.MULTILINE)
    assert re.search(
        r"^wait for a connection: p50 [\d.]+ ms \(median job\), p95 [\d.]+ ms, p99 [\d.]+ ms \(worst job\)$",
        done.stdout,
        re.MULTILINE,
    )


def test_exercise_without_a_worker(spawn: Spawner, console: dict[str, str]) -> None:
    """Without a worker, /exercise says so at once and puts nothing on the queue."""
    done = spawn.run("bot", environ=console, stdin="/exercise\n/exercise\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("/exercise: no worker is alive") == 2


async def test_failing_command(spawn: Spawner, console: dict[str, str]) -> None:
    """A command that fails is one line for the user and a traceback in the log, and the bot goes on."""
    async with open_proxy(console["REDIS_HOST"], console["REDIS_PORT"]) as proxy:
        bot = spawn("bot", environ=console | {"REDIS_PORT": str(proxy.listens_on)}, stdin=True)
        with bot.child.input:
            await asyncio.to_thread(bot.wait_for, " uses the transport console")
            await proxy.stop()
            bot.write("/exercise\n")
            output = await asyncio.to_thread(bot.wait_for, "/exercise failed: Redis at default@127.0.0.1:")
            assert "Traceback" in output
            bot.write("/help\n")
            await asyncio.to_thread(bot.wait_for, "this list")
        assert await asyncio.to_thread(bot.wait) == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_waiting_console(
    spawn: Spawner, console: dict[str, str], bot: Spawned, signum: signal.Signals
) -> None:
    """A signal ends a bot that waits for input: it says goodbye to the fleet, exit 0."""
    bot.write("/help\n")
    bot.wait_for("/exercise")
    bot.send(signum)
    assert bot.wait(10) == 0
    assert "Traceback" not in bot.output()
    health = spawn.run("bot", "--health", "--pid", str(bot.pid), environ=console)
    assert "is not in the registry" in health.stderr


def test_signal_ends_an_exercise(bot: Spawned, worker: Spawned) -> None:
    """A signal ends a bot in the middle of an exercise, with exit 0 and without a failure."""
    worker.send(signal.SIGSTOP)
    bot.write("/exercise 5\n")
    bot.wait_for("0 of 5 done")
    bot.send(signal.SIGTERM)
    assert bot.wait(10) == 0
    assert "Traceback" not in bot.output()


def test_output_without_a_reader(spawn: Spawner, console: dict[str, str]) -> None:
    """A bot whose answers nobody reads any more ends with exit 0 and no traceback."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "bot"],
        env={"PYTHONPATH": str(ROOT), **console},
        cwd=spawn.folder,
        input="/help\n/help\n",
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(write_end)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_headless(spawn: Spawner, environ: dict[str, str]) -> None:
    """Without a terminal, auto runs headless: it says so, outlives its input, and ends on SIGTERM with exit 0."""
    bot = spawn("bot", environ=environ, stdin=True)
    bot.wait_for("takes no commands")
    with bot.child.input:
        bot.write("/help\n")
    bot.send(signal.SIGTERM)
    assert bot.wait(10) == 0
    assert "ended by SIGTERM" in bot.output()
    assert "this list" not in bot.output()


def test_bad_settings(spawn: Spawner, environ: dict[str, str]) -> None:
    """Bad settings are a line each on standard error, exit 2."""
    done = spawn.run("bot", environ=environ | {"DB_PORT": "none", "BOT_TRANSPORT": "pigeon"})
    assert done.returncode == 2
    assert [line.split("=")[0] for line in done.stderr.splitlines()] == ["DB_PORT", "BOT_TRANSPORT"]


@pytest.fixture
def terminal(spawn: Spawner, tether: Tether, environ: dict[str, str]) -> Iterator[Terminal]:
    """A bot on a terminal, with its prompt shown; nothing but `auto` tells it to be a console."""
    terminal = Terminal(tether, "bot", environ=environ, cwd=spawn.folder)
    terminal.wait_for("Ctrl-D ends")
    yield terminal
    terminal.close()


def test_terminal(terminal: Terminal) -> None:
    """On a terminal auto is the console: a prompt, answers, and Ctrl-D ends it with exit 0."""
    terminal.type("/nope\n")
    terminal.wait_for(r"Sorry, I do not know /nope.*\s+> ")
    terminal.type("\x04")
    assert terminal.child.wait(10) == 0


def test_interrupt_on_a_terminal(terminal: Terminal) -> None:
    """Ctrl-C while the console waits for a line ends it with exit 0."""
    terminal.child.send(signal.SIGINT)
    assert terminal.child.wait(10) == 0


@pytest.mark.slow
def test_health(spawn: Spawner, environ: dict[str, str]) -> None:
    """--health is exit 0 for a live bot, 1 for one that was stopped or killed, 1 where there never was one."""

    def health(*arguments: str) -> int:
        return spawn.run("bot", "--health", *arguments, environ=environ).returncode

    assert health() == 1
    bot = spawn("bot", environ=environ)
    bot.wait_for("takes no commands")
    assert health() == 0
    assert health("--pid", str(bot.pid)) == 0
    assert health("--pid", "1") == 1

    bot.send(signal.SIGSTOP)
    wait_until(lambda: health("--pid", str(bot.pid)) == 1, what="a stopped bot to be unhealthy", timeout_s=30)
    bot.send(signal.SIGCONT)
    wait_until(lambda: health("--pid", str(bot.pid)) == 0, what="a continued bot to be healthy", timeout_s=30)

    bot.send(signal.SIGKILL)
    bot.wait()
    assert health("--pid", str(bot.pid)) == 1


def test_health_without_redis(spawn: Spawner, environ: dict[str, str]) -> None:
    """--health without Redis is exit 3, with bad settings 2, with a bad command line 2."""
    unreachable = environ | {"REDIS_PORT": "1", "REDIS_CONNECT_TIMEOUT": "0.5"}
    assert spawn.run("bot", "--health", environ=unreachable).returncode == 3
    assert spawn.run("bot", "--health", environ=environ | {"DB_PORT": "0"}).returncode == 2
    assert spawn.run("bot", "--pid", "1", environ=environ).returncode == 2
