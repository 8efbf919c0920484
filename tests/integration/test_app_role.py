"""deploy/postgres/app-role.sh: the application's role can do what it must, and no more. Runs on a real server."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from config.exit_codes import ExitCode
from local import LocalServers
from tests.processes import ROOT
from tests.secrecy import Secrecy

SCRIPT = ROOT / "deploy" / "postgres" / "app-role.sh"
PASSWORD = "pw of \"the role\" '5b1d' $HOME \\ %s"
NUMBERS = itertools.count(1)

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed")


@pytest.fixture
def role(servers: LocalServers) -> Iterator[str]:
    """The name of a role and of its database, neither of which is there yet."""
    name = f"app_{next(NUMBERS)}"
    yield name
    query(servers, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    query(servers, f'DROP ROLE IF EXISTS "{name}"')


@pytest.fixture
def secret(tmp_path: Path, secrecy: Secrecy) -> Path:
    """The password's file. (The server's log is searched for it, too, at the end of the run.)"""
    secrecy.secrets.add(PASSWORD)
    path = tmp_path / "db_password"
    path.write_text(f"{PASSWORD}\n")
    return path


@pytest.fixture
def run(servers: LocalServers, role: str, secret: Path) -> Run:
    """Run the script as PostgreSQL's image does, but by TCP."""
    superuser = servers.environ()

    def run_one(**environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", SCRIPT],
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "PGHOST": superuser["DB_HOST"],
                "PGPORT": superuser["DB_PORT"],
                "PGPASSWORD": superuser["DB_PASSWORD"],
                "POSTGRES_USER": superuser["DB_USER"],
                "STACK_SECRETS": str(secret.parent),
                "DB_USER": role,
                "DB_NAME": role,
                **environ,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run_one


def query(servers: LocalServers, statement: str, *arguments: str, **connection: str) -> list[Any]:
    """The rows' first columns; as the superuser unless `connection` says otherwise."""
    superuser = servers.environ()

    async def fetch() -> list[Any]:
        opened = await asyncpg.connect(
            host=superuser["DB_HOST"],
            port=int(superuser["DB_PORT"]),
            ssl=False,
            **{"user": superuser["DB_USER"], "password": superuser["DB_PASSWORD"], "database": "postgres"} | connection,
        )
        try:
            return [row[0] for row in await opened.fetch(statement, *arguments)]
        finally:
            await opened.close(timeout=5.0)

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(fetch())


def test_role(servers: LocalServers, run: Run, role: str) -> None:
    """It logs in with the file's password, owns its database, reads statistics, and is nothing else."""
    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    own = {"user": role, "password": PASSWORD, "database": role}
    assert query(servers, "SELECT current_user::text", **own) == [role]
    may = "rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls"
    assert query(servers, f"SELECT {may} FROM pg_roles WHERE rolname = $1", role) == [False]
    owner = "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = $1"
    assert query(servers, owner, role) == [role]
    assert query(servers, "SELECT pg_has_role($1, 'pg_monitor', 'USAGE')", role) == [True]
    others = (
        "SELECT r.rolname::text FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid WHERE m.member = $1::regrole"
    )
    assert query(servers, others, role) == ["pg_monitor"]
    query(servers, "CREATE TABLE mine ()", **own)


def test_what_a_pooler_cannot_carry(servers: LocalServers, run: Run, role: str) -> None:
    """A session of the role has it from the role: no JIT, no forgotten transaction, and nothing of a schema."""
    run()
    own = {"user": role, "password": PASSWORD, "database": role}
    assert query(servers, "SHOW jit", **own) == ["off"]
    assert query(servers, "SHOW idle_in_transaction_session_timeout", **own) == ["1min"]
    assert query(servers, "SHOW search_path", **own) == ['"$user", public']


def test_schema(servers: LocalServers, run: Run, role: str) -> None:
    """With DB_SCHEMA there is such a schema, the role's own, in which its sessions look; without it, no longer."""
    assert run(DB_SCHEMA="shop").returncode == 0
    own = {"user": role, "password": PASSWORD, "database": role}
    assert query(servers, "SHOW search_path", **own) == ["shop"]
    query(servers, "CREATE TABLE mine ()", **own)
    assert query(servers, "SELECT schemaname::text FROM pg_tables WHERE tablename = 'mine'", **own) == ["shop"]
    assert run().returncode == 0
    assert query(servers, "SHOW search_path", **own) == ['"$user", public']


def test_statistics_of_statements(servers: LocalServers, run: Run, role: str) -> None:
    """The database has pg_stat_statements, for whoever looks for slow queries."""
    if not query(servers, "SELECT 1 FROM pg_available_extensions WHERE name = 'pg_stat_statements'"):
        pytest.skip("this server comes without pg_stat_statements")
    run()
    assert query(servers, "SELECT extname::text FROM pg_extension WHERE extname LIKE 'pg_stat%'", database=role) == [
        "pg_stat_statements"
    ]


def test_again(servers: LocalServers, run: Run, role: str, secret: Path, secrecy: Secrecy) -> None:
    """Run again it keeps what is there, takes back what was added by hand, and sets the password of the file."""
    run()
    own = {"user": role, "database": role}
    query(servers, "CREATE TABLE mine ()", password=PASSWORD, **own)
    query(servers, f'ALTER ROLE "{role}" CREATEDB SUPERUSER')
    other = "another-pw-7c1e"
    secrecy.secrets.add(other)
    secret.write_text(other)
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert query(servers, "SELECT count(*) FROM mine", password=other, **own) == [0]
    assert query(servers, "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = $1", role) == [False]
    with pytest.raises(asyncpg.InvalidPasswordError):
        query(servers, "SELECT 1", password=PASSWORD, **own)


def test_password_is_kept_as_a_secret(servers: LocalServers, run: Run, role: str) -> None:
    """The server stores what SCRAM needs, not the password."""
    run()
    (stored,) = query(servers, "SELECT rolpassword FROM pg_authid WHERE rolname = $1", role)
    assert stored.startswith("SCRAM-SHA-256$")


@pytest.mark.parametrize("name", ['sh"op', "sh'op", "Shop", "select"])
def test_names_need_no_care(servers: LocalServers, run: Run, name: str, role: str) -> None:
    """A name that needs quotes gets them."""
    try:
        assert run(DB_USER=f"{role}_{name}").returncode == 0
        assert query(servers, "SELECT 1 FROM pg_roles WHERE rolname = $1", f"{role}_{name}") == [1]
    finally:
        quoted = f"{role}_{name}".replace('"', '""')
        query(servers, f'DROP DATABASE IF EXISTS "{role}" WITH (FORCE)')
        query(servers, f'DROP ROLE IF EXISTS "{quoted}"')


def test_superuser_is_refused(servers: LocalServers, run: Run, role: str) -> None:
    """DB_USER that is PostgreSQL's superuser is refused before anything is changed: it would be one no more."""
    superuser = servers.environ()["DB_USER"]
    done = run(DB_USER=superuser)
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == f"postgres: DB_USER={superuser} is the superuser: give the application a role of its own\n"
    assert query(servers, "SELECT rolsuper FROM pg_roles WHERE rolname = $1", superuser) == [True]
    assert query(servers, "SELECT 1 FROM pg_database WHERE datname = $1", role) == []


@pytest.mark.parametrize("content", [None, "", "\n"], ids=["missing", "empty", "line break"])
def test_no_password_no_role(servers: LocalServers, run: Run, role: str, secret: Path, content: str | None) -> None:
    """Without a password nothing is made, and one line says which file."""
    secret.unlink()
    if content is not None:
        secret.write_text(content)
    done = run()
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == f"postgres: {secret} is missing, empty or unreadable: run 'make secrets'\n"
    assert query(servers, "SELECT 1 FROM pg_roles WHERE rolname = $1", role) == []


def test_failure_shows_no_password(servers: LocalServers, run: Run, role: str) -> None:
    """Where a statement fails, the script does, with PostgreSQL's reason and without the password."""
    done = run(DB_SCHEMA="pg_shop")
    assert done.returncode != 0
    assert "unacceptable schema name" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert query(servers, "SELECT 1 FROM pg_roles WHERE rolname = $1", role) == [1]
