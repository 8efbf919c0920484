"""pgbouncer/setup.sh against a real server: the role, the function, and that neither can be turned against anybody."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from local import LocalServers
from tests.processes import ROOT
from tests.secrecy import Secrecy

SETUP = ROOT / "pgbouncer" / "setup.sh"
DATABASE = "postgres"  # in which the function is
PASSWORD = "pw-of-'pgbouncer'-\"91ab\\ $(id)"
LOOKUP = "SELECT secret FROM pgbouncer.login($1)"

Run = Callable[..., subprocess.CompletedProcess[str]]


@asynccontextmanager
async def connected(servers: LocalServers, user: str = "", password: str = "") -> AsyncIterator[Any]:
    """As a role, by default the superuser, in the database of the function."""
    variables = servers.environ(DATABASE)
    connection = await asyncpg.connect(
        host=variables["DB_HOST"],
        port=int(variables["DB_PORT"]),
        user=user or variables["DB_USER"],
        password=password or variables["DB_PASSWORD"],
        database=DATABASE,
        ssl=False,
    )
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


@pytest.fixture(scope="module")
def secret(data_folder: Path, secrecy: Secrecy) -> Path:
    """The password file, where the server's account can read it, as in the container."""
    secrecy.secrets.add(PASSWORD)
    path = data_folder / "pgbouncer_password"
    path.write_text(f"{PASSWORD}\n")
    path.chmod(0o444)
    return path


@pytest.fixture
def run(servers: LocalServers, secret: Path, secrecy: Secrecy, request: pytest.FixtureRequest) -> Run:
    """Run the script as in the server's container; other variables as arguments."""
    if shutil.which("psql") is None:
        pytest.skip("no psql on PATH: apt install postgresql-client")

    def run_one(**environ: str) -> subprocess.CompletedProcess[str]:
        variables = servers.environ()
        own = {
            "PATH": os.environ["PATH"],
            "PGHOST": variables["DB_HOST"],
            "PGPORT": variables["DB_PORT"],
            "PGPASSWORD": variables["DB_PASSWORD"],
            "POSTGRES_USER": variables["DB_USER"],
            "PGBOUNCER_PASSWORD_FILE": str(secret),
        }
        done = subprocess.run(["sh", SETUP], env=own | environ, capture_output=True, text=True, timeout=30, check=False)
        with (secrecy.folder / "pgbouncer-setup.log").open("a") as log:
            log.write(done.stdout + done.stderr)
        return done

    return run_one


@pytest.fixture(autouse=True)
async def clean(servers: LocalServers) -> AsyncIterator[None]:
    """Leaves no role and no schema behind: the server is all tests'."""
    yield
    async with connected(servers) as admin:
        await admin.execute("DROP SCHEMA IF EXISTS pgbouncer CASCADE; DROP SCHEMA IF EXISTS evil CASCADE")
        names = await admin.fetch("SELECT rolname FROM pg_roles WHERE rolname ~ '^(pgbouncer|lookup|t_.*)$'")
        for (name,) in names:
            await admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
def done(run: Run) -> None:
    """The script has run once."""
    first = run()
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")


async def lookup(servers: LocalServers, role: str) -> list[str]:
    """What PgBouncer gets to know about a role."""
    async with connected(servers, "pgbouncer", PASSWORD) as connection:
        return [secret for (secret,) in await connection.fetch(LOOKUP, role)]


