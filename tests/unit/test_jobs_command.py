from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from bot.jobs_command import dead_text
from fleet.dead_letters import DeadJob
from fleet.job_id import id_bytes, id_text
from fleet.queue_view import QueueView
from poolctl.app import build_app
from poolctl.jobs_command import dead_lines, queue_lines

AT = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_queue_in_words() -> None:
    """The queue is counts, and who runs what."""
    view = QueueView(due=2, oldest_s=3.25, deferred=1, running={"b": "worker@x:2", "a": "worker@x:1"}, dead=4)
    assert queue_lines("arq:queue", view).splitlines() == [
        "queue arq:queue",
        "due       2, the first one for 3.2 s",
        "deferred  1",
        "running   2",
        "  a  worker@x:1",
        "  b  worker@x:2",
        "dead      4: poolctl jobs --dead",
    ]
    assert "dead      0" in queue_lines("q", QueueView(0, 0.0, 0, {}, 0)).splitlines()


def test_a_dead_job_in_words() -> None:
    """A dead job is two lines: what it was, and why it died; a traceback only where it is asked for."""
    job = DeadJob("a", AT, "exercise_pool", {"text": "x" * 400}, "ValueError", "first\nsecond", "Traceback …", 3)
    first, second = dead_lines(job).splitlines()
    assert first.startswith('a  2030-01-02 03:04:05 UTC, try 3  exercise_pool {"text": "xxx')
    assert (len(first) < 400, first[-1], second) == (True, "…", "    ValueError: first")
    assert dead_lines(job, traceback=True).endswith("\nTraceback …")
    unreadable = DeadJob("b", AT, None, None, "JobUnreadable", "", None, 0)
    assert dead_lines(unreadable).splitlines() == [
        "b  2030-01-02 03:04:05 UTC  payload that cannot be read",
        "    JobUnreadable: ",
    ]


def test_nothing_controls_the_terminal() -> None:
    """What a job put into its name, arguments, error and traceback is printed, never obeyed; lines stay lines."""
    nasty = "\x1b[2J\x9b1m\u202e\r\ud800"
    job = DeadJob("a", AT, f"job{nasty}", {"text": nasty}, f"Error{nasty}", f"no{nasty}", f"line{nasty}\n\tnext", 1)
    lines = dead_lines(job, traceback=True).split("\n")
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    assert lines[1].startswith("    Error\\x1b[2J\\x9b1m\\u202e\\r\\ud800: no\\x1b[2J")
    assert lines[3] == "        next"
    assert all(line.isprintable() for line in dead_text(1, [job]).split("\n"))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain", "plain"),
        (b"caf\xe9", "caf\\xe9"),
        ("é".encode() + b"\xe9", "é\\xe9"),
        (b"a\\xe9", "a\\\\xe9"),
        (b"a\\b\\\\c\\", "a\\\\b\\\\\\\\c\\\\"),
        (b"\x1b[2J\r\n\x00", "\\x1b[2J\\x0d\\x0a\\x00"),
        ("\u202e".encode(), "\\xe2\\x80\\xae"),
    ],
)
def test_an_id_as_text(raw: bytes, text: str) -> None:
    """Any id is shown in printable characters, and read back from them."""
    assert (id_text(raw), id_bytes(text)) == (text, raw)
    assert text.isprintable()


def test_an_id_typed_as_bytes() -> None:
    """A byte of the command line that is no UTF-8 is the byte."""
    assert id_bytes(os.fsdecode(b"caf\xe9")) == b"caf\xe9"


@pytest.mark.parametrize("typed", ["\\xZZ", "a\\", "\\u00e9", "\\x1", "é\\n"])
def test_an_escape_that_is_none(typed: str) -> None:
    """A wrong escape is told in one line, before anything is connected to, with the exit code for wrong usage."""
    result = CliRunner().invoke(build_app(), ["jobs", "--retry", "fine", "--retry", typed])
    (line,) = [line for line in result.output.splitlines() if "begins" in line]
    assert (result.exit_code, f"--retry {typed}: " in line) == (2, True)
