"""The `.env` file on a real disk: whole whenever its writer dies, and one writer at a time."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config import SettingsError
from poolctl.dotenv_file import NEW_FILE, DotenvFile
from poolctl.dotenv_text import values_of
from tests.processes import ROOT
from tests.waiting import wait_until

KILLS = 8
MEGABYTE = 1 << 20

FLIPPING = """
import sys
from pathlib import Path
from poolctl.dotenv_file import DotenvFile
file = DotenvFile(Path.cwd())
with file.held(lambda: None):
    print("writes", flush=True)
    while True:
        file.write("A=1\\n" + "#" * (1 << 20) + "\\nB=1\\n")
        file.write("A=2\\n" + "#" * (1 << 20) + "\\nB=2\\n")
"""
ADDING = """
import sys
from pathlib import Path
from poolctl.dotenv_file import DotenvFile
from poolctl.dotenv_text import with_value
for number in range(25):
    file = DotenvFile(Path.cwd())
    with file.held(lambda: None):
        file.write(with_value(file.read() or "", f"{sys.argv[1]}_{number}", "1"))
"""


def start(program: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": str(ROOT)},
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
    )


def write(folder: Path, text: str) -> None:
    file = DotenvFile(folder)
    with file.held(lambda: None):
        file.write(text)


def test_killed_at_any_point(tmp_path: Path) -> None:
    """The file is always one of the two that were written, and the next writer takes away what is left besides."""
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    for _ in range(KILLS):
        with start(FLIPPING, cwd=tmp_path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "writes\n"
            wait_until((tmp_path / ".env").exists)
            time.sleep(moments.uniform(0, 0.05))  # not to wait for anything: the moment of the kill is to be any
            process.send_signal(signal.SIGKILL)
        text = DotenvFile(tmp_path).read()
        assert text is not None
        assert len(text) == MEGABYTE + 9, f"seed {seed}"
        values = values_of(text)
        assert values in ({"A": "1", "B": "1"}, {"A": "2", "B": "2"}), f"seed {seed}"
    write(tmp_path, "A=3\n")
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


def test_writers_lose_nothing(tmp_path: Path) -> None:
    """Four at once, each reading and writing again and again: every line is there."""
    processes = [start(ADDING, name, cwd=tmp_path) for name in "ABCD"]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(values_of(DotenvFile(tmp_path).read() or "")) == 100


def test_who_waits_is_told(tmp_path: Path) -> None:
    """Before the wait, and only then."""
    waits: list[str] = []
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)

    def on_wait() -> None:
        waits.append("waits")
        os.close(folder)  # the other one ends

    file = DotenvFile(tmp_path)
    for _ in range(2):
        with file.held(on_wait):
            assert waits == ["waits"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_the_mode_is_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    path.chmod(mode)
    write(tmp_path, "A=2\n")
    assert (path.read_text(), path.stat().st_mode & 0o7777) == ("A=2\n", mode)


def test_a_new_file_is_its_owners(tmp_path: Path) -> None:
    """Secrets may come into it."""
    write(tmp_path, "A=1\n")
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_is_kept(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    os.chown(path, 1234, 2345)
    path.chmod(0o640)
    write(tmp_path, "A=2\n")
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (1234, 2345, 0o640)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else")
def test_nobody_else_takes_it_over(data_folder: Path) -> None:
    """Who may write into the folder, and not give the file back to its owner, leaves it alone."""
    folder = data_folder / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    path = folder / ".env"
    path.write_text("A=1\n")
    path.chmod(0o644)
    program = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from config import SettingsError
from poolctl.dotenv_file import DotenvFile
file = DotenvFile(Path(sys.argv[2]))
os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    with file.held(lambda: None):
        file.write("A=2")
except SettingsError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT), str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout == ".env belongs to another user or group: run this as its owner\n"
    assert path.read_text() == "A=1\n"
    assert not (folder / NEW_FILE).exists()


def test_a_link_is_followed(tmp_path: Path) -> None:
    """To the file, which may not be there yet; the link stays a link."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".env").symlink_to("elsewhere/settings")
    assert DotenvFile(tmp_path).read() is None
    write(tmp_path, "A=1\n")
    write(tmp_path, "A=2\n")
    assert (tmp_path / ".env").is_symlink()
    assert (tmp_path / "elsewhere/settings").read_text() == "A=2\n"
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["settings"]


def test_line_ends_come_through(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=1\r\n\rB=2")
    text = DotenvFile(tmp_path).read()
    assert text == "A=1\r\n\rB=2"
    write(tmp_path, text)
    assert (tmp_path / ".env").read_bytes() == b"A=1\r\n\rB=2"


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """One line each."""
    path = tmp_path / ".env"
    for make, line in (
        (path.mkdir, ".env is not a file: put a file there"),
        (lambda: os.mkfifo(path), ".env is not a file: put a file there"),
        (lambda: path.write_bytes(b"A=\xff"), ".env is not UTF-8 text: save it as UTF-8"),
        (lambda: path.symlink_to(".env"), ".env cannot be read (Too many levels of symbolic links): make it readable"),
    ):
        make()
        with pytest.raises(SettingsError) as error:
            DotenvFile(tmp_path).read()
        assert str(error.value).startswith(line)
        path.rmdir() if path.is_dir() else path.unlink()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    """A link into a folder that is not there."""
    (tmp_path / ".env").symlink_to("nowhere/settings")
    with pytest.raises(SettingsError, match=r"^\.env cannot be written \(No such file or directory\): see that "):
        write(tmp_path, "A=1\n")


def test_what_a_killed_one_left_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / NEW_FILE).write_text("half a li")
    write(tmp_path, "A=1\n")
    assert [path.name for path in tmp_path.iterdir()] == [".env"]