async def test_a_role_that_may_do_one_thing(servers: LocalServers, done: None) -> None:
    """It logs in with the password of the file, sees an ordinary role's secret, and no table of them."""
    async with connected(servers) as admin:
        await admin.execute("CREATE ROLE t_shop LOGIN PASSWORD 'pw-of-shop'")
        secret = await admin.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 't_shop'")
        own = await admin.fetchrow(
            "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolconnlimit,"
            " rolpassword LIKE 'SCRAM-SHA-256$%' AS scram FROM pg_authid WHERE rolname = 'pgbouncer'"
        )
    assert tuple(own) == (False, False, False, False, False, 10, True)
    assert await lookup(servers, "t_shop") == [secret]
    async with connected(servers, "pgbouncer", PASSWORD) as connection:
        for query in ("SELECT rolpassword FROM pg_authid", "CREATE TABLE pgbouncer.mine ()", "CREATE SCHEMA mine"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(query)


@pytest.mark.parametrize(
    "attributes",
    [
        "LOGIN SUPERUSER PASSWORD 'pw'",
        "LOGIN REPLICATION PASSWORD 'pw'",
        "NOLOGIN PASSWORD 'pw'",
        "LOGIN",
        "LOGIN PASSWORD 'pw' VALID UNTIL '2020-01-01'",
        "LOGIN PASSWORD 'md50123456789abcdef0123456789abcdef'",
    ],
)
async def test_whom_it_does_not_let_in(servers: LocalServers, done: None, attributes: str) -> None:
    """No superuser, no replication, no expired password, nothing but SCRAM: no row."""
    async with connected(servers) as admin:
        await admin.execute(f"CREATE ROLE t_other {attributes}")
    assert await lookup(servers, "t_other") == []


async def test_a_password_that_is_still_good(servers: LocalServers, done: None) -> None:
    """Until its day it is let in; a longer name than PostgreSQL's is not the one that it begins with."""
    name = "t_" + "x" * 61
    async with connected(servers) as admin:
        await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw' VALID UNTIL 'tomorrow'")
    assert len(await lookup(servers, name)) == 1
    for other in (f"{name}x", name.upper(), f"{name} ", "", "none"):
        assert await lookup(servers, other) == []


async def test_nobody_else_may_ask(servers: LocalServers, done: None) -> None:
    """Not even a member of pg_monitor, as the application's role is."""
    async with connected(servers) as admin:
        await admin.execute("CREATE ROLE t_shop LOGIN PASSWORD 'pw-of-shop'; GRANT pg_monitor TO t_shop")
    async with connected(servers, "t_shop", "pw-of-shop") as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="schema pgbouncer"):
            await connection.fetch(LOOKUP, "t_shop")
    async with connected(servers) as admin:  # the schema is not the only bolt
        await admin.execute("GRANT USAGE ON SCHEMA pgbouncer TO t_shop")
    async with connected(servers, "t_shop", "pw-of-shop") as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="function login"):
            await connection.fetch(LOOKUP, "t_shop")


async def test_names_of_others_change_nothing(servers: LocalServers, done: None) -> None:
    """Tables, functions, types and operators of an attacker, first in the search path and in the temporary schema."""
    async with connected(servers) as admin:
        await admin.execute("CREATE ROLE t_shop LOGIN PASSWORD 'pw-of-shop'")
        secret = await admin.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 't_shop'")
        await admin.execute(
            """
            CREATE SCHEMA evil;
            CREATE FUNCTION evil.yes(name, text) RETURNS bool LANGUAGE sql AS 'SELECT true';
            CREATE FUNCTION evil.yes(text, text) RETURNS bool LANGUAGE sql AS 'SELECT true';
            CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = text, FUNCTION = evil.yes);
            CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.yes);
            CREATE FUNCTION evil.starts_with(text, text) RETURNS bool LANGUAGE sql AS 'SELECT true';
            CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''-infinity''::timestamptz';
            CREATE TABLE evil.pg_authid AS SELECT rolname, true AS rolcanlogin, false AS rolsuper,
              false AS rolreplication, 'evil'::text AS rolpassword, NULL::timestamptz AS rolvaliduntil FROM pg_roles;
            CREATE VIEW evil.pg_shadow AS SELECT rolname AS usename, rolpassword AS passwd FROM evil.pg_authid;
            GRANT USAGE ON SCHEMA evil TO PUBLIC;
            GRANT SELECT ON ALL TABLES IN SCHEMA evil TO PUBLIC;
            """
        )
    async with connected(servers, "pgbouncer", PASSWORD) as connection:
        await connection.execute("CREATE TEMPORARY TABLE pg_authid AS SELECT * FROM evil.pg_authid")
        await connection.execute("CREATE TEMPORARY TABLE pg_shadow AS SELECT * FROM evil.pg_shadow")
        for path in ("evil, pg_catalog", "pg_temp, evil, pg_catalog"):
            await connection.execute(f"SET search_path = {path}")
            # The path counts for the rest of the session, so the attack is one.
            assert await connection.fetchval("SELECT 'a'::name = 'b'::text") is True
            assert [row["secret"] for row in await connection.fetch(LOOKUP, "t_shop")] == [secret]
            assert await connection.fetch(LOOKUP, "none") == []


