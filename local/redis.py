"""A Redis (or Valkey) server of our own, on a free loopback port, with a password."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from local.account import Account
from local.binaries import Binary
from local.child import Child, Tether
from local.errors import ServerFailed
from local.port import ANSWER_TIMEOUT_S, LOOPBACK, PORT_TAKEN, PORT_TRIES, free_port
from local.server_log import contains, last_lines

START_TIMEOUT_S = 60.0
STOP = ((signal.SIGTERM, 10.0),)
ENVIRON = {"PATH": os.defpath, "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running server and where it listens."""

    binary: Binary
    host: str
    port: int
    child: Child
    log: Path


@contextmanager
def open_redis(
    directory: Path,
    binary: Binary,
    tether: Tether,
    *,
    lock: int,
    password: str,
    durable: bool = True,
    account: Account | None = None,
    pick_port: Callable[[], int] = free_port,
) -> Iterator[RedisServer]:
    """Start a server on the data in `directory` (made when missing), stop it on leaving.

    lock: the descriptor that holds `directory`; the server inherits it (local/lock.py). durable=False keeps
    nothing on disk. Raises ServerFailed with the last lines of the server's log.
    """
    data = directory / f"{binary.name}-{binary.major}"
    log = directory / "redis.log"
    data.mkdir(mode=0o700, exist_ok=True)
    if account is not None:
        os.chown(data, account.uid, account.gid)
    for attempt in range(1, PORT_TRIES + 1):
        port = pick_port()
        config = {
            "bind": LOOPBACK,
            "port": str(port),
            "requirepass": password,
            "daemonize": "no",
            "save": '""',
            "appendonly": "yes" if durable else "no",
        }
        with log.open("wb") as output:
            child = tether.spawn(
                [binary.path, "-"],
                death_signal=signal.SIGTERM,
                environ=ENVIRON,
                cwd=data,
                account=account,
                stdin=subprocess.PIPE,
                stdout=output,
                keep=(lock,),
            )
        try:
            # By standard input, so that the password is neither in the list of processes nor in a file.
            with contextlib.suppress(BrokenPipeError), child.input as stream:
                stream.write("".join(f"{name} {value}\n" for name, value in config.items()).encode())
            if _ready(child, log, port, password):
                yield RedisServer(binary, LOOPBACK, port, child, log)
                return
        finally:
            child.stop(*STOP)
        if attempt == PORT_TRIES or not contains(log, PORT_TAKEN):
            break
    raise ServerFailed(f"Redis ({binary.path}) ended at start (--fresh discards its data), see {log}:{last_lines(log)}")


def _ready(child: Child, log: Path, port: int, password: str) -> bool:
    """True when the server answers to our password, False when it ended."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with redis.Redis(host=LOOPBACK, port=port, password=password, socket_timeout=ANSWER_TIMEOUT_S) as client:
        while child.exit_code() is None:
            try:
                client.ping()
            except (redis.ConnectionError, redis.TimeoutError) as error:  # BusyLoadingError is one too
                if time.monotonic() > deadline:
                    raise ServerFailed(
                        f"Redis did not answer on port {port} within {START_TIMEOUT_S:g} s ({error}), "
                        f"see {log}:{last_lines(log)}"
                    ) from None
                time.sleep(0.02)
            else:
                return True
    return False
