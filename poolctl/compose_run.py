"""docker compose, run for a person: on their terminal, and ended together with this process."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from config.stack import PROFILE

FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")  # compose's own names
QUESTION_S = 5.0  # longest wait for an answer that we can do without

Command = Sequence[str]
# Where only WORKERS changes, compose before 2.29.4 starts worker and bot anew all the same, and gracefully: they depend
# on `migrate`, which has another WORKERS. `--no-recreate` would spare them, but also pass over whatever else is new in
# `.env` or in an image, and let the old `migrate` check the plan with the old number.
UP: Command = ("docker", "compose", "up", "-d")
# A plain `up` leaves the service of a profile that is off running. The flag names the profile to compose.
REMOVE_POOLER: Command = ("docker", "compose", "--profile", PROFILE, "rm", "-sf", PROFILE)


class Interrupted(Exception):
    """A signal asked this process to stop; the command has ended."""


def commands_for(*, remove_pooler: bool) -> tuple[Command, ...]:
    """What puts `.env` in force. The pooler goes last: `up` has moved the processes away from it by then."""
    return (UP, REMOVE_POOLER) if remove_pooler else (UP,)


def as_line(commands: Sequence[Command]) -> str:
    """As it is typed in a shell: each only if the one before went well."""
    return " && ".join(map(shlex.join, commands))


def is_installed() -> bool:
    """Whether there is a docker to run."""
    return shutil.which(UP[0]) is not None


def is_stack_folder(folder: Path) -> bool:
    """Whether compose finds its file here."""
    return any((folder / name).is_file() for name in FILES)


def running_workers() -> int | None:
    """How many containers of the service `worker` run now; None if docker does not tell."""
    question = ("docker", "compose", "ps", "--quiet", "worker")
    try:
        answer = subprocess.run(
            question, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=QUESTION_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return len(answer.stdout.split()) if answer.returncode == 0 else None


def run(command: Command, lock: int) -> int:
    """Run it on this terminal to its end; its exit code, negative for a signal that ended it.

    It shares the descriptor `lock`: what that locks stays so while it runs, even if this process is killed.

    Raises Interrupted once it has ended, if SIGINT or SIGTERM came; OSError if it cannot be started.
    """
    child: subprocess.Popen[bytes] | None = None
    signals: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)
        if child is not None:
            child.terminate()

    # Not those that whoever started this process wants to be ignored.
    usual = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    usual = {each: handler for each, handler in usual.items() if handler is not signal.SIG_IGN}
    for each in usual:
        signal.signal(each, pass_on)
    try:
        child = subprocess.Popen(command, pass_fds=(lock,))
        if signals:  # one came before there was a child to pass it on to
            child.terminate()
        code = child.wait()
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)
    if signals:
        raise Interrupted
    return code
