"""The `.env` file on disk: read, held by one process at a time, and replaced as a whole."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from config.environment import DOTENV
from config.errors import Fault, SettingsError

# One name, so that the next run takes away what a killed one left. Only the holder of the folder makes it.
NEW_FILE = ".env.new"
NEW_MODE = 0o600  # where there was none: secrets may come into it


class DotenvFile:
    """`.env` in a folder, or the file that a link of this name leads to. Raises SettingsError for what it cannot do."""

    def __init__(self, folder: Path) -> None:
        self._path = Path(os.path.realpath(folder / DOTENV))

    def read(self) -> str | None:
        """Its text, with its own line ends; None if there is none."""
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise _error("is not a file", "put a file there")
            return self._path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise _error("is not UTF-8 text", "save it as UTF-8") from error
        except OSError as error:
            raise _error(f"cannot be read ({error.strerror})", "make it readable, or remove it") from error

    @contextmanager
    def held(self, on_wait: Callable[[], None]) -> Iterator[int]:
        """Hold it against every other process that does so; calls `on_wait` before it waits for one.

        It is the folder that is locked: the file itself is replaced. The kernel unlocks it when this process ends, and
        every child that was given the descriptor, which is what this yields.
        """
        try:
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._not_written(error) from error
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(folder)

    def write(self, text: str) -> None:
        """Replace the whole file, its mode and owner kept. Only for the holder.

        Whenever this process or the machine ends, there is the old file or the new one.
        """
        new = self._path.with_name(NEW_FILE)
        try:
            old = self._path.stat() if self._path.exists() else None
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, NEW_MODE), "wb") as file:
                file.write(text.encode("utf-8"))
                if old is not None:
                    _like(old, file.fileno())
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            _sync_folder(self._path.parent)
        except OSError as error:
            raise self._not_written(error) from error
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)

    def _not_written(self, error: OSError) -> SettingsError:
        return _error(f"cannot be written ({error.strerror})", f"see that {self._path.parent} is writable and has room")


def _like(old: os.stat_result, descriptor: int) -> None:
    """The owner first: changing it clears some bits of the mode."""
    new = os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except PermissionError as error:
            raise _error("belongs to another user or group", "run this as its owner") from error
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _error(problem: str, remedy: str) -> SettingsError:
    return SettingsError([Fault(DOTENV, problem, remedy)])
