"""pgbouncer/entrypoint.sh: what it writes, what it refuses, and what it becomes. The script runs really, with sh."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pg8000.native
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.exit_codes import ExitCode
from local import Child, Tether
from local.account import server_account
from local.port import LOOPBACK, free_port
from tests.pgbouncer import find_pgbouncer, program_version
from tests.processes import ROOT
from tests.secrecy import Secrecy
from tests.shells import Shell
from tests.waiting import wait_until

FOLDER = ROOT / "pgbouncer"
ENTRYPOINT = FOLDER / "entrypoint.sh"
SH = Shell(("sh",), os.defpath)  # this machine's own
PASSWORD = 'pw-of-"pgbouncer"-7c1e \\ %s'
WRITTEN_FOR = (1, 24)
PLACEHOLDER = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")
DEFAULTS = dict(PLACEHOLDER.findall((FOLDER / "pgbouncer.ini.template").read_text()))

Run = Callable[..., subprocess.CompletedProcess[str]]


def lines(ini: str) -> list[tuple[str, str]]:
    """What PgBouncer reads of a file: sections, and keys with their values."""
    kept = (line.strip() for line in ini.splitlines())
    pairs = (line.partition("=") for line in kept if line and not line.startswith((";", "#")))
    return [(key.strip(), value.strip()) for key, _, value in pairs]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory, secrecy: Secrecy) -> Path:
    """A password file, with a password that needs quoting wherever it is put."""
    secrecy.secrets.add(PASSWORD)
    path = tmp_path_factory.mktemp("secret") / "pgbouncer_password"
    path.write_text(f"{PASSWORD}\n")
    return path


@pytest.fixture(scope="module")
def run(secret: Path) -> Run:
    """Run the entrypoint with `--print` (or other arguments) and these variables alone."""

    def run_one(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        own = {"PGBOUNCER_PASSWORD_FILE": str(secret)}
        return SH.run(ENTRYPOINT, *(arguments or ("--print",)), environ=own | environ, cwd=ROOT)

    return run_one


# What it writes.


def test_as_it_is(run: Run) -> None:
    """Without any variable: the values that the documentation promises."""
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    values = dict(lines(done.stdout))
    assert (
        values
        | {
            "pool_mode": "transaction",
            "max_client_conn": "1000",
            "default_pool_size": "25",
            "reserve_pool_size": "5",
            "max_prepared_statements": "200",
            "auth_type": "scram-sha-256",
            "auth_user": "pgbouncer",
            "admin_users": "pgbouncer",
            "stats_users": "app",
            "ignore_startup_parameters": "extra_float_digits",
            "*": "host=postgres port=5432",
        }
        == values
    )
    assert PASSWORD not in done.stdout
    assert "${" not in "".join(f"{key}={value}\n" for key, value in lines(done.stdout))


def test_every_variable_counts(run: Run, secret: Path) -> None:
    """Each placeholder is filled in from its own variable; an empty one is unset."""
    file = str(secret)  # any that can be read
    given_ = {
        "DB_USER": "shop",
        "PGBOUNCER_CLIENT_TLS_CERT_FILE": file,
        "PGBOUNCER_CLIENT_TLS_KEY_FILE": f"{secret.parent}/./{secret.name}",
        "PGBOUNCER_CLIENT_TLS_SSLMODE": "require",
        "PGBOUNCER_DEFAULT_POOL_SIZE": "11",
        "PGBOUNCER_MAX_CLIENT_CONN": "102",
        "PGBOUNCER_MAX_DB_CONNECTIONS": "13",
        "PGBOUNCER_MAX_PREPARED_STATEMENTS": "14",
        "PGBOUNCER_PORT": "6015",
        "PGBOUNCER_QUERY_WAIT_TIMEOUT": "16.5",
        "PGBOUNCER_RESERVE_POOL_SIZE": "7",
        "PGBOUNCER_RESERVE_POOL_TIMEOUT": "1.8",
        "PGBOUNCER_SERVER_CONNECT_TIMEOUT": "0.9",
        "PGBOUNCER_SERVER_IDLE_TIMEOUT": "210",
        "PGBOUNCER_SERVER_LIFETIME": "2100",
        "PGBOUNCER_SERVER_TLS_CA_FILE": f"{secret.parent}//{secret.name}",
        "PGBOUNCER_SERVER_TLS_SSLMODE": "verify-full",
        "PGBOUNCER_USER": "lookup",
        "POSTGRES_HOST": "db-1.internal",
        "POSTGRES_PORT": "5433",
        "RUNTIME_DIRECTORY": "/run/elsewhere",
    }
    assert given_.keys() == DEFAULTS.keys()
    done = run(**given_)
    assert (done.returncode, done.stderr) == (0, "")
    template = (FOLDER / "pgbouncer.ini.template").read_text()
    assert done.stdout == PLACEHOLDER.sub(lambda found: given_[found[1]], template)
    assert run(**dict.fromkeys(given_, "")).stdout == run().stdout


@given(values=st.dictionaries(st.sampled_from(sorted(DEFAULTS)), st.text(st.characters(exclude_characters="\0"))))
def test_no_value_writes_a_line_of_its_own(run: Run, values: dict[str, str]) -> None:
    """Whatever the variables say: refused with a line each, or the same keys as ever, in the same order."""
    encoded = {name: value for name, value in values.items() if _can_be_passed(value)}
    done = run(**encoded)
    if done.returncode:
        assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
        assert all(line.startswith("pgbouncer: ") for line in done.stderr.splitlines()), done.stderr
    else:
        assert done.stderr == ""
        assert [key for key, _ in lines(done.stdout)] == [key for key, _ in lines(run().stdout)]


def _can_be_passed(value: str) -> bool:
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(DEFAULTS))
@pytest.mark.parametrize(
    "value", ["x\nauth_type = any", "x\rauth_type = any", "x y", "x' z", 'x"', "x;y", "$(id)", "é"]
)
def test_what_would_end_a_line_is_refused(run: Run, name: str, value: str) -> None:
    """In whichever variable; in one line that names it."""
    done = run(**{name: value})
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert re.fullmatch(rf"pgbouncer: {name}=.*\n", done.stderr), done.stderr


# What it refuses.


FROM_1, FROM_0 = (f"is no whole number: write digits, from {least} to 2147483647" for least in (1, 0))
TOO_MANY = "is greater than 2147483647: give 2147483647 or less"
KUBERNETES = "is what Kubernetes sets for a service: give the pod enableServiceLinks: false"
CHARACTERS = "cannot stand in pgbouncer.ini: only letters, digits and . _ : / @ - may"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PGBOUNCER_DEFAULT_POOL_SIZE", "many", FROM_1),
        ("PGBOUNCER_DEFAULT_POOL_SIZE", "010", FROM_1),  # which PgBouncer takes for 8
        ("PGBOUNCER_DEFAULT_POOL_SIZE", "0", "is less than 1: give 1 or more"),  # which PgBouncer takes for no limit
        ("PGBOUNCER_RESERVE_POOL_SIZE", "-1", FROM_0),
        ("PGBOUNCER_MAX_DB_CONNECTIONS", "1e3", FROM_0),
        ("PGBOUNCER_MAX_PREPARED_STATEMENTS", "4294967296", TOO_MANY),  # which PgBouncer cuts down to 0
        ("PGBOUNCER_PORT", "65536", "is greater than 65535: give 65535 or less"),
        ("PGBOUNCER_PORT", "tcp://10.0.0.7:6432", KUBERNETES),
        ("POSTGRES_PORT", "tcp://10.0.0.7:5432", KUBERNETES),
        ("POSTGRES_MAX_CONNECTIONS", "262144", "is greater than 262143: give 262143 or less"),
        ("PGBOUNCER_QUERY_WAIT_TIMEOUT", "2min", "is no number of seconds: write digits, as 30 or 0.5"),
        ("PGBOUNCER_SERVER_IDLE_TIMEOUT", "1.2.3", "is no number of seconds: write digits, as 30 or 0.5"),
        ("PGBOUNCER_SERVER_LIFETIME", "31536001", "is greater than 31536000: give at most a year, 31536000"),
        ("PGBOUNCER_SERVER_CONNECT_TIMEOUT", "0.0", "leaves no time to connect: give more than 0"),
        ("PGBOUNCER_CLIENT_TLS_SSLMODE", "verify-ca", "is not known: give one of disable allow prefer require"),
        ("PGBOUNCER_USER", "Pg-Bouncer", "is no plain name of a role: a-z, 0-9 and _, not first a digit"),
        ("DB_USER", "app,postgres", CHARACTERS),
        ("DB_USER", "pgbouncer", "is PgBouncer's own role, which looks up passwords: give the application another"),
    ],
)
def test_nonsense_is_refused(run: Run, name: str, value: str, said: str) -> None:
    """Exit code 2 and one line: which variable, which value, which bound, what to do."""
    done = run(**{name: value})
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.USAGE, "", f"pgbouncer: {name}={value} {said}\n")


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"PGBOUNCER_MAX_CLIENT_CONN": "9" * 130}, f"PGBOUNCER_MAX_CLIENT_CONN={'9' * 120} {TOO_MANY}"),
        ({"PGBOUNCER_PORT_6432_TCP_ADDR": "10.0.0.7"}, f"PGBOUNCER_PORT_6432_TCP_ADDR {KUBERNETES}"),
        (
            {"PGBOUNCER_CLIENT_TLS_SSLMODE": "allow", "PGBOUNCER_CLIENT_TLS_CERT_FILE": "/etc/passwd"},
            "PGBOUNCER_CLIENT_TLS_KEY_FILE is not set, and PGBOUNCER_CLIENT_TLS_SSLMODE=allow needs it: ",
        ),
        (
            {"PGBOUNCER_SERVER_TLS_SSLMODE": "verify-ca", "PGBOUNCER_SERVER_TLS_CA_FILE": "/none"},
            f"PGBOUNCER_SERVER_TLS_CA_FILE=/none is no file that uid {os.getuid()} can read: ",
        ),
        (
            {"PGBOUNCER_PASSWORD": "pw-in-the-open"},
            "PGBOUNCER_PASSWORD is set, where everybody who may inspect the container reads it: ",
        ),
        (
            {"PGBOUNCER_PASSWORD_FILE": "/none"},
            f"the password file /none is missing, or uid {os.getuid()} cannot read it: run 'make secrets', ",
        ),
    ],
)
def test_more_nonsense_is_refused(run: Run, secrecy: Secrecy, environ: dict[str, str], said: str) -> None:
    """What is not said of one variable and its value."""
    secrecy.secrets.add("pw-in-the-open")
    done = run(**environ)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (ExitCode.USAGE, "", 1)
    assert done.stderr.startswith(f"pgbouncer: {said}")


def test_a_misspelt_name_is_refused(run: Run) -> None:
    """With the names that there are, so that the right one is found."""
    done = run(PGBOUNCER_MAX_CLIENT_CONNS="5")
    assert done.returncode == ExitCode.USAGE
    line = re.fullmatch(r"pgbouncer: PGBOUNCER_MAX_CLIENT_CONNS is not known; known are ([A-Z_ ]+)\n", done.stderr)
    assert line is not None, done.stderr
    known = {name for name in DEFAULTS if name.startswith("PGBOUNCER_")}
    assert set(line[1].split()) == known | {"PGBOUNCER_HOST", "PGBOUNCER_PASSWORD_FILE"}


def test_all_faults_at_once(run: Run) -> None:
    """A line for each."""
    done = run(
        PGBOUNCER_PORT="0",
        PGBOUNCER_SERVER_LIFETIME="x",
        PGBOUNCER_NAME="x",
        PGBOUNCER_PASSWORD_FILE="/none",
        POSTGRES_HOST="a b",
        POSTGRES_MAX_CONNECTIONS="20",
    )
    assert done.returncode == ExitCode.USAGE
    assert len(done.stderr.splitlines()) == 6


def test_an_unknown_argument_is_refused(run: Run) -> None:
    """Nothing is started with it."""
    done = run("--config")
    assert (done.returncode, done.stderr) == (
        ExitCode.USAGE,
        "pgbouncer: unknown argument --config: give none, or --print\n",
    )


SUM = (
    "connections are more than PostgreSQL has left, {left}: "
    "POSTGRES_MAX_CONNECTIONS={most} - 3 reserved - 10 overhead: "
)


@pytest.mark.parametrize(
    ("pool", "reserve", "limit", "server", "refused"),
    [
        (22, 5, 0, 40, None),
        (25, 5, 27, 40, None),
        (
            *(23, 5, 0, 40),
            (
                f"PGBOUNCER_DEFAULT_POOL_SIZE=23 + PGBOUNCER_RESERVE_POOL_SIZE=5 = 28 {SUM.format(left=27, most=40)}"
                "lower PGBOUNCER_DEFAULT_POOL_SIZE to 22, or raise POSTGRES_MAX_CONNECTIONS to 41"
            ),
        ),
        (
            *(25, 5, 28, 40),
            (
                f"PGBOUNCER_MAX_DB_CONNECTIONS=28 {SUM.format(left=27, most=40)}"
                "lower PGBOUNCER_DEFAULT_POOL_SIZE to 22, or raise POSTGRES_MAX_CONNECTIONS to 41"
            ),
        ),
        (
            *(1, 5, 0, 18),
            (
                f"PGBOUNCER_DEFAULT_POOL_SIZE=1 + PGBOUNCER_RESERVE_POOL_SIZE=5 = 6 {SUM.format(left=5, most=18)}"
                "raise POSTGRES_MAX_CONNECTIONS to 19"
            ),
        ),
        (
            *(1, 0, 0, 5),
            (
                f"PGBOUNCER_DEFAULT_POOL_SIZE=1 + PGBOUNCER_RESERVE_POOL_SIZE=0 = 1 {SUM.format(left=0, most=5)}"
                "raise POSTGRES_MAX_CONNECTIONS to 14"
            ),
        ),
        (
            *(2147483647, 2147483647, 0, 100),
            (
                f"PGBOUNCER_DEFAULT_POOL_SIZE=2147483647 + PGBOUNCER_RESERVE_POOL_SIZE=2147483647 = 4294967294 "
                f"{SUM.format(left=87, most=100)}lower both"
            ),
        ),
    ],
)
def test_a_pool_above_what_the_server_has_left(
    run: Run, pool: int, reserve: int, limit: int, server: int, refused: str | None
) -> None:
    """The plan's arithmetic, with its numbers; what is proposed is accepted."""
    environ = {
        "PGBOUNCER_DEFAULT_POOL_SIZE": pool,
        "PGBOUNCER_RESERVE_POOL_SIZE": reserve,
        "PGBOUNCER_MAX_DB_CONNECTIONS": limit,
        "POSTGRES_MAX_CONNECTIONS": server,
    }
    done = run(**{name: str(value) for name, value in environ.items()})
    if refused is None:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert (done.returncode, done.stderr) == (ExitCode.USAGE, f"pgbouncer: {refused}\n")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty: remove it and run 'make secrets'"),
        (b"\n\n", "is empty: remove it and run 'make secrets'"),
        (b"one-7c1e\ntwo-7c1e\n", "has a line break or another control character: write one line"),
        (b"one-7c1e\r\n", "has a line break or another control character: write one line"),
        (b"SCRAM-SHA-256$4096:7c1e$x:y", "holds a hash: PgBouncer needs the password itself to log in with"),
        (b"md5" + b"7c1e" * 8, "holds a hash: PgBouncer needs the password itself to log in with"),
        (b"7c1e" * 512, "2047 bytes"),
        (b'7c1e"' * 400, "2047 bytes"),  # each quote is written twice
    ],
)
def test_a_password_that_cannot_be(run: Run, tmp_path: Path, content: bytes, line: str) -> None:
    """One line with the file's name, and nothing of what is in it."""
    file = tmp_path / "secret"
    file.write_bytes(content)
    done = run(PGBOUNCER_PASSWORD_FILE=str(file))
    assert done.returncode == ExitCode.USAGE
    assert re.fullmatch(rf"pgbouncer: the password.* {file} .*{line}.*\n", done.stderr), done.stderr
    assert "7c1e" not in done.stderr


