"""Real processes that each open a full pool, hold it, and close it when told, again and again.

`python -m tests.pool_processes` is one of them; `PoolProcess` tells it what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from config import Settings
from config.settings import Role
from db import DatabaseError, open_database
from tests.processes import Spawned


@dataclass
class PoolProcess:
    """One such process, spawned with stdin=True."""

    process: Spawned
    orders: int = 0

    def open(self, role: str, environ: Mapping[str, str]) -> None:
        """Have it open the pool of a process of `role` ("worker" or "bot"); does not wait."""
        self.orders += 1
        self.process.write(json.dumps({"number": self.orders, "role": role, "environ": dict(environ)}) + "\n")

    def answer(self, timeout_s: float) -> str:
        """`open N` once it holds a pool of N connections, or the class of the error that it met."""
        return self._wait_for(f"#{self.orders} ", timeout_s)

    def close(self) -> None:
        """Have it close the pool, if it has one; does not wait."""
        self.process.write("close\n")

    def wait_until_closed(self, timeout_s: float) -> None:
        """Wait until it has closed the pool, or noticed that there is none to close."""
        self._wait_for(f"#{self.orders} closed", timeout_s)

    def end(self) -> None:
        """End its input: it closes the pool, if it has one, and exits; does not wait."""
        self.process.child.input.close()

    def _wait_for(self, text: str, timeout_s: float) -> str:
        """What it has said after `text`."""
        return self.process.wait_for(text, timeout_s).partition(text)[2].partition("\n")[0]


async def hold(number: int, role: Role, environ: Mapping[str, str]) -> None:
    """Open the pool, say what became of it, keep it until the next line of input."""
    settings = Settings.load(role, environ)
    async with contextlib.AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(open_database(settings, check_schema=False))
            answer = f"open {database.pool_snapshot().size}"
        except DatabaseError as error:
            answer = type(error).__name__
        say(f"#{number} {answer}")
        await asyncio.to_thread(sys.stdin.readline)
    say(f"#{number} closed")


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - it is the only way to tell


if __name__ == "__main__":
    for order in iter(sys.stdin.readline, ""):
        asyncio.run(hold(**json.loads(order)))
