"""A process on a pseudo terminal, and what a person would see there."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from local import Tether
from tests.processes import ROOT
from tests.waiting import wait_until

PATIENT_S = 60.0


class Terminal:
    """`python -m MODULE` with its standard input, output and error on a terminal."""

    def __init__(self, tether: Tether, module: str, *, environ: Mapping[str, str], cwd: Path) -> None:
        self._master, slave = os.openpty()
        self.child = tether.spawn(
            [sys.executable, "-m", module],
            death_signal=signal.SIGKILL,
            environ={"PYTHONPATH": str(ROOT), **environ},
            cwd=cwd,
            stdin=slave,
            stdout=slave,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self._raw = ""

    def type(self, text: str) -> None:
        """What a person types, the Enter key included."""
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str) -> None:
        """Wait until the screen shows the pattern; AssertionError when the process ends before that."""
        self.wait_until(lambda screen: re.search(pattern, screen) is not None)

    def wait_until(self, condition: Callable[[str], bool]) -> None:
        """Wait until the screen is as wanted; AssertionError with what it shows otherwise."""

        def seen() -> bool:
            runs = self._read()
            found = condition(self.screen())
            assert found or runs, f"ended, having shown:\n{self.screen()}"
            return found

        try:
            wait_until(seen, what="the screen", timeout_s=PATIENT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.screen()}") from None

    def wait_for_end(self) -> int:
        """Its exit code, when all is read that it wrote."""
        wait_until(lambda: not self._read(), what="the end", timeout_s=PATIENT_S)
        code = self.child.wait(PATIENT_S)
        assert code is not None
        return code

    def screen(self) -> str:
        """What was shown so far, without what was written over."""
        return re.sub(r"[^\n]*\r\x1b\[K", "", self._raw.replace("\r\n", "\n"))

    def close(self) -> None:
        """End the process."""
        self.child.stop()
        os.close(self._master)

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 65_536)
        except BlockingIOError:
            return True
        except OSError:  # nobody has the other end open any more
            return False
        self._raw += data.decode(errors="replace")
        return data != b""
