"""A Redis of one test's own, which it may stop, kill, freeze and start again on the same port with its data."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import redis

from local import Child, Tether
from local.port import free_port
from tests.waiting import wait_until

PASSWORD = "a-password-of-the-tests-own-redis"


class RedisServer:
    """A server on `port` of loopback; `options` are lines of its configuration, `sentinel` makes it one."""

    def __init__(
        self,
        binary: Path,
        folder: Path,
        tether: Tether,
        options: Mapping[str, str] | None = None,
        *,
        sentinel: bool = False,
    ) -> None:
        self.port = free_port()
        self._binary = binary
        self._folder = folder
        self._tether = tether
        self._options = dict(options or {})
        self._sentinel = sentinel
        self._child: Child | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def environ(self) -> dict[str, str]:
        """How a process reaches it."""
        return {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(self.port), "REDIS_PASSWORD": PASSWORD}

    @property
    def child(self) -> Child:
        """Its process."""
        assert self._child is not None, "not started"
        return self._child

    def start(self) -> None:
        """Start it, with the data of before, and wait until it answers."""
        config = self._folder / "redis.conf"
        if not config.exists():  # a sentinel writes into its own
            lines = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self._folder), **self._options}
            if not self._sentinel:
                lines = {"requirepass": PASSWORD, "masterauth": PASSWORD, "appendonly": "yes", "save": '""'} | lines
            config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        with (self._folder / "redis.log").open("ab") as log:
            self._child = self._tether.spawn(
                [self._binary, config, *(["--sentinel"] if self._sentinel else [])],
                death_signal=signal.SIGKILL,
                environ={"PATH": os.defpath},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
            )
        with self.client() as client:

            def answers() -> bool:
                with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                    return bool(client.ping())
                return False

            wait_until(answers, what="Redis answers")

    def client(self) -> redis.Redis:
        """A blocking client of it."""
        return redis.Redis("127.0.0.1", self.port, password=None if self._sentinel else PASSWORD, socket_timeout=2)

    def stop(self) -> None:
        """End it cleanly: what it was told is on disk."""
        self.child.send(signal.SIGTERM)
        assert self.child.wait(20) is not None

    def kill(self) -> None:
        """End it at once."""
        self.child.send(signal.SIGKILL)
        self.child.wait(5)

    def freeze(self) -> None:
        """It answers nothing more, and its connections stay."""
        self.child.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self.child.send(signal.SIGCONT)


@contextmanager
def open_redis_server(
    binary: Path, folder: Path, tether: Tether, options: Mapping[str, str] | None = None, *, sentinel: bool = False
) -> Iterator[RedisServer]:
    """A started server, killed at the end."""
    server = RedisServer(binary, folder, tether, options, sentinel=sentinel)
    server.start()
    try:
        yield server
    finally:
        server.kill()