def test_open_files(secret: Path) -> None:
    """The soft limit is raised to what the clients need; a hard limit below that is refused."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def run_limited(soft: int, hard: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", f'ulimit -S -n {soft}; ulimit -H -n {hard}; exec sh "$0" --print', ENTRYPOINT],
            env={"PATH": os.defpath, "PGBOUNCER_PASSWORD_FILE": str(secret)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    needed = 1000 + 25 + 5 + 50
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this machine allows {hard} open files only")
    assert run_limited(256, needed).returncode == 0
    done = run_limited(256, needed - 1)
    assert (done.returncode, done.stderr) == (
        ExitCode.USAGE,
        (
            f"pgbouncer: PGBOUNCER_MAX_CLIENT_CONN=1000 needs {needed} open files, and at most {needed - 1} are"
            " allowed: raise nofile (compose: ulimits) or lower PGBOUNCER_MAX_CLIENT_CONN\n"
        ),
    )


# What it becomes.

STAND_IN = """#!/bin/sh
for each; do echo "argument $each"; done
cd "$RUNTIME_DIRECTORY" && stat -c "%a %n" *
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Mapping[str, str]:
    """Variables of a run in which a script takes PgBouncer's place and prints what it was given."""
    programs, runtime = tmp_path / "programs", tmp_path / "runtime"
    programs.mkdir()
    runtime.mkdir()
    program = programs / "pgbouncer"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return {"PATH": f"{programs}:{os.defpath}", "RUNTIME_DIRECTORY": str(runtime)}


