"""A `poolctl up` in a folder of its own, as tests start, ask and end it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local import data_directory
from local.directory import prepare
from local.lock import locked
from local.postgres import DATABASE, USER
from tests.process_table import ProcessRow, descendants, running
from tests.processes import Spawned, Spawner
from tests.secrecy import Secrecy
from tests.waiting import wait_until

UP = re.compile(r"^(?P<name>\S+) +\| .* (?P<role>worker|bot)@\S+:(?P<pid>\d+) is up$", re.MULTILINE)
FLEET_UP = re.compile(r"the fleet is up: .*\n")
FLEET = re.compile(r"(\d+) (?:worker|bot)")
SERVERS = re.compile(r"PostgreSQL \d+ on (\S+):(\d+), \w+ \d+ on (\S+):(\d+), data")


@dataclass
class Project:
    """A folder in which `poolctl up` is started; without a `.env` unless the test writes one."""

    folder: Path
    spawn: Spawner
    secrecy: Secrecy

    @property
    def data(self) -> Path:
        """Where its servers keep their data."""
        return data_directory(self.folder)

    def up(self, *arguments: str, environ: Mapping[str, str] | None = None) -> LocalFleet:
        """Start `poolctl up ARGUMENTS…` in the folder."""
        process = self.spawn("poolctl", "up", *arguments, environ=environ or {}, cwd=self.folder)
        return LocalFleet(self, process)

    def passwords(self) -> dict[str, str]:
        """Those of its servers; from now on no output may show them."""
        kept: dict[str, str] = json.loads((self.data / "passwords.json").read_text())
        self.secrecy.secrets |= set(kept.values())
        return kept


@dataclass
class LocalFleet:
    """A running `poolctl up`."""

    project: Project
    process: Spawned

    def wait_until_up(self) -> None:
        """Wait until it says that all its processes are up, and has passed on that line of each.

        It learns of them from Redis, and their lines come through pipes, so either may be first.
        """
        self.process.wait_for("the fleet is up", timeout_s=60)
        ordered = sum(map(int, FLEET.findall(wait_until(lambda: FLEET_UP.search(self.process.output()))[0])))
        wait_until(lambda: len(self.started()) >= ordered, what=f"the lines of {ordered} processes that are up")

    def environ(self) -> dict[str, str]:
        """What Settings.load needs to reach its servers."""
        found = SERVERS.search(self.process.wait_for(", data in"))
        assert found is not None
        passwords = self.project.passwords()
        return {
            "DB_HOST": found[1],
            "DB_PORT": found[2],
            "DB_USER": USER,
            "DB_PASSWORD": passwords["database"],
            "DB_NAME": DATABASE,
            "REDIS_HOST": found[3],
            "REDIS_PORT": found[4],
            "REDIS_PASSWORD": passwords["redis"],
        }

    def started(self) -> list[tuple[str, int]]:
        """Name and process id of each process that came up, restarted ones included, in order."""
        return [(match["name"], int(match["pid"])) for match in UP.finditer(self.process.output())]

    def family(self) -> dict[int, ProcessRow]:
        """Every process that runs below it: the fleet's, the servers' and their children."""
        return descendants(self.process.pid)

    def wait_for_child(self, *texts: str) -> ProcessRow:
        """Wait until a process whose command line has all of `texts` runs below it."""

        def find() -> ProcessRow | None:
            assert self.process.child.exit_code() is None, self.process.output()
            return next((row for row in self.family().values() if all(text in row.command for text in texts)), None)

        row = wait_until(find, timeout_s=30, what=f"a process with {texts}", poll_s=0.002)
        assert row is not None
        return row


def wait_until_gone(family: Mapping[int, ProcessRow], timeout_s: float = 10.0) -> None:
    """Wait until none of these processes runs."""
    wait_until(
        lambda: not family.keys() & running().keys(), timeout_s=timeout_s, what=f"the end of {list(family.values())}"
    )


@contextmanager
def open_project(folder: Path, spawn: Spawner, secrecy: Secrecy) -> Iterator[Project]:
    """A project whose processes and data are gone afterwards, and whose servers' logs are searched for passwords."""
    project = Project(folder, spawn, secrecy)
    yield project
    spawn.close()
    if project.data.exists():
        prepare(project.data)
        with locked(project.data):  # its servers have ended
            if (project.data / "passwords.json").exists():
                project.passwords()
            for log in project.data.glob("*.log"):
                shutil.copy(log, secrecy.folder / f"{folder.name}-{log.name}")
        shutil.rmtree(project.data)
