"""The plan against real servers: they take what it calls `fits` or `tight`, and refuse what it calls `over`."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from config import Settings
from db import ServerReport, connect, read_server
from fleet.plan import Demand, Plan, Supply, Verdict
from local import LocalServers, Tether, open_servers
from local.binaries import EVERYWHERE
from local.port import LOOPBACK
from tests.pool_processes import PoolProcess
from tests.process_table import descendants
from tests.processes import Spawner
from tests.secrecy import Secrecy
from tests.waiting import wait_until

SEED = 5
FLEETS = 60
MOST_WORKERS, MOST_BOTS, LARGEST_POOL = 8, 2, 10
ROLE, PASSWORD = "plain", "pw-of-plain"

# DB_CONNECT_TIMEOUT. A refused process tries again until it is over, so a short one comes first; a longer one only
# where a process was neither let in nor refused, because the machine was busy.
PATIENCE_S = (0.5, 4.0, 32.0)
MARGIN_S = 20.0

RUNS, REFUSED, REFUSED_AT_FIRST = "runs", "is refused", "runs, but was refused at first"
EXPECTED = {Verdict.FITS: RUNS, Verdict.TIGHT: RUNS, Verdict.OVER: REFUSED}
REFUSAL = re.compile(r"^53300 FATAL", re.MULTILINE)  # too_many_connections in the server's own log


@dataclass(frozen=True)
class Limits:
    """What a server can change by a restart only."""

    max_connections: int
    superuser_reserved: int
    reserved: int  # nothing before PostgreSQL 16


@dataclass(frozen=True)
class Server:
    """A running server, watched from outside: a session of ours, a superuser's too, would take a slot from others."""

    servers: LocalServers

    def environ(self) -> dict[str, str]:
        """How a process reaches it with the role that is not superuser."""
        database = {name: value for name, value in self.servers.environ().items() if name.startswith("DB_")}
        return database | {"DB_USER": ROLE, "DB_PASSWORD": PASSWORD}

    def refusals(self) -> int:
        """Connections that it has refused for lack of a slot."""
        return len(REFUSAL.findall(self.servers.postgres.log.read_text(errors="replace")))

    def sessions(self) -> int:
        """Clients that it serves, those included that are still logging in.

        Of its processes those have the client's address in their title; until they have one, it is the command
        line of the server, with the same address.
        """
        return sum(LOOPBACK in row.command for row in descendants(self.servers.postgres.child.pid).values())

    def wait_for_sessions(self, count: int) -> None:
        """Wait until it serves so many clients."""
        wait_until(lambda: self.sessions() == count, what=f"{count} sessions", poll_s=0.005)


@pytest.fixture
def opened(
    data_folder: Path, tether: Tether, secrecy: Secrecy, pytestconfig: pytest.Config
) -> Iterator[Callable[[Limits], AbstractContextManager[Server]]]:
    """`with opened(limits) as server:` a server with these limits and the role."""
    directory = data_folder / "plan-is-true"
    search = pytestconfig.getoption("--servers") or EVERYWHERE

    @contextmanager
    def open_server(limits: Limits) -> Iterator[Server]:
        with open_servers(directory, tether, durable=False, search=search) as servers:
            secrecy.secrets |= {servers.database_password, servers.redis_password}
            ask(servers, *preparation(limits, with_reserved=knows_reserved(servers)))
        with open_servers(
            directory, tether, max_connections=limits.max_connections, durable=False, search=search
        ) as servers:
            yield Server(servers)
        shutil.copy(servers.postgres.log, secrecy.folder / f"plan-{limits.max_connections}.log")

    yield open_server
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def processes(spawn: Spawner) -> Iterator[list[PoolProcess]]:
    """As many as the largest fleet has."""
    count = MOST_WORKERS + MOST_BOTS
    started = [PoolProcess(spawn("tests.pool_processes", environ={}, stdin=True)) for _ in range(count)]
    yield started
    for process in started:
        process.end()


