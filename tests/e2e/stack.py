"""A copy of the compose project in a folder of its own, on a real engine: what is done to it is what users type."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e import load
from tests.e2e.connections import Samples, sampled
from tests.secrecy import Secrecy
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
POOLCTL = ROOT / ".venv" / "bin" / "poolctl"
COMMAND_S = 60.0
UP_S = 240.0
# Of the machine's own environment only what a Docker client needs: no setting of ours.
PASSED = re.compile(r"PATH|HOME|DOCKER_\w+|XDG_RUNTIME_DIR|LANG|LC_\w+")
SERVICE, NUMBER, ONE_OFF = (f"com.docker.compose.{name}" for name in ("service", "container-number", "oneoff"))


@dataclass(frozen=True, slots=True)
class Images:
    """Tags of the two images of this test run."""

    poolctl: str
    pgbouncer: str


@dataclass(frozen=True, slots=True)
class Container:
    """What `docker inspect` says of one container."""

    inspected: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.inspected["Id"])

    @property
    def name(self) -> str:
        """As in `application_name`: `worker-3`."""
        return f"{self.service}-{self.inspected['Config']['Labels'][NUMBER]}"

    @property
    def service(self) -> str:
        return str(self.inspected["Config"]["Labels"][SERVICE])

    @property
    def state(self) -> str:
        """`running`, `exited`, `restarting` …"""
        return str(self.inspected["State"]["Status"])

    @property
    def health(self) -> str | None:
        """`healthy`, `starting`, `unhealthy`; None without a health check."""
        return (self.inspected["State"].get("Health") or {}).get("Status")

    @property
    def exit_code(self) -> int:
        return int(self.inspected["State"]["ExitCode"])

    @property
    def restarts(self) -> int:
        return int(self.inspected["RestartCount"])

    @property
    def addresses(self) -> set[str]:
        """Its addresses in the stack's networks."""
        return {network["IPAddress"] for network in self.inspected["NetworkSettings"]["Networks"].values()}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of all jobs of a load; see load.py."""

    queued: int
    jobs: list[dict[str, Any]]

    def check(self, *, units: int, may_fail: int = 0) -> None:
        """Each job ended once, well, with all its units run; at most `may_fail` of all failed."""
        assert len(self.jobs) == self.queued
        assert [job for job in self.jobs if job["failure"]] == []
        assert {job["units"] + job["errors"] for job in self.jobs} == {units}
        failed = sum(job["errors"] for job in self.jobs)
        assert failed <= may_fail, (failed, next(job["first_error"] for job in self.jobs if job["errors"]))

    def by_process(self) -> Counter[str]:
        """Jobs by the process that ended them."""
        return Counter(job["process"] for job in self.jobs)


class Load:
    """Exercise jobs that run in the stack while the test goes on."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    @classmethod
    def start(cls, python: Sequence[str], numbers: Iterable[int], folder: Path, log: Path) -> Load:
        """Run load.py with its `numbers` by a command, in `folder`, that starts Python inside the stack."""
        with log.open("wb") as output, Path(load.__file__).open("rb") as script:
            process = subprocess.Popen(
                [*python, "-", *map(str, numbers)],
                cwd=folder,
                env=docker_environ(),
                stdin=script,
                stdout=output,
                stderr=output,
            )
        return cls(process, log)

    def done(self) -> int:
        """Jobs that have ended; AssertionError if whoever follows them has failed. -1 before they are queued."""
        lines = self._said()
        code = self._process.poll()
        assert code in (None, 0), f"the load ended with {code}:\n{self._log.read_text(errors='replace')}"
        return lines[-1]["done"] if lines else -1

    def wait_for(self, jobs: int, timeout_s: float = 300.0) -> None:
        """Wait until so many jobs have ended."""
        wait_until(lambda: self.done() >= jobs, timeout_s=timeout_s, what=f"the end of {jobs} jobs", poll_s=0.1)

    def wait(self, timeout_s: float = 420.0) -> Outcomes:
        """Wait until all have ended."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not within {timeout_s:g} s: all jobs ended; {self.done()} did") from None
        self.done()
        last = self._said()[-1]
        return Outcomes(last["queued"], last["outcomes"])

    def stop(self) -> None:
        """End whoever follows the jobs, if it still does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(timeout=10)

    def _said(self) -> list[dict[str, Any]]:
        lines = self._log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


