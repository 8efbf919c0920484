"""The folder that a fleet's servers keep their data in."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

from local.errors import UnsafeDirectory
from local.lock import OWNER_FILE, SERVERS_FILE

DISCARDED = ".discarded"
BINARIES = "binaries"  # copies, where the servers' account cannot reach the originals


def data_directory(project: Path) -> Path:
    """Where the servers of `project` keep their data: `.local` in it.

    As root it is below /var/tmp: servers run under another account then, which the folders above a project
    (often root's home) may keep out.
    """
    project = project.resolve()
    if os.geteuid() != 0:
        return project / ".local"
    return Path("/var/tmp") / f"poolctl-{hashlib.sha256(bytes(project)).hexdigest()[:12]}"  # noqa: S108 - checked by prepare()


def prepare(directory: Path) -> None:
    """Make the folder, or check that it is ours alone. Raises UnsafeDirectory."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UnsafeDirectory(f"{directory} is not a folder of user {os.geteuid()}: remove or rename it")
    # The servers' own account must pass through; their data and the passwords are closed to it and to others.
    directory.chmod(0o711 if os.geteuid() == 0 else 0o700)


def discard(directory: Path) -> None:
    """Remove all data, for the holder of the directory's locks."""
    for path in directory.iterdir():
        if path.name in (OWNER_FILE, SERVERS_FILE, BINARIES) or path.name.endswith(DISCARDED):
            continue
        # Renamed before it is removed: after an interruption half of it must not be taken for data.
        unwanted = path.with_name(f"{path.name}{DISCARDED}")
        _remove(unwanted)
        path.rename(unwanted)
    for path in directory.glob(f"*{DISCARDED}"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
