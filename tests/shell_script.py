"""A line of shell from a file of ours, run by a real sh among programs of a test's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run(script: str, folder: Path, *arguments: str, **commands: str) -> subprocess.CompletedProcess[str]:
    """Run it; each of `commands` is what a program of that name does instead. `$$` is `$`, as in compose's files."""
    for name, text in commands.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    return subprocess.run(
        ["sh", "-c", script.replace("$$", "$"), *arguments],
        env={"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
