"""docker-stack.yml on a Swarm of one node: up, more workers, onto PgBouncer during jobs, and back from a bad update."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import ROOT, Images, Load, docker_environ
from tests.secrecy import Secrecy
from tests.waiting import wait_until

COPIED = ("docker-stack*.yml", "deploy", "pgbouncer")
COMMAND_S = 60.0
CONVERGED_S = 300.0  # a check that a task is up comes every 30 s, and then they are replaced


@dataclass
class SwarmStack:
    """One stack: the folder that it is deployed from, whose name is the stack's."""

    folder: Path
    images: Images
    secrecy: Secrecy
    loads: list[Load] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    def create(self) -> None:
        """Copy the files, make the secrets. No output may show the passwords from now on."""
        self.folder.mkdir(parents=True)
        for pattern in COPIED:
            for source in sorted(ROOT.glob(pattern)):
                copy = shutil.copytree if source.is_dir() else shutil.copy
                copy(source, self.folder / source.name)
        self.docker("node", "update", "--label-add", "poolctl.data=true", self.docker("node", "ls", "-q").strip())
        self.run("sh", "deploy/secrets.sh")
        self.secrecy.secrets |= {path.read_text().strip() for path in (self.folder / "secrets").iterdir()}

    def run(self, *command: str, timeout_s: float = COMMAND_S, check: bool = True, **settings: str) -> str:
        """What a command in the folder prints; `settings` are its variables."""
        images = {"POOLCTL_IMAGE": self.images.poolctl, "PGBOUNCER_IMAGE": self.images.pgbouncer}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=docker_environ() | images | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        self._log("command").write_text(done.stdout)
        assert done.returncode == 0 or not check, f"exit {done.returncode}: {' '.join(command)}\n{done.stdout}"
        return done.stdout

    def docker(self, *arguments: str, timeout_s: float = COMMAND_S, check: bool = True) -> str:
        """`docker ARGUMENTS…`"""
        return self.run("docker", *arguments, timeout_s=timeout_s, check=check)

    def deploy(self, *files: str, **settings: str) -> None:
        """`docker stack deploy`, with the settings in the shell. No registry knows the images of a test."""
        options = [word for name in ("docker-stack.yml", *files) for word in ("-c", name)]
        self.run("docker", "stack", "deploy", "--detach=true", "--resolve-image=never", *options, self.name, **settings)

    def tasks(self, service: str) -> list[str]:
        """The ids of the containers that run for a service."""
        return self.docker("ps", "-q", "--no-trunc", "-f", f"name=^{self.name}_{service}\\.").split()

    def healthy(self, service: str) -> set[str]:
        """The ids of those that are healthy."""
        return {task for task in self.tasks(service) if self.inspect(task)["State"]["Health"]["Status"] == "healthy"}

    def inspect(self, container: str) -> dict[str, Any]:
        # Between two looks a task may go away.
        found = json.loads(self.docker("inspect", container, check=False).partition("\nError")[0] or "[]")
        gone = {"State": {"Health": {"Status": "gone"}}}
        return dict(found[0]) if found else gone

    def wait_for_workers(self, number: int) -> set[str]:
        """Wait until so many workers are healthy and no other one runs; their ids."""

        def settled() -> set[str] | None:
            tasks = self.tasks("worker")
            return healthy if len(tasks) == number == len(healthy := self.healthy("worker")) else None

        what = f"{number} healthy workers and no other"
        return wait_until(settled, timeout_s=CONVERGED_S, what=what, poll_s=1.0) or set()

    def update(self, service: str = "worker") -> str:
        """What became of the last update of a service: `completed`, `rollback_completed` …"""
        inspected = json.loads(self.docker("service", "inspect", f"{self.name}_{service}"))
        return str(inspected[0].get("UpdateStatus", {}).get("State", ""))

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in the first container of a service."""
        return self.docker("exec", self.tasks(service)[0], *command, check=check)

    def psql(self, sql: str) -> str:
        """What the superuser gets for `sql`, without headings."""
        return self.execute("postgres", "psql", "-XAtq", "-U", "postgres", "-d", "app", "-c", sql).strip()

    def load(self, jobs: int, *, queries: int, concurrency: int, hold_ms: int) -> Load:
        """Put exercise jobs on the queue; whoever follows them is no task, so that no update ends it."""
        secret = self.folder / "secrets" / "redis_password"
        command = ["docker", "run", "--rm", "-i", "--name", f"{self.name}_load-{len(self.loads)}"]
        command += ["--network", f"{self.name}_default"]
        command += ["-v", f"{secret}:/run/secrets/redis_password:ro", "-e", "STACK_POSTGRES_HOST=postgres"]
        command += ["-e", "STACK_REDIS_HOST=redis", self.images.poolctl, "python"]
        started = Load.start(command, (jobs, queries, concurrency, hold_ms), self.folder, self._log("load"))
        self.loads.append(started)
        started.wait_for(0)
        return started

    def close(self) -> None:
        """Keep its logs for the search for passwords, and remove everything of it."""
        for each in self.loads:
            each.stop()
        for container in self._left("ps", "-a"):
            self.docker("logs", container, check=False)

        def gone() -> bool:
            # Again and again: Swarm keeps a network while a task is about to use it, and stopped containers for long.
            self.docker("stack", "rm", self.name, check=False)
            for container in self._left("ps", "-a"):
                self.docker("rm", "-f", container, check=False)
            return not self._left("ps", "-a") and not self._left("network", "ls")

        wait_until(gone, timeout_s=180, what="nothing of the stack", poll_s=2.0)
        for volume in self._left("volume", "ls"):
            self.docker("volume", "rm", volume)
        shutil.rmtree(self.folder)

    def _left(self, *list_command: str) -> list[str]:
        return self.docker(*list_command, "-q", "-f", f"name=^{self.name}_").split()

    def _log(self, what: str) -> Path:
        number = sum(1 for _ in self.secrecy.folder.iterdir())
        return self.secrecy.folder / f"{self.name}-{number}-{what}.log"


@pytest.fixture(scope="module")
def swarm(engine: None) -> Iterator[None]:
    """This engine as a Swarm of one node, on loopback.

    Skipped where it is in a Swarm already, which is left alone; and where containers run that are not ours: when an
    engine (20.10) leaves a Swarm, the others' networks forget all names.
    """
    state = subprocess.run(
        ["docker", "info", "-f", "{{.Swarm.LocalNodeState}}"], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()
    if state != "inactive":
        pytest.skip(f"this engine is in a Swarm already ({state})")
    running = subprocess.run(["docker", "ps", "-q"], capture_output=True, text=True, timeout=60, check=True).stdout
    if running:
        pytest.skip(f"{len(running.split())} other containers run on this engine: leaving a Swarm would disturb them")
    try:
        subprocess.run(
            ["docker", "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377"],
            capture_output=True,
            timeout=60,
            check=True,
        )
        yield
    finally:
        subprocess.run(["docker", "swarm", "leave", "--force"], capture_output=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def stack(
    images: Images, swarm: None, tmp_path_factory: pytest.TempPathFactory, secrecy: Secrecy
) -> Iterator[SwarmStack]:
    """The stack of this module, whose tests go on with what the ones before them left; not yet deployed."""
    opened = SwarmStack(tmp_path_factory.mktemp("swarm") / f"e2e-swarm-{uuid.uuid4().hex[:8]}", images, secrecy)
    try:
        opened.create()
        yield opened
    finally:
        opened.close()


def test_up(stack: SwarmStack) -> None:
    """Without any start condition all comes up by itself, migrated, each worker under its name, confined."""
    stack.deploy(DB_POOL_MAX="4")
    for worker in stack.wait_for_workers(2):
        inspected = stack.inspect(worker)
        assert inspected["HostConfig"]["ReadonlyRootfs"] is True
        assert inspected["HostConfig"]["CapDrop"] == ["ALL"]
        assert inspected["HostConfig"]["PidsLimit"] == 128
        assert inspected["HostConfig"]["Memory"] == 512 * 1024 * 1024
        assert not [line for line in inspected["Config"]["Env"] if re.match(r"\w*PASSWORD=", line)]
        assert stack.docker("exec", worker, "id", "-u").strip() == "10001"
    names = stack.psql("SELECT DISTINCT application_name FROM pg_stat_activity WHERE usename = 'app'").split()
    assert {"worker-1", "worker-2"} <= set(names)
    # A task that fails would count against an update: they wait inside.
    history = stack.docker("service", "ps", f"{stack.name}_worker", "--format", "{{.CurrentState}}")
    assert "Failed" not in history


def test_scale_to_six(stack: SwarmStack) -> None:
    """WORKERS=6 starts four more, and leaves the two that run alone."""
    before = set(stack.tasks("worker"))
    stack.deploy(DB_POOL_MAX="4", WORKERS="6")
    assert stack.wait_for_workers(6) > before


def test_rolling_update_to_pgbouncer_during_jobs(stack: SwarmStack) -> None:
    """Every worker is replaced while jobs run, onto PgBouncer and with another pool; no job is lost or run twice."""
    before = stack.wait_for_workers(6)
    jobs = stack.load(2400, queries=16, concurrency=4, hold_ms=100)
    jobs.wait_for(50)
    stack.deploy("docker-stack.pgbouncer.yml", DB_POOL_MAX="5", WORKERS="6")
    wait_until(lambda: stack.update() == "completed", timeout_s=CONVERGED_S, what="the end of the update", poll_s=1.0)
    after = stack.wait_for_workers(6)
    assert after & before == set()
    outcomes = jobs.wait(600)
    outcomes.check(units=16)
    assert {job["tries"] for job in outcomes.jobs} == {1}
    assert len(outcomes.by_process()) == 12, "old and new workers took jobs"
    pooled = "SELECT count(DISTINCT client_addr) FROM pg_stat_activity WHERE application_name ~ '^worker-'"
    assert stack.psql(pooled) == "1", "PgBouncer's address alone"
    assert "pooler: app@pgbouncer:6432/app" in stack.execute("worker", "poolctl", "check", check=False)


def test_a_bad_update_is_rolled_back(stack: SwarmStack) -> None:
    """Workers that cannot start, here for a floor above the ceiling, replace nobody; Swarm goes back by itself."""
    before = stack.wait_for_workers(6)
    stack.deploy("docker-stack.pgbouncer.yml", DB_POOL_MAX="5", DB_POOL_MIN="9", WORKERS="6")
    wait_until(
        lambda: stack.update() == "rollback_completed",
        timeout_s=CONVERGED_S,
        what="the end of the rollback",
        poll_s=1.0,
    )
    assert stack.wait_for_workers(6) == before
    stack.load(20, queries=4, concurrency=2, hold_ms=1).wait().check(units=4)
