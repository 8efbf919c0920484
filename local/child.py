"""Child processes that do not outlive this process, not even when it is killed with SIGKILL.

Two ways to tie them: on Linux the kernel sends each child a signal when its parent dies; elsewhere a guard
process (local/guard.py) holds one end of a pipe, and signals them when the other end closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from local.account import Account

TetherKind = Literal["signal", "guard"]

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
GUARD = Path(__file__).with_name("guard.py")


class Child:
    """A running child process, leader of a session of its own so that Ctrl-C reaches only us."""

    def __init__(self, process: subprocess.Popen[bytes], ended: Callable[[int], None]) -> None:
        self._process = process
        self._ended = ended
        self.pid = process.pid

    @property
    def output(self) -> IO[bytes]:
        """What it prints. It must have been started with stdout=PIPE."""
        if self._process.stdout is None:
            raise ValueError("the child was started without a pipe for its output")
        return self._process.stdout

    @property
    def input(self) -> IO[bytes]:
        """Its standard input. It must have been started with stdin=PIPE."""
        if self._process.stdin is None:
            raise ValueError("the child was started without a pipe for its input")
        return self._process.stdin

    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._seen(self._process.poll())

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code, or None when it still runs after `timeout_s`."""
        try:
            return self._seen(self._process.wait(timeout_s))
        except subprocess.TimeoutExpired:
            return None

    def send(self, signum: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended already."""
        self._process.send_signal(signum)

    def stop(self, *steps: tuple[signal.Signals, float]) -> int:
        """Send each signal, waiting its seconds for the end, then SIGKILL to it and its children. The exit code."""
        for signum, patience_s in steps:
            self.send(signum)
            code = self.wait(patience_s)
            if code is not None:
                return code
        if self._process.poll() is None:  # and so its number is still its own
            # The group of its session: initdb's own `postgres` would go on writing into a folder that is removed.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        return self._seen(self._process.returncode) or 0

    def _seen(self, code: int | None) -> int | None:
        if code is not None:
            self._ended(self.pid)
        return code


class Tether:
    """Starts children that end when this process ends; `open_tether` makes one. Use it from the main thread."""

    def spawn(
        self,
        command: Sequence[str | Path],
        *,
        death_signal: signal.Signals,
        environ: Mapping[str, str],
        cwd: Path,
        account: Account | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        keep: Sequence[int] = (),
    ) -> Child:
        """Start `command`; its standard error joins `stdout`.

        death_signal: what it gets when this process dies. environ: all of its environment. account: whom to run
        it as (root only). keep: file descriptors that it inherits. Raises OSError when it cannot be executed.
        """
        process = subprocess.Popen(
            [str(part) for part in command],
            env=dict(environ),
            cwd=cwd,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            pass_fds=keep,
            start_new_session=True,
            preexec_fn=self._before_exec(death_signal),  # noqa: PLW1509 - there is no other place for prctl
        )
        self._tie(process.pid, death_signal)
        return Child(process, ended=self._untie)

    def _before_exec(self, death_signal: signal.Signals) -> Callable[[], None] | None:
        """What the child does between fork and exec."""
        return None

    def _tie(self, pid: int, death_signal: signal.Signals) -> None:
        """Called when a child has started."""

    def _untie(self, pid: int) -> None:
        """Called when a child has ended, perhaps more than once."""


class SignalTether(Tether):
    """Linux: the kernel sends the death signal.

    It does so when the *thread* ends that started the child, hence "from the main thread".
    """

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def _before_exec(self, death_signal: signal.Signals) -> Callable[[], None]:
        parent, prctl, signum = os.getpid(), self._prctl, int(death_signal)

        def die_with_parent() -> None:
            # After the change of user, which would clear the setting. Another parent now means that ours died
            # before the kernel was told.
            if prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0 or os.getppid() != parent:
                os._exit(127)

        return die_with_parent


class GuardTether(Tether):
    """Everywhere: the guard process signals the children when our end of its pipe closes."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._tied: set[int] = set()

    def _tie(self, pid: int, death_signal: signal.Signals) -> None:
        self._tied.add(pid)
        self._tell(f"+{pid} {int(death_signal)}\n")

    def _untie(self, pid: int) -> None:
        if pid in self._tied and not self._pipe.closed:  # its number may soon be another process's
            self._tied.discard(pid)
            self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        self._pipe.write(line.encode())
        self._pipe.flush()


@contextmanager
def open_tether(kind: TetherKind | None = None) -> Iterator[Tether]:
    """The way of this platform, or the one asked for."""
    if kind is None:
        kind = "signal" if sys.platform == "linux" else "guard"
    if kind == "signal":
        yield SignalTether()
        return
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as pipe, open(read_end, "rb") as theirs:
        guard = subprocess.Popen(
            # -I: nothing of this folder or of the environment can get in the guard's way.
            [sys.executable, "-I", GUARD, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        try:
            yield GuardTether(pipe)
        finally:
            pipe.close()
            guard.wait()
