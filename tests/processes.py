"""Real processes of the project, with their output kept in files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local import Child, Tether
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Spawned:
    """A running process; standard output and error both go to `log`."""

    child: Child
    log: Path

    @property
    def pid(self) -> int:
        return self.child.pid

    def output(self) -> str:
        """What it has printed until now."""
        return self.log.read_text(errors="replace")

    def send(self, signum: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        self.child.send(signum)

    def write(self, text: str) -> None:
        """Write to its standard input; it must have been spawned with stdin=True."""
        self.child.input.write(text.encode())
        self.child.input.flush()

    def wait(self, timeout_s: float = 30.0) -> int:
        """Its exit code (negative: a signal's number); AssertionError with its output when it runs on."""
        code = self.child.wait(timeout_s)
        assert code is not None, f"still runs after {timeout_s:g} s:\n{self.output()}"
        return code

    def wait_for(self, text: str, timeout_s: float = 30.0) -> str:
        """Wait until it has printed `text`; the whole output. AssertionError when it ends before that."""

        def printed() -> str | None:
            code = self.child.exit_code()  # asked before reading, or its last words would be missed
            output = self.output()
            if text in output:
                return output
            assert code is None, f"ended with {code} without printing {text!r}:\n{output}"
            return None

        try:
            return wait_until(printed, timeout_s=timeout_s, what=f"printing {text!r}") or ""
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from None


@dataclass
class Spawner:
    """Starts processes whose environment is exactly what is handed in, and ends what is left of them."""

    tether: Tether
    folder: Path
    name: str
    spawned: list[Spawned] = field(default_factory=list)

    def __call__(
        self, module: str, *arguments: str, environ: Mapping[str, str], cwd: Path | None = None, stdin: bool = False
    ) -> Spawned:
        """Start `python -m MODULE ARGUMENTS…`, by default in a folder without a `.env`."""
        log = self._log(module)
        with log.open("wb") as output:
            child = self.tether.spawn(
                [sys.executable, "-m", module, *arguments],
                death_signal=signal.SIGKILL,
                environ=self._environ(environ),
                cwd=cwd or self.folder,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=output,
            )
        self.spawned.append(Spawned(child, log))
        return self.spawned[-1]

    def run(
        self,
        module: str,
        *arguments: str,
        environ: Mapping[str, str],
        cwd: Path | None = None,
        stdin: str = "",
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m MODULE ARGUMENTS…` to its end, with standard output and error kept apart."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=self._environ(environ),
            cwd=cwd or self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        self._log(module).write_text(done.stdout + done.stderr)
        return done

    def close(self) -> None:
        """Kill what still runs."""
        for spawned in self.spawned:
            spawned.child.stop()

    def _environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        return {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "HOME": str(self.folder), **environ}

    def _log(self, module: str) -> Path:
        number = sum(1 for _ in self.folder.iterdir())
        return self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', self.name)[-100:]}-{number}-{module}.log"
