from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return ExitCode.OK", 0),
        ("return ExitCode.FINDING", 1),
        ("os.kill(os.getpid(), signal.SIGTERM); await asyncio.Event().wait()", 0),
        ("os.kill(os.getpid(), signal.SIGINT); await asyncio.Event().wait()", 0),
    ],
    ids=["fine", "a finding", "SIGTERM", "SIGINT"],
)
def test_how_a_process_ends(body: str, code: int, tmp_path: Path) -> None:
    """The exit code is what `main` returns; a signal cancels it, which is a clean end, without a traceback."""
    done = _run(body, tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_an_expected_error_is_one_line(tmp_path: Path) -> None:
    """An error that says what to do is one line without a traceback, and its exit code is the process's."""
    done = _run("raise QueueLost('Redis is gone: start it')", tmp_path)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    record = json.loads(line)
    assert (record["level"], record["message"]) == ("CRITICAL", "Redis is gone: start it")
    assert "exception" not in record


def test_an_unexpected_error_keeps_its_traceback(tmp_path: Path) -> None:
    """An error that nobody foresaw is in the log with its traceback, on one line, and the exit code is 1."""
    done = _run("raise KeyError('surprise')", tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "KeyError: 'surprise'" in json.loads(line)["exception"]


def test_what_main_opened_is_closed_at_a_signal(tmp_path: Path) -> None:
    """The cancelled `main` has the time that its closing takes."""
    body = (
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "    try:\n        await asyncio.Event().wait()\n"
        "    finally:\n        await asyncio.sleep(0.05); sys.stdout.write('closed')"
    )
    done = _run(body, tmp_path)
    assert (done.returncode, done.stdout) == (0, "closed")


def test_a_signal_just_before_main_handles_them_itself(tmp_path: Path) -> None:
    """A signal that came while `main` put handlers of its own in place still cancels it."""
    body = (
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "    for each in (signal.SIGTERM, signal.SIGINT):\n"
        "        asyncio.get_running_loop().remove_signal_handler(each)\n"
        "        signal.signal(each, lambda *_: None)\n"
        "    await asyncio.wait_for(asyncio.Event().wait(), timeout=10)"
    )
    done = _run(body, tmp_path)
    assert done.returncode == 0, done.stderr


def _run(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A process whose `main` has this body, in a folder without `.env`."""
    program = (
        "import asyncio, os, signal, sys\n"
        "from config.exit_codes import ExitCode\n"
        "from fleet.entry import run\n"
        "from fleet.errors import QueueLost\n"
        f"async def main(settings):\n    {body}\n"
        "sys.exit(run('worker', main))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
