"""A PostgreSQL server of our own, on a free loopback port, with a password."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from local.account import Account
from local.binaries import Binary
from local.child import Child, Tether
from local.errors import ServerFailed
from local.port import ANSWER_TIMEOUT_S, LOOPBACK, PORT_TAKEN, PORT_TRIES, free_port
from local.server_log import contains, last_lines

USER = "postgres"
DATABASE = "fleet"
INITDB_TIMEOUT_S = 120.0
START_TIMEOUT_S = 60.0  # a server that was killed replays its log first
# Fast shutdown, then immediate shutdown.
STOP = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0))
# The server sees nothing of our environment: PGDATA, PGPORT and the locale would change what it does.
ENVIRON = {"PATH": os.defpath, "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running server and where it listens."""

    binary: Binary
    host: str
    port: int
    child: Child
    log: Path


@contextmanager
def open_postgres(
    directory: Path,
    binary: Binary,
    tether: Tether,
    *,
    lock: int,
    password: str,
    max_connections: int,
    durable: bool = True,
    account: Account | None = None,
    pick_port: Callable[[], int] = free_port,
) -> Iterator[PostgresServer]:
    """Start a server on the data in `directory` (made when missing), stop it on leaving.

    lock: the descriptor that holds `directory`; the server inherits it (local/lock.py). durable=False gives up
    safety against a power cut for speed. Raises ServerFailed with the last lines of the server's log.
    """
    data = directory / f"postgres-{binary.major}"
    log = directory / "postgres.log"
    if not data.exists():
        _initialise(data, directory / "initdb.log", binary, tether, password, durable, account)
    # We hold the lock, so no server of an earlier run lives; but its number may be another process's by now,
    # and PostgreSQL would take that for a server that still runs.
    (data / "postmaster.pid").unlink(missing_ok=True)
    options = {
        "listen_addresses": LOOPBACK,
        "unix_socket_directories": "",  # a path longer than 107 bytes would be refused
        "max_connections": str(max_connections),
        "logging_collector": "off",
        "log_destination": "stderr",
    }
    if not durable:
        options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    for attempt in range(1, PORT_TRIES + 1):
        port = pick_port()
        command: list[str | Path] = [binary.path, "-D", data, "-p", str(port)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with log.open("wb") as output:
            child = tether.spawn(
                command,
                death_signal=signal.SIGINT,
                environ=ENVIRON,
                cwd=data,
                account=account,
                stdout=output,
                keep=(lock,),
            )
        try:
            if _run(_ready(child, log, port, password, directory)):
                yield PostgresServer(binary, LOOPBACK, port, child, log)
                return
        finally:
            child.stop(*STOP)
        if attempt == PORT_TRIES or not contains(log, PORT_TAKEN):
            break
    raise ServerFailed(f"PostgreSQL ({binary.path}) ended at start, see {log}:{last_lines(log)}")


def _initialise(
    data: Path,
    log: Path,
    binary: Binary,
    tether: Tether,
    password: str,
    durable: bool,
    account: Account | None,
) -> None:
    """Make the data folder with initdb: whole, or not at all."""
    unfinished = data.with_name(f"{data.name}.unfinished")
    password_file = data.with_name("initdb.password")
    shutil.rmtree(unfinished, ignore_errors=True)
    password_file.unlink(missing_ok=True)
    unfinished.mkdir(mode=0o700)
    try:
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as stream:
            stream.write(password)
        if account is not None:
            for path in (unfinished, password_file):
                os.chown(path, account.uid, account.gid)
        command: list[str | Path] = [
            binary.path.with_name("initdb"),
            *("-D", unfinished, "-U", USER, "--pwfile", password_file),
            *("--auth-host=scram-sha-256", "--auth-local=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C"),
        ]
        if not durable:
            command.append("--no-sync")
        with log.open("wb") as output:
            child = tether.spawn(
                command,
                death_signal=signal.SIGKILL,
                environ=ENVIRON,
                cwd=unfinished,
                account=account,
                stdout=output,
            )
        try:
            code = child.wait(INITDB_TIMEOUT_S)
        finally:
            child.stop()
        if code is None:
            raise ServerFailed(f"initdb did not finish within {INITDB_TIMEOUT_S:g} s:{last_lines(log)}")
        if code != 0:
            raise ServerFailed(f"initdb ({command[0]}) failed with exit code {code}:{last_lines(log)}")
        unfinished.rename(data)
    finally:
        password_file.unlink(missing_ok=True)


async def _ready(child: Child, log: Path, port: int, password: str, directory: Path) -> bool:
    """True when the server answers and has our database, False when it ended."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while child.exit_code() is None:
        try:
            connection = await asyncpg.connect(
                host=LOOPBACK,
                port=port,
                user=USER,
                password=password,
                database="postgres",
                ssl=False,
                target_session_attrs="any",
                timeout=ANSWER_TIMEOUT_S,
            )
        except asyncpg.InvalidPasswordError:
            raise ServerFailed(
                f"the password kept in {directory} does not open the PostgreSQL data there: "
                "discard the data with --fresh"
            ) from None
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError) as error:
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"PostgreSQL did not answer on port {port} within {START_TIMEOUT_S:g} s ({error}), "
                    f"see {log}:{last_lines(log)}"
                ) from None
            await asyncio.sleep(0.02)
            continue
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close(timeout=5.0)
        return True
    return False


def _run(main: Coroutine[Any, Any, bool]) -> bool:
    # A loop of its own: asyncio.run would also replace the thread's current event loop.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(main)
