"""A newcomer: clones the project, types one command, and needs nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The system's servers, out of sight for one process and its children: a mount namespace of their own.
HIDE_SERVERS = """
set -e
for folder in /usr/lib/postgresql /usr/libexec/valkey /usr/libexec/redis; do
    if [ -d "$folder" ]; then mount -t tmpfs none "$folder"; fi
done
for program in postgres initdb redis-server valkey-server; do
    for file in $(which -a "$program" 2>/dev/null); do
        mount --bind /dev/null "$(readlink -f "$file")"
    done
done
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide the system's servers and become another user"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare hides the system's servers: util-linux"),
]


@pytest.fixture
def clone() -> Iterator[Path]:
    """A clean clone in a folder that everybody may enter, beside an empty home."""
    folder = Path(tempfile.mkdtemp(prefix="poolctl-clone-", dir="/var/tmp"))
    folder.chmod(0o755)
    subprocess.run(["git", "clone", "--quiet", ROOT, folder / "poolctl"], check=True)
    (folder / "home").mkdir()
    yield folder / "poolctl"
    subprocess.run(["make", "-s", "-C", folder / "poolctl", "clean"], check=False)
    shutil.rmtree(folder)


def type_as(user: str, command: str, clone: Path, *, hide_servers: bool) -> subprocess.CompletedProcess[str]:
    """Run `command` in the clone as root or as an ordinary user, with or without the system's servers."""
    become = ""
    if user == "ordinary":
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", clone.parent], check=True)
        become = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "
    script = f"{HIDE_SERVERS if hide_servers else ''}\nexec {become}{command}"
    # What this machine needs to reach a package index is the machine's, not the newcomer's.
    network = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_", "SSL_")) or k.endswith("_PROXY")}
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=clone,
        env={"PATH": SYSTEM_PATH, "HOME": str(clone.parent / "home"), "LANG": "C.UTF-8", **network},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("hide_servers", [False, True], ids=["system-servers", "no-system-servers"])
@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_make_demo(clone: Path, user: str, hide_servers: bool) -> None:
    """`make demo` on a clean clone shows a whole fleet at work and exits 0, whoever types it."""
    done = type_as(user, "make demo", clone, hide_servers=hide_servers)
    assert done.returncode == 0, done.stdout
    assert "300" in done.stdout
    assert done.stdout.count("worker") >= 3


def test_without_python_venv(clone: Path) -> None:
    """Where Debian's python3-venv is missing, one line names the apt command."""
    hide = (
        "for f in /usr/lib/python3*/ensurepip; do mount -t tmpfs none $f; done; exec make PYTHON=/usr/bin/python3 .venv"
    )
    done = type_as("root", f"sh -c '{hide}'", clone, hide_servers=False)
    assert done.returncode != 0
    assert "sudo apt install python3-venv" in done.stdout
    assert len([line for line in done.stdout.splitlines() if not line.startswith("make")]) == 1
    assert not (clone / ".venv").exists()
