"""Who was connected to a stack's PostgreSQL meanwhile: sampled by one long-lived session inside its container."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.e2e.stack import Stack

EVERY_S = 0.2
NAME = "e2e sampler"
# jsonb: its text is one line.
QUERY = f"""
SELECT coalesce(jsonb_agg(seen), '[]') FROM (
    SELECT usename AS "user", application_name AS name, host(client_addr) AS host, count(*) AS number
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name <> '{NAME}'
    GROUP BY 1, 2, 3
) AS seen
\\watch {EVERY_S}
"""


@dataclass(frozen=True, slots=True)
class Clients:
    """Connections of one role, under one application_name, from one address (None: the server's own socket)."""

    user: str
    name: str
    host: str | None
    number: int


class Samples:
    """What `pg_stat_activity` showed until now."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def looks(self) -> list[list[Clients]]:
        """Everybody who was connected, at each moment that was looked at."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [[Clients(**row) for row in json.loads(line)] for line in lines if line.endswith("]")]

    def counts(self, which: Callable[[Clients], bool]) -> list[int]:
        """How many connections `which` counts, at each of these moments."""
        return [sum(clients.number for clients in look if which(clients)) for look in self.looks()]

    def peak(self, which: Callable[[Clients], bool]) -> int:
        """The most of them at one moment."""
        counts = self.counts(which)
        assert counts, f"no look at pg_stat_activity: {self._log.read_text(errors='replace')}"
        return max(counts)


@contextmanager
def sampled(stack: Stack, log: Path) -> Iterator[Samples]:
    """Look at the server every EVERY_S seconds while inside; `log` is the file for what is seen."""
    psql = stack.command("exec", "-T", "-e", f"PGAPPNAME={NAME}", "postgres", *stack.PSQL)
    samples = Samples(log)
    with log.open("wb") as output:
        process = subprocess.Popen(
            psql, cwd=stack.folder, env=stack.environ, stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    try:
        assert process.stdin is not None
        process.stdin.write(QUERY.encode())
        process.stdin.close()
        wait_until(samples.looks, timeout_s=30, what="the first look at pg_stat_activity", poll_s=0.1)
        yield samples
    finally:
        # Ending `docker exec` does not end what it has started: the session is ended from inside.
        stack.psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{NAME}'")
        process.kill()
        process.wait(timeout=10)
