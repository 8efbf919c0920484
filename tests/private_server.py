"""A PostgreSQL of one test's own, which may stop and start while the event loop runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from local import LocalServers, Tether
from local.account import server_account
from local.directory import prepare
from local.lock import locked
from local.postgres import DATABASE, PostgresServer, open_postgres

T = TypeVar("T")


class PrivateServer:
    """Its data is as good as gone when the machine stops; it does not run until `start`."""

    def __init__(self, directory: Path, servers: LocalServers, tether: Tether) -> None:
        self._directory, self._servers, self._tether = directory, servers, tether
        self._stack = contextlib.ExitStack()
        # Servers end with the thread that started them: one thread, as long as the test takes.
        self._thread = ThreadPoolExecutor(1)
        self.running: PostgresServer | None = None

    @property
    def environ(self) -> dict[str, str]:
        """The variables that lead to it, as superuser."""
        assert self.running is not None
        return self._servers.environ(DATABASE) | {"DB_PORT": str(self.running.port)}

    async def start(self) -> None:
        """Start it, on any port."""
        self.running = await self._in_thread(self._start)

    async def stop(self) -> None:
        """Fast shutdown."""
        await self._in_thread(self._stack.close)

    async def close(self) -> None:
        """Stop it for good."""
        await self.stop()
        self._thread.shutdown()

    def _start(self) -> PostgresServer:
        prepare(self._directory)
        return self._stack.enter_context(
            open_postgres(
                self._directory,
                self._servers.postgres.binary,
                self._tether,
                lock=self._stack.enter_context(locked(self._directory)),
                password=self._servers.database_password,
                max_connections=30,
                durable=False,
                account=server_account("postgres", "nobody"),
            )
        )

    async def _in_thread(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)