async def test_again_and_again(
    servers: LocalServers, run: Run, done: None, data_folder: Path, secrecy: Secrecy
) -> None:
    """Silent, with the same end; what somebody widened is narrow again, and a new password counts."""
    async with connected(servers) as admin:
        await admin.execute(
            "ALTER ROLE pgbouncer SUPERUSER CONNECTION LIMIT -1 VALID UNTIL '2020-01-01'; CREATE ROLE t_shop;"
            " GRANT ALL ON SCHEMA pgbouncer TO PUBLIC; GRANT ALL ON FUNCTION pgbouncer.login TO PUBLIC, t_shop"
        )
    other = data_folder / "pgbouncer_password_2"
    other.write_text("another-pw-of-pgbouncer")
    secrecy.secrets.add("another-pw-of-pgbouncer")
    for _ in range(2):
        again = run(PGBOUNCER_PASSWORD_FILE=str(other))
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    async with connected(servers) as admin:
        row = await admin.fetchrow(
            "SELECT rolsuper, rolconnlimit, nspacl::text, proacl::text FROM pg_roles, pg_namespace, pg_proc"
            " WHERE rolname = 'pgbouncer' AND nspname = 'pgbouncer' AND pronamespace = pg_namespace.oid"
        )
    user = servers.environ()["DB_USER"]
    assert tuple(row) == (
        *(False, 10),
        f"{{{user}=UC/{user},pgbouncer=U/{user}}}",
        f"{{{user}=X/{user},pgbouncer=X/{user}}}",
    )
    async with connected(servers, "pgbouncer", "another-pw-of-pgbouncer") as connection:
        assert await connection.fetch(LOOKUP, "none") == []
    with pytest.raises(asyncpg.InvalidPasswordError):
        async with connected(servers, "pgbouncer", PASSWORD):
            pass


async def test_a_role_of_another_name(servers: LocalServers, run: Run) -> None:
    """PGBOUNCER_USER, as the entrypoint has it."""
    assert run(PGBOUNCER_USER="lookup").returncode == 0
    async with connected(servers, "lookup", PASSWORD) as connection:
        assert await connection.fetch(LOOKUP, "none") == []


# What it refuses.


async def test_a_schema_of_somebody_else(servers: LocalServers, run: Run) -> None:
    """Its owner could put another function into it, and let in whom he likes."""
    async with connected(servers) as admin:
        await admin.execute("CREATE ROLE t_shop; CREATE SCHEMA pgbouncer AUTHORIZATION t_shop")
    refused = run()
    assert refused.returncode != 0
    assert refused.stderr == "ERROR:  the schema pgbouncer in the database postgres belongs to t_shop: drop it first\n"
    async with connected(servers) as admin:
        assert not await admin.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = 'pgbouncer'")
        await admin.execute("DROP SCHEMA pgbouncer")


