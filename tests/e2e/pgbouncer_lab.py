"""PgBouncer's image and its PostgreSQL as single containers on a real engine, and clients of theirs."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pg8000.native

from tests.waiting import wait_until

POSTGRES_IMAGE = "postgres:17-alpine"
PASSWORDS = {
    "postgres_password": "pw-of-superuser-5be0",
    "db_password": "pw-of-'app'-5be0",
    "pgbouncer_password": 'pw-of-"pgbouncer":5be0\\ %s',
}
APP, ADMIN = ("app", PASSWORDS["db_password"]), ("pgbouncer", PASSWORDS["pgbouncer_password"])
PORT = 6432
POOL, RESERVE = 4, 1
START_S = 120.0
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
TMPFS = ("--tmpfs=/tmp", "--tmpfs=/run/pgbouncer:size=1m,mode=1777")


def docker(
    *arguments: str, check: bool = True, stdin: str = "", timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """A command of the engine's client; AssertionError with what it said when it fails and `check`."""
    done = subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
    return done


@dataclass(frozen=True, slots=True)
class Container:
    """One that runs, or ran."""

    name: str

    @property
    def host(self) -> str:
        """Its address in its network."""
        networks = self.inspect()["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    @property
    def logs(self) -> str:
        """What it has written until now, standard error included."""
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    @property
    def running(self) -> bool:
        return bool(self.inspect()["State"]["Running"])

    def inspect(self) -> Mapping[str, Any]:
        described: Mapping[str, Any] = json.loads(docker("inspect", self.name).stdout)[0]
        return described

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command inside it."""
        return docker("exec", self.name, *command, check=check)

    def sql(self, *statements: str) -> str:
        """As the superuser, in PostgreSQL's container."""
        each = [argument for statement in statements for argument in ("--command", statement)]
        return self.run("psql", "-qtAX", "-v", "ON_ERROR_STOP=1", "-U", "postgres", *each).stdout.strip()

    def health(self) -> subprocess.CompletedProcess[str]:
        """The image's own check, now."""
        return self.run("health", check=False)


@dataclass(frozen=True, slots=True)
class Lab:
    """Where containers of these tests live: a network, secrets, the image, and what ends them all."""

    network: str
    image: str
    secrets: Path
    stack: ExitStack

    def start(self, image: str, *options: str, command: tuple[str, ...] = ()) -> Container:
        """A container that is removed at the end."""
        container = Container(f"{self.network}-{uuid.uuid4().hex[:6]}")
        self.stack.callback(docker, "rm", "--force", "--volumes", container.name, check=False)
        docker("run", "--detach", "--name", container.name, "--network", self.network, *options, image, *command)
        return container

    def postgres(self, *options: str) -> Container:
        """PostgreSQL with the role and the database `app`, as the stack has it."""
        password = "--env=POSTGRES_PASSWORD_FILE=/run/secrets/postgres_password"
        container = self.start(
            POSTGRES_IMAGE, password, *self.mounts(*PASSWORDS), *options, command=("-cmax_connections=40",)
        )

        def answers() -> bool:
            assert container.running, container.logs
            # By TCP: the server that the image starts for its set-up listens on the socket only.
            return container.run("pg_isready", "-q", "-h", "127.0.0.1", check=False).returncode == 0

        wait_until(answers, timeout_s=START_S, what="PostgreSQL answers", poll_s=0.2)
        quoted = PASSWORDS["db_password"].replace("'", "''")
        container.sql(f"CREATE ROLE app LOGIN PASSWORD '{quoted}'", "CREATE DATABASE app OWNER app")
        return container

    def pgbouncer(self, server: Container, *options: str, answers: bool = True, **environ: str) -> Container:
        """PgBouncer as the stack starts it; waits until it answers unless told not to."""
        sizes = {"PGBOUNCER_DEFAULT_POOL_SIZE": str(POOL), "PGBOUNCER_RESERVE_POOL_SIZE": str(RESERVE)}
        own = {"POSTGRES_HOST": server.name, "POSTGRES_MAX_CONNECTIONS": "40"} | sizes | environ
        each = [argument for name, value in own.items() for argument in ("--env", f"{name}={value}")]
        container = self.start(
            self.image, *HARDENED, "--init", *self.mounts("pgbouncer_password"), *TMPFS, *each, *options
        )
        if answers:
            wait_until(lambda: serves(container), timeout_s=START_S, what="PgBouncer serves", poll_s=0.2)
        return container

    def mounts(self, *names: str) -> list[str]:
        """Secrets, as compose gives them."""
        return [f"--volume={self.secrets / name}:/run/secrets/{name}:ro" for name in names]


def serves(container: Container) -> bool:
    """Whether it is healthy; AssertionError if it has ended."""
    assert container.running, container.logs
    return container.health().returncode == 0


@asynccontextmanager
async def connected(container: Container, who: tuple[str, str] = APP, **arguments: Any) -> AsyncIterator[Any]:
    """A client of PgBouncer's."""
    user, password = who
    settings = {"host": container.host, "port": PORT, "database": "app", "ssl": False, "timeout": 20}
    connection = await asyncpg.connect(**(settings | {"user": user, "password": password} | arguments))
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


def ask(container: Container, command: str, who: tuple[str, str] = ADMIN) -> list[dict[str, Any]]:
    """What the console answers."""
    user, password = who
    with pg8000.native.Connection(
        user, host=container.host, port=PORT, password=password, database="pgbouncer", timeout=20
    ) as console:
        rows = console.run(command) or ()
        return [dict(zip((column["name"] for column in console.columns or ()), row, strict=True)) for row in rows]
