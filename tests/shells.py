"""The shells that the stack's scripts meet: Debian's, Alpine's (BusyBox, with its own tools), and bash as sh."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("dash", "busybox", "bash")


@dataclass(frozen=True, slots=True)
class Shell:
    """A shell, and the folders in which its scripts find their tools."""

    command: tuple[str, ...]
    path: str

    def run(
        self,
        script: Path,
        *arguments: str,
        environ: Mapping[str, str],
        cwd: Path,
        first_on_path: Path | None = None,
        uid: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `script` with these variables alone, perhaps as another user.

        first_on_path: a folder with programs that take others' places.
        """
        path = f"{first_on_path}:{self.path}" if first_on_path else self.path
        return subprocess.run(
            [*self.command, script, *arguments],
            env={"PATH": path, **environ},
            cwd=cwd,
            user=uid,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


def open_shell(name: str, folder: Path) -> Shell:
    """The shell of that name, or the test is skipped. Below `folder` there will be links to BusyBox's tools."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    if name == "bash":
        return Shell((program, "--posix"), os.defpath)
    if name == "busybox":
        tools = folder / "busybox"
        tools.mkdir()
        subprocess.run([program, "--install", "-s", tools], check=True, timeout=30)
        return Shell((program, "sh"), f"{tools}:{os.defpath}")
    return Shell((program,), os.defpath)