@pytest.mark.slow
def test_the_plan_is_true(
    opened: Callable[[Limits], AbstractContextManager[Server]], processes: list[PoolProcess]
) -> None:
    """Random fleets run unrefused on real servers where the plan does not call them `over`, and nowhere else."""
    rng = random.Random(SEED)
    seen: Counter[Verdict] = Counter()
    untrue = []
    servers = random_limits(rng)
    for limits in servers:
        with opened(limits) as server:
            report = ask(server.servers)
            read = Limits(report.max_connections, report.superuser_reserved, report.reserved)
            assert read == (limits if knows_reserved(server.servers) else replace(limits, reserved=0))
            supply = Supply(
                max_connections=read.max_connections,
                superuser_reserved=read.superuser_reserved,
                reserved=read.reserved,
            )
            for demand in random_demands(rng, supply, FLEETS // len(servers)):
                verdict = Plan(demand, supply).verdict
                seen[verdict] += 1
                outcome = boot(server, processes, demand)
                if outcome != EXPECTED[verdict]:
                    untrue.append(f"{verdict}, but {outcome}: {demand.peak} of {supply.available}: {demand}, {read}")
    print(f"seed {SEED}:", *(f"{seen[verdict]} {verdict}" for verdict in Verdict))  # noqa: T201 - shown on failure
    assert not untrue, f"seed {SEED}:\n" + "\n".join(untrue)
    assert sum(seen.values()) == FLEETS
    assert min(seen[verdict] for verdict in Verdict) >= FLEETS // 4


def boot(server: Server, processes: list[PoolProcess], demand: Demand) -> str:
    """Open all pools of the fleet, each in a process of its own, hold them at once, and say what became of it."""
    environ = server.environ()
    for role, pool_max in (("WORKER", demand.pool_max), ("BOT", demand.bot_pool_max)):
        environ |= {f"{role}_DB_POOL_MIN": str(pool_max), f"{role}_DB_POOL_MAX": str(pool_max)}
    fleet = list(zip(processes, ["worker"] * demand.workers + ["bot"] * demand.bots, strict=False))
    full = [f"open {demand.pool_max}"] * demand.workers + [f"open {demand.bot_pool_max}"] * demand.bots
    for patience_s in PATIENCE_S:
        # Connections are let in one after the other: when ours was, none that somebody gave up waits any more.
        ask(server.servers)
        server.wait_for_sessions(0)
        refusals = server.refusals()
        for process, role in fleet:
            process.open(role, environ | {"DB_CONNECT_TIMEOUT": str(patience_s)})
        answers = [process.answer(patience_s + MARGIN_S) for process, _ in fleet]
        if answers == full:
            server.wait_for_sessions(demand.peak)
        for process, _ in fleet:
            process.close()
        for process, _ in fleet:
            process.wait_until_closed(MARGIN_S)
        refused = server.refusals() > refusals
        if "TooManyClients" in answers:
            assert refused, "a process says that it was refused, the server's log does not"
            return REFUSED
        if answers == full:
            return REFUSED_AT_FIRST if refused else RUNS
        assert set(answers) <= {*full, "DatabaseUnreachable"}, answers
    raise AssertionError(f"{demand}: no answer from the server within {PATIENCE_S[-1]:g} s: {answers}")


def random_limits(rng: random.Random) -> list[Limits]:
    """Six servers: the smallest with PostgreSQL's own reserve, the largest, and four between."""
    between = [10, 40, *rng.sample(range(11, 40), 4)]
    others = [Limits(size, rng.randint(0, 4), rng.randint(0, 3)) for size in between[1:]]
    return [Limits(10, superuser_reserved=3, reserved=0), *others]


def random_demands(rng: random.Random, supply: Supply, count: int) -> list[Demand]:
    """Fleets at both sides of both lines of the plan, and a third of the rest in each of its three ranges."""
    ranges = [
        range(1, supply.usable + 1),
        range(supply.usable + 1, supply.available + 1),
        range(supply.available + 1, 2 * supply.available + 1),
    ]
    peaks = [supply.usable, supply.usable + 1, supply.available, supply.available + 1]
    peaks += [rng.choice(ranges[number % len(ranges)]) for number in range(count - len(peaks))]
    rng.shuffle(peaks)
    return [random_demand(rng, peak) for peak in peaks]


def random_demand(rng: random.Random, peak: int) -> Demand:
    """Any fleet of this peak, all equally likely."""
    fleets = [
        (workers, pool_max, bots, bot_pool_max)
        for workers in range(1, MOST_WORKERS + 1)
        for pool_max in range(1, LARGEST_POOL + 1)
        for bots in range(MOST_BOTS + 1)
        for bot_pool_max in (range(1, LARGEST_POOL + 1) if bots else (1,))
        if workers * pool_max + bots * bot_pool_max == peak
    ]
    workers, pool_max, bots, bot_pool_max = rng.choice(fleets)
    return Demand(workers=workers, pool_max=pool_max, bots=bots, bot_pool_max=bot_pool_max, overhead=0, surge=1)


def preparation(limits: Limits, *, with_reserved: bool) -> list[str]:
    """Statements for a superuser; what they set is in force after the next start."""
    statements = [
        f"DROP ROLE IF EXISTS {ROLE}",
        f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'",
        "ALTER SYSTEM SET log_line_prefix = '%e '",
        f"ALTER SYSTEM SET superuser_reserved_connections = {limits.superuser_reserved}",
    ]
    if with_reserved:
        statements.append(f"ALTER SYSTEM SET reserved_connections = {limits.reserved}")
    return statements


def knows_reserved(servers: LocalServers) -> bool:
    """Whether it has the setting `reserved_connections`."""
    return servers.postgres.binary.major >= 16


def ask(servers: LocalServers, *statements: str) -> ServerReport:
    """What the server says of itself, after a superuser has run these statements; the session is over then."""

    async def main() -> ServerReport:
        async with connect(Settings.load("poolctl", servers.environ()), patient=True) as connection:
            for statement in statements:
                await connection.execute(statement)
            return await read_server(connection)

    # A loop of its own: asyncio.run would also replace the thread's current event loop.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(main())