def start(secret: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return SH.run(ENTRYPOINT, environ={"PGBOUNCER_PASSWORD_FILE": str(secret), **environ}, cwd=ROOT)


def test_files_that_only_the_owner_reads(secret: Path, stand_in: Mapping[str, str]) -> None:
    """PgBouncer gets the file; the password, its quotes doubled, is in another one, and in neither output."""
    runtime = Path(stand_in["RUNTIME_DIRECTORY"])
    (runtime / "served").touch()  # an earlier run's
    done = start(secret, stand_in)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"argument {runtime}/pgbouncer.ini", "600 pgbouncer.ini", "600 userlist.txt"]
    assert (runtime / "userlist.txt").read_text() == '"pgbouncer" "{}"\n'.format(PASSWORD.replace('"', '""'))
    assert PASSWORD not in (runtime / "pgbouncer.ini").read_text()


def test_nowhere_to_write(secret: Path, stand_in: Mapping[str, str]) -> None:
    """A read-only container without a tmpfs."""
    done = start(secret, {**stand_in, "RUNTIME_DIRECTORY": "/none"})
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr == f"pgbouncer: uid {os.getuid()} cannot write to /none: mount a tmpfs there\n"


@pytest.fixture
def real(secret: Path, data_folder: Path, tether: Tether, secrecy: Secrecy) -> Iterator[tuple[Child, Path]]:
    """This machine's PgBouncer, started by the entrypoint, without a server behind it."""
    program = find_pgbouncer()
    if (version := program_version(program)) < WRITTEN_FOR:
        pytest.skip(f"the template has keys of PgBouncer 1.24 (auth_dbname), and this is {version[0]}.{version[1]}")
    account, port = server_account("postgres", "nobody"), free_port()
    runtime = data_folder / "pgbouncer-entrypoint"
    runtime.mkdir()
    password = runtime / "password"
    password.write_text(PASSWORD)
    for path in (runtime, password):
        if account is not None:
            os.chown(path, account.uid, account.gid)
    with (secrecy.folder / "pgbouncer-entrypoint.log").open("wb") as log:
        child = tether.spawn(
            ["/bin/sh", ENTRYPOINT],
            death_signal=signal.SIGKILL,
            environ={
                "PATH": f"{Path(program).parent}:{os.defpath}",
                "RUNTIME_DIRECTORY": str(runtime),
                "PGBOUNCER_PASSWORD_FILE": str(password),
                "PGBOUNCER_PORT": str(port),
                "POSTGRES_HOST": LOOPBACK,
            },
            cwd=runtime,
            account=account,
            stdout=log,
        )
    try:
        yield child, runtime / "pgbouncer.ini"
    finally:
        child.stop()


def test_pgbouncer_takes_what_is_written(real: tuple[Child, Path]) -> None:
    """It starts, lets its own role into the console with that password, and has the values."""
    child, ini = real

    def config() -> dict[str, str] | None:
        assert child.exit_code() is None
        if not ini.exists():
            return None
        port = int(dict(lines(ini.read_text()))["listen_port"])
        try:
            with pg8000.native.Connection(
                "pgbouncer", host=LOOPBACK, port=port, password=PASSWORD, database="pgbouncer", timeout=2
            ) as console:
                return {row[0]: row[1] for row in console.run("SHOW CONFIG")}
        except (OSError, pg8000.native.InterfaceError):
            return None

    found = wait_until(config, what="PgBouncer answers") or {}
    written = dict(lines(ini.read_text()))
    keys = set(written) - {"[databases]", "postgres", "*", "[pgbouncer]"}
    assert {key: found[key] for key in keys} == {key: written[key] for key in keys}