@dataclass
class Stack:
    """One compose project: its folder, whose name is the project's, and the `.env` in it."""

    PSQL = ("psql", "-X", "-A", "-t", "-q", "-U", "postgres", "-d", "app")

    folder: Path
    images: Images
    secrecy: Secrecy
    loads: list[Load] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        """What every command is started with."""
        return docker_environ()

    # --- its files

    def create(self) -> None:
        """A clone, with a `.env` that names the images, and secrets."""
        copy_clone(self.folder)
        (self.folder / ".env").write_text("# the state of this stack\n")
        self.set(POOLCTL_IMAGE=self.images.poolctl, PGBOUNCER_IMAGE=self.images.pgbouncer)
        self.make_secrets()

    def make_secrets(self) -> str:
        """`make secrets`; what it prints. No output may show the passwords from now on."""
        done = self.run("sh", "deploy/secrets.sh")
        self.secrecy.secrets |= set(self.secrets().values())
        return done.stdout

    def secrets(self) -> dict[str, str]:
        """The passwords by the names of their files."""
        return {path.name: path.read_text().strip() for path in sorted((self.folder / "secrets").iterdir())}

    def url(self) -> str:
        """The database as a DATABASE_URL, with the password."""
        return f"postgres://app:{self.secrets()['db_password']}@postgres:5432/app"

    def set(self, **settings: str | int | None) -> None:
        """Change lines of `.env` as an editor would; None takes one out."""
        path = self.folder / ".env"
        lines = [line for line in path.read_text().splitlines() if line.partition("=")[0] not in settings]
        lines += [f"{name}={value}" for name, value in settings.items() if value is not None]
        path.write_text("".join(f"{line}\n" for line in lines))

    def env(self) -> dict[str, str]:
        """The lines of `.env`."""
        lines = (self.folder / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    # --- what users type

    def run(
        self,
        *command: str,
        environ: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout_s: float = COMMAND_S,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder; its output is kept, and with `check` an exit code other than 0 is a failure.

        Standard output and error are kept apart.
        """
        log = self._log("command")
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self.environ | dict(environ or {}),
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            output = b"".join(part for part in (error.stdout, error.stderr) if isinstance(part, bytes))
            text = output.decode(errors="replace")
            log.write_text(text)
            raise AssertionError(f"not within {timeout_s:g} s: {' '.join(command)}\n{text}") from None
        log.write_text(done.stdout + done.stderr)
        assert done.returncode == 0 or not check, (
            f"exit {done.returncode}: {' '.join(command)}\n{done.stdout}{done.stderr}"
        )
        return done

    def command(self, *arguments: str) -> list[str]:
        """`docker compose ARGUMENTS…`"""
        return ["docker", "compose", *arguments]

    def compose(
        self,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout_s: float = COMMAND_S,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker compose ARGUMENTS…`; see `run`."""
        return self.run(*self.command(*arguments), environ=environ, stdin=stdin, timeout_s=timeout_s, check=check)

    def up(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `docker compose up -d ARGUMENTS…`."""
        return self.compose("up", "-d", *arguments, timeout_s=UP_S, check=check)

    def deploy(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `poolctl deploy ARGUMENTS…`."""
        return self.run(str(POOLCTL), "deploy", *arguments, timeout_s=UP_S, check=check)

    def poolctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `docker compose run --rm poolctl ARGUMENTS…`: inside the stack's network."""
        return self.compose("run", "--rm", "-T", "poolctl", *arguments, check=check)

    # --- what is seen of it

    def containers(self, *services: str) -> list[Container]:
        """Its containers, stopped ones too, but none of `docker compose run`; of all services if none is named."""
        ids = self.compose("ps", "-a", "-q", *services, check=not services).stdout.split()
        if not ids:
            return []
        # Not by `run`: a DATABASE_URL that was given plainly is shown there, as it must be.
        inspect = subprocess.run(["docker", "inspect", *ids], env=self.environ, stdout=subprocess.PIPE, check=True)
        inspected = json.loads(inspect.stdout)
        found = [Container(each) for each in inspected if each["Config"]["Labels"][ONE_OFF] == "False"]
        return sorted(found, key=lambda container: container.name)

    def states(self) -> dict[str, str]:
        """Each container's health, or its state if it has no health check."""
        return {each.name: each.health or f"{each.state} {each.exit_code}" for each in self.containers()}

    def running(self, service: str) -> list[Container]:
        """The running containers of a service."""
        return [container for container in self.containers(service) if container.state == "running"]

    def logs(self, *services: str, tail: int | None = None) -> str:
        """What its containers have printed; of each the last `tail` lines, if given."""
        # `--ansi never` or not, compose 2.26 clears lines on a terminal that is not there.
        last = () if tail is None else ("--tail", str(tail))
        return self.compose("logs", "--no-color", *last, *services, check=False).stdout.replace("\x1b[2K", "")

    def pools(self) -> dict[str, int]:
        """How many connections each live process may open, by its id (`worker@host:1`): what `poolctl check` shows."""
        said = self.poolctl("check", check=False).stdout
        rows = re.findall(r"^((?:worker|bot)@\S+) +\d+ +\d+ +(\d+) *$", said, re.MULTILINE)
        assert rows, said
        return {process: int(may_open) for process, may_open in rows}

    def wait_for_processes(self, number: int) -> dict[str, int]:
        """Wait until so many processes have announced themselves, which is sooner than healthy; their pools."""

        def pools() -> dict[str, int] | None:
            found = self.pools()
            return found if len(found) == number else None

        found = wait_until(pools, timeout_s=UP_S, what=f"{number} processes", poll_s=1.0)
        assert found is not None
        return found

    def wait_until_healthy(self) -> None:
        """Wait until every container is healthy, or has ended well."""
        wait_until(
            lambda: set(self.states().values()) == {"healthy", "exited 0"},
            timeout_s=UP_S,
            what="healthy containers",
            poll_s=1.0,
        )

    def psql(self, sql: str) -> str:
        """What the superuser gets for `sql`, without headings."""
        return self.compose("exec", "-T", "postgres", *self.PSQL, "-c", sql).stdout.strip()

    def pgbouncer(self, command: str) -> list[dict[str, str]]:
        """What PgBouncer's admin console answers: rows, by the names of their columns."""
        answer = self.compose("exec", "-T", "pgbouncer", "console", "--csv", "-c", command).stdout
        return list(csv.DictReader(answer.splitlines()))

    @contextmanager
    def connections(self) -> Iterator[Samples]:
        """Look at `pg_stat_activity` while inside."""
        with sampled(self, self._log("connections")) as samples:
            yield samples

    # --- work for it

    def load(self, jobs: int, *, queries: int = 16, concurrency: int = 8, hold_ms: int = 5) -> Load:
        """Put exercise jobs on the queue from inside the stack; returns when all are there."""
        python = self.command("run", "--rm", "-T", "--no-deps", "bot", "python")
        started = Load.start(python, (jobs, queries, concurrency, hold_ms), self.folder, self._log("load"))
        self.loads.append(started)
        started.wait_for(0)
        return started

    # --- its end

    def close(self) -> None:
        """Keep its logs for the search for passwords, and remove everything of it."""
        for each in self.loads:
            each.stop()
        # By its name and from elsewhere, so that neither its files nor its `.env` can be in the way.
        named = ["docker", "compose", "-p", self.folder.name, "--profile", "*"]
        for what, command in (
            ("logs", ["logs", "--no-color"]),
            ("down", ["down", "-v", "--remove-orphans", "-t", "5"]),
        ):
            with self._log(what).open("wb") as output:
                done = subprocess.run(
                    [*named, *command],
                    cwd="/",
                    env=self.environ,
                    stdout=output,
                    stderr=output,
                    timeout=UP_S,
                    check=False,
                )
            assert done.returncode == 0, f"docker compose {what} of {self.folder.name} failed"
        shutil.rmtree(self.folder, ignore_errors=True)

    def _log(self, what: str) -> Path:
        number = sum(1 for _ in self.secrecy.folder.iterdir())
        return self.secrecy.folder / f"{self.folder.name}-{number}-{what}.log"


def copy_clone(folder: Path) -> None:
    """What a clone has; what is new and not ignored as well, so that a change is tested before it is committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # git also knows what was just removed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def docker_environ() -> dict[str, str]:
    """This machine's environment without anything that is a setting of ours."""
    return {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
