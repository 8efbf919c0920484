"""How processes are kept running and read from; that they are stopped is shown in tests/acceptance/test_up.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from local import ProcessRefused, Supervisor, Tether, open_supervisor
from tests.waiting import until


@dataclass
class Stage:
    """A folder with a module `worker` of the test's own, and what was heard of its processes."""

    folder: Path
    tether: Tether
    lines: list[tuple[str, str]] = field(default_factory=list)

    def write(self, code: str) -> None:
        (self.folder / "worker.py").write_text(code)

    @asynccontextmanager
    async def supervised(self, count: int = 1, cwd: Path | None = None) -> AsyncIterator[Supervisor]:
        async with open_supervisor(
            self.tether,
            {"PATH": os.defpath, "PYTHONPATH": str(self.folder)},
            cwd or self.folder,
            {"worker": count},
            on_line=lambda name, line: self.lines.append((name, line)),
            grace_s=5,
            hurry=asyncio.Event(),
        ) as supervisor:
            yield supervisor

    def heard(self, text: str) -> Any:
        return lambda: [line for _, line in self.lines if text in line]


@pytest.fixture
def stage(tmp_path: Path, tether: Tether) -> Stage:
    return Stage(tmp_path, tether)


async def test_a_process_that_keeps_ending_is_started_ever_more_rarely(stage: Stage) -> None:
    """The wait before a restart doubles each time, and the restarts are counted."""
    stage.write("raise SystemExit(3)")
    async with stage.supervised() as supervisor:
        await until(stage.heard("restart in 2 s"))
        assert [line for _, line in stage.lines] == [
            f"ended by itself with exit code 3: restart in {delay} s" for delay in ("0.5", "1", "2")
        ]
        assert supervisor.processes[0].restarts == 2


async def test_a_process_that_refuses_its_settings_is_not_started_again(stage: Stage) -> None:
    """Exit code 2 ends the supervision with the name of the process."""
    stage.write("raise SystemExit(2)")
    async with stage.supervised() as supervisor, asyncio.timeout(10):
        with pytest.raises(ProcessRefused, match="worker-1 refuses its settings"):
            await supervisor.failure()


async def test_a_process_that_cannot_be_started_is_tried_again(stage: Stage) -> None:
    """An error of the operating system at the start may pass, and does not end the supervision."""
    stage.write("print('hello', flush=True); import signal; signal.pause()")
    missing = stage.folder / "later"
    async with stage.supervised(cwd=missing):
        await until(stage.heard("cannot be started"))
        missing.mkdir()
        await until(stage.heard("hello"))


async def test_every_line_is_handed_on(stage: Stage) -> None:
    """Lines of both outputs come whole and by name, also long ones, bad UTF-8, and the last without a line break."""
    stage.write(
        "import os, sys\n"
        "os.write(1, b'first\\r\\n\\xff\\n' + b'x' * 200_000 + b'\\n')\n"
        "print('to stderr', file=sys.stderr, flush=True)\n"
        "os.write(1, b'last')\n"
        "raise SystemExit(1)"
    )
    async with stage.supervised(2):
        await until(lambda: len(stage.heard("ended by itself")()) == 2)
    for worker in ("worker-1", "worker-2"):
        lines = [line for name, line in stage.lines if name == worker]
        assert lines[:2] == ["first", "\N{REPLACEMENT CHARACTER}"]
        assert lines[-3:-1] == ["to stderr", "last"]
        assert "".join(lines[2:-3]) == "x" * 200_000


async def test_none_runs_afterwards(stage: Stage) -> None:
    """Leaving stops the processes that run, and starts none of those that wait for a restart."""
    stage.write("print('started', flush=True); import signal; signal.pause()")
    async with stage.supervised(3) as supervisor:
        await until(lambda: len(stage.heard("started")()) == 3)
        children = [process.child for process in supervisor.processes if process.child is not None]
        children[0].stop()
        await until(stage.heard("ended by itself"))
    assert all(child.exit_code() is not None for child in children)
    assert len(stage.heard("started")()) == 3
