"""Where a fault between the pool and the server is played, and what must hold after each one, whatever it was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from db.models import Subscriber
from pool import PoolClosed, PoolSaturated
from tests.engines import NAME, backends, free_slots, open_tortoise
from tests.pgbouncer import PgBouncer
from tests.private_server import PrivateServer
from tests.proxy import Proxy
from tests.superuser import value
from tests.waiting import until

Environ = dict[str, str]

LIMIT = 3
ACQUIRE_S, CONNECT_S, COMMAND_S = 1.0, 0.5, 0.5  # the deadlines, where a case does not set its own
TOLERANCE_S = 1.0  # no wait is longer than its deadline and this
OVERHEAD_S = 0.25  # what a busy machine needs besides


@dataclass
class Stage:
    """Where a case plays: a client with 0 to LIMIT connections, the proxy before its server, the role it logs in as."""

    direct: Environ  # past the proxy, as superuser
    proxy: Proxy
    role: str
    password: str
    server: PrivateServer | None = None
    pgbouncer: PgBouncer | None = None
    client: Any = None

    async def admin(self, query: str, *arguments: object) -> Any:
        """A value from the server, past proxy and pool."""
        return await value(self.direct, query, *arguments)

    async def outcome(self, work: Awaitable[Any], *, within_s: float) -> BaseException | None:
        """The error of `work`, which must end in time, counted from now."""
        task = asyncio.ensure_future(work)
        done, _ = await asyncio.wait({task}, timeout=within_s + TOLERANCE_S + OVERHEAD_S)
        if not done:
            task.cancel()
            raise AssertionError(f"not within {within_s:g} s and the tolerance")
        return task.exception()

    async def busy(self, query: str) -> None:
        """Waits until a connection of the pool runs, or waits to run, a query with that text in it."""
        statement = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = $1 AND state = 'active' AND position($2 in query) > 0"
        )

        async def is_busy() -> bool:
            return bool(await self.admin(statement, NAME, query))

        await until(is_busy, what=f"{query} runs")

    async def kill(self) -> None:
        """Ends all connections of the pool."""
        await self.admin(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
            " WHERE application_name = $1 AND datname = current_database()",
            NAME,
        )

    async def warm(self) -> None:
        """Opens all connections."""
        got = await free_slots(self.client, LIMIT, within_s=5)
        assert got == LIMIT, f"{got} of {LIMIT} connections can be opened"

    async def check_whole(self) -> None:
        """All places are there, nobody is counted who is gone, and the server has no connection that we forgot."""
        free = await free_slots(self.client, LIMIT)
        assert free == LIMIT, f"{free} of {LIMIT} places are free"
        now = self.client.pool.snapshot()
        assert (now.in_use, now.waiting, now.limit) == (0, 0, LIMIT), now
        assert now.acquires == now.releases, now
        await until(self.none_is_stray, timeout_s=5, what="the server has as many connections as the pool")

    async def check_gone(self) -> None:
        """After closing, the server has none of ours."""

        async def none() -> bool:
            return await self._connections() == 0

        await until(none, timeout_s=5, what="all connections are closed")

    async def none_is_stray(self) -> bool:
        """Whether the server, or the pooler, has as many connections of ours as the pool."""
        return bool(await self._connections() == self.client.pool.snapshot().size)

    async def _connections(self) -> int:
        if self.pgbouncer is not None:
            return sum(client["user"] == self.role for client in self.pgbouncer.ask("SHOW CLIENTS"))
        return await backends(self.direct)


Inject = Callable[[Stage], Coroutine[Any, Any, BaseException | None]]


@dataclass(frozen=True)
class Case:
    """A fault, and what its victim is told."""

    name: str
    inject: Inject  # makes the fault, lets somebody run into it, mends it; returns the error it met
    error: type[BaseException] | None = None  # exactly this class; None where nobody may notice
    text: str = ""  # of the error, as a regular expression
    certain: bool = True  # False: what came too late to be noticed is fine as well
    guards: dict[str, Any] = field(default_factory=dict)  # of our engine
    credentials: dict[str, Any] = field(default_factory=dict)  # of asyncpg


async def read() -> int:
    """What the ORM reads."""
    count: int = await Subscriber.all().count()
    return count


async def play(case: Case, stage: Stage) -> None:
    """The case, and the check that is the same for all."""
    guards = {"acquire_timeout_s": ACQUIRE_S} | case.guards
    hosts = case.credentials.get("host")
    credentials: dict[str, Any] = {
        "port": stage.proxy.listens_on if hosts is None else [stage.proxy.listens_on] * len(hosts),
        "user": stage.role,
        "password": lambda: stage.password,
        "maxsize": LIMIT,
        "timeout": CONNECT_S,
        "command_timeout": None,
    }
    async with open_tortoise(stage.direct, guards=guards, **credentials | case.credentials) as stage.client:
        error = await case.inject(stage)
        if case.error is None:
            assert error is None, repr(error)
        elif case.certain or error is not None:
            with pytest.raises(case.error, match=case.text or None) as caught:
                raise error or AssertionError("nobody noticed")
            assert type(caught.value) is case.error, repr(error)
            assert "\n" not in str(error), repr(error)
            assert stage.password not in str(error), "it shows the password"
            if case.error is not PoolClosed and case.error is not PoolSaturated:
                assert caught.value.__cause__ is not None, repr(error)
        await stage.check_whole()
    await stage.check_gone()
