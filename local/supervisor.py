"""The worker and bot processes of a fleet on this machine: started, restarted, read from and stopped."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from config.exit_codes import ExitCode
from config.settings import Role
from local.child import Child, Tether
from local.errors import ProcessRefused

LOOK_S = 0.05  # how soon the end of a process is noticed
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0  # before a restart; doubled each time
STEADY_S = 60.0  # a process that ran for so long starts again with the shortest delay
LONGEST_LINE = 65_536  # bytes
LAST_WORDS_S = 1.0  # for reading what an ended process has printed

# Called with the process's name ("worker-1") and one line without its line break.
OnLine = Callable[[str, str], None]


@dataclass(slots=True)
class LocalProcess:
    """One place in the fleet; the process in it changes with each restart."""

    name: str  # "worker-1"
    role: str  # "worker" or "bot": also the module that is run
    child: Child | None = None  # None between its end and its restart
    restarts: int = 0
    delay_s: float = field(default=FIRST_DELAY_S, repr=False)

    @property
    def pid(self) -> int | None:
        """That of the running process; None between its end and its restart."""
        return None if self.child is None else self.child.pid


class Supervisor:
    """Keeps processes running; see `open_supervisor`."""

    def __init__(self, tether: Tether, environ: Mapping[str, str], cwd: Path, on_line: OnLine) -> None:
        self.processes: list[LocalProcess] = []
        self._tether = tether
        self._environ = environ
        self._cwd = cwd
        self._on_line = on_line
        self._keepers: list[asyncio.Task[None]] = []

    def start(self, role: str, count: int) -> None:
        """Start `count` processes `python -m ROLE`."""
        for number in range(1, count + 1):
            process = LocalProcess(f"{role}-{number}", role)
            self.processes.append(process)
            self._keepers.append(asyncio.create_task(self._keep(process), name=f"keeper of {process.name}"))

    async def failure(self) -> None:
        """Wait for what ends the supervision, and raise it: ProcessRefused."""
        done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_EXCEPTION)
        for keeper in done:
            keeper.result()

    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:
        """SIGTERM to all at once; after `grace_s`, or when `hurry` is set, SIGKILL to those that still run."""
        for keeper in self._keepers:
            keeper.cancel()  # no more restarts
        running = {process.name: process.child for process in self.processes if process.child is not None}
        for child in running.values():
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while any(child.exit_code() is None for child in running.values()):
            if hurry.is_set() or time.monotonic() > deadline:
                for name, child in running.items():
                    if child.exit_code() is None:
                        self._on_line(name, "killed: it did not end in time")
                        child.stop()
                break
            await asyncio.sleep(LOOK_S)
        await asyncio.gather(*self._keepers, return_exceptions=True)  # they read what was printed at the end

    async def _keep(self, process: LocalProcess) -> None:
        while True:
            started_s = time.monotonic()
            try:
                code = await self._run(process)
            except OSError as error:  # no memory, no process number left, …: it may pass
                await self._wait_before_restart(process, f"cannot be started ({error})")
                continue
            if code == ExitCode.USAGE:
                raise ProcessRefused(
                    f"{process.name} refuses its settings (exit code {code}), see its log above: "
                    "correct them; it is not started again"
                )
            if time.monotonic() - started_s > STEADY_S:
                process.delay_s = FIRST_DELAY_S
            how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
            await self._wait_before_restart(process, f"ended by itself with {how}")
            process.restarts += 1

    async def _wait_before_restart(self, process: LocalProcess, why: str) -> None:
        self._on_line(process.name, f"{why}: restart in {process.delay_s:g} s")
        await asyncio.sleep(process.delay_s)
        process.delay_s = min(process.delay_s * 2, LONGEST_DELAY_S)

    async def _run(self, process: LocalProcess) -> int:
        """Run it once; its exit code. A cancelled call leaves the process to `stop`, and reads on until its end."""
        child = self._tether.spawn(
            [sys.executable, "-m", process.role],
            death_signal=signal.SIGKILL,
            environ=self._environ,
            cwd=self._cwd,
        )
        process.child = child
        reading = asyncio.create_task(self._read(process.name, child))
        cancelled: asyncio.CancelledError | None = None
        while (code := child.exit_code()) is None:
            try:
                await asyncio.sleep(LOOK_S)
            except asyncio.CancelledError as error:
                cancelled = error
        # A process that it left behind could hold the pipe open.
        await asyncio.wait({reading}, timeout=LAST_WORDS_S)
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        if cancelled is not None:
            raise cancelled
        process.child = None
        return code

    async def _read(self, name: str, child: Child) -> None:
        """Hand on what a process prints, line by line."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), child.output
        )
        try:
            unfinished = b""
            while chunk := await reader.read(LONGEST_LINE):
                *lines, unfinished = (unfinished + chunk).split(b"\n")
                if len(unfinished) > LONGEST_LINE:
                    lines.append(unfinished)
                    unfinished = b""
                for line in lines:
                    self._on_line(name, line.decode(errors="replace").rstrip("\r"))
            if unfinished:
                self._on_line(name, unfinished.decode(errors="replace"))
        finally:
            transport.close()


@asynccontextmanager
async def open_supervisor(
    tether: Tether,
    environ: Mapping[str, str],
    cwd: Path,
    counts: Mapping[Role, int],
    *,
    on_line: OnLine,
    grace_s: float,
    hurry: asyncio.Event,
) -> AsyncIterator[Supervisor]:
    """Start `counts` processes, such as {"worker": 3, "bot": 1}; on leaving stop all, restart none.

    environ: their whole environment. cwd: their folder. on_line: gets each line that they print. grace_s: how long
    they may take to stop; setting `hurry` cuts that short. To be used in the main thread (local/child.py).
    """
    supervisor = Supervisor(tether, environ, cwd, on_line)
    try:
        for role, count in counts.items():
            supervisor.start(role, count)
        yield supervisor
    finally:
        await supervisor.stop(grace_s, hurry)