async def test_only_a_superuser(servers: LocalServers, run: Run) -> None:
    """The application's role is told so, and nothing is changed."""
    async with connected(servers) as admin:
        await admin.execute("CREATE ROLE t_shop LOGIN CREATEROLE PASSWORD 'pw-of-shop'")
    refused = run(POSTGRES_USER="t_shop", PGPASSWORD="pw-of-shop")
    assert refused.returncode != 0
    assert refused.stderr == "ERROR:  t_shop is no superuser: only one may read the secrets of roles\n"


def test_it_does_not_make_the_superuser_an_ordinary_role(servers: LocalServers, run: Run) -> None:
    """Which would leave nobody to undo it."""
    user = servers.environ()["DB_USER"]
    refused = run(PGBOUNCER_USER=user)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"pgbouncer setup: PGBOUNCER_USER={user} is the superuser: give PgBouncer a role of its own\n"
    )


@pytest.mark.parametrize("name", ["Pg", 'x"; DROP ROLE y; --', "1a", "a\nb"])
def test_a_name_that_would_need_quotes(run: Run, name: str) -> None:
    """It would not be the one that the entrypoint accepts."""
    refused = run(PGBOUNCER_USER=name)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("content", ["", "one-91ab\ntwo-91ab\n", "one-91ab\r\n", "\n"])
def test_a_file_without_one_line(run: Run, data_folder: Path, content: str) -> None:
    """The same as PgBouncer's own side refuses; nothing of the file is shown."""
    file = data_folder / "pgbouncer_password_3"
    file.write_text(content)
    refused = run(PGBOUNCER_PASSWORD_FILE=str(file))
    assert (refused.returncode != 0, refused.stderr.count("\n")) == (True, 1)
    assert str(file) in refused.stderr
    assert "91ab" not in refused.stderr


def test_no_file(run: Run) -> None:
    """Whose secret it is, and what to do."""
    refused = run(PGBOUNCER_PASSWORD_FILE="/none")
    assert refused.returncode == 2
    assert refused.stderr == (
        "pgbouncer setup: the password file /none is missing or empty: run 'make secrets', and give it to postgres\n"
    )


# What nobody gets to see.


LOGS_EVERYTHING = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_min_error_statement": "debug5",
}
REFUSES_PASSWORDS = {"session_preload_libraries": "passwordcheck"}  # those that are shorter than 8


@asynccontextmanager
async def superuser_with(servers: LocalServers, settings: dict[str, str]) -> AsyncIterator[None]:
    """The superuser's sessions start with these parameters."""
    user = servers.environ()["DB_USER"]
    async with connected(servers) as admin:
        for name, value in settings.items():
            await admin.execute(f"ALTER ROLE {user} SET {name} = '{value}'")
        try:
            yield
        finally:
            for name in settings:
                await admin.execute(f"ALTER ROLE {user} RESET {name}")


async def test_the_password_is_in_no_log(servers: LocalServers, run: Run) -> None:
    """Of a server that logs every statement."""
    async with superuser_with(servers, LOGS_EVERYTHING):
        assert run().returncode == 0
    log = servers.postgres.log.read_text()
    assert "set_config('pgbouncer.role'" in log  # so it does log
    assert PASSWORD not in log


async def test_a_refused_password_is_in_no_log(
    servers: LocalServers, run: Run, data_folder: Path, secrecy: Secrecy
) -> None:
    """Neither where the server refuses the very statement."""
    short = data_folder / "pgbouncer_password_4"
    short.write_text("Q7#k!")
    secrecy.secrets.add("Q7#k!")
    async with superuser_with(servers, LOGS_EVERYTHING | REFUSES_PASSWORDS):
        refused = run(PGBOUNCER_PASSWORD_FILE=str(short))
    if "could not access file" in refused.stderr:
        pytest.skip("the server has no passwordcheck: apt install postgresql-contrib")
    assert refused.returncode != 0
    assert refused.stderr == "ERROR:  the password of pgbouncer could not be set: SQLSTATE 22023\n"
    assert "Q7#k!" not in servers.postgres.log.read_text()
