"""`poolctl deploy` as it is typed, in a folder of its own. `docker` is a program of these tests that writes down its
calls; tests/e2e has the real one."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import ROOT, Spawned, Spawner
from tests.secrecy import Secrecy
from tests.waiting import wait_until

pytestmark = pytest.mark.slow  # fifty starts of poolctl

UP = "[docker][compose][up][-d]"
WAITS = "another poolctl deploy, or its docker compose, is at work here: waiting for its end"
REMOVE = "[docker][compose][--profile][pgbouncer][rm][-sf][pgbouncer]"
DOCKER = """\
#!/bin/sh
# What it is called with, a line each; how many workers run; and how it ends.
if [ "$2" = ps ]; then for each in $RUNNING; do echo "$each"; done; exit 0; fi
{ printf '[docker]'; printf '[%s]' "$@"; echo; } >>"$CALLS"
cat .env >"$CALLS.env"
if [ -t 0 ] && [ -t 1 ]; then echo 'on a terminal'; fi
if [ -n "$HANGS" ]; then
  echo $$ >"$CALLS.pid"
  trap 'echo "[ends]" >>"$CALLS"; exit 130' TERM INT
  echo 'up and up'
  while :; do /bin/sleep 0.05; done
fi
echo 'compose says so'
if [ "$2" = "$FAILS" ]; then exit 17; fi
"""


@dataclass
class Stack:
    """A folder with a compose file, and a docker on PATH."""

    folder: Path
    spawn: Spawner
    environ: dict[str, str]

    @property
    def dotenv(self) -> Path:
        return self.folder / ".env"

    def written(self) -> tuple[int, int]:
        """Changes whenever the file is written, even if its text is the same."""
        now = self.dotenv.stat()
        return now.st_ino, now.st_mtime_ns

    def deploy(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.spawn.run("poolctl", "deploy", *arguments, environ=self.environ | environ, cwd=self.folder)

    def start(self, *arguments: str, **environ: str) -> Spawned:
        return self.spawn("poolctl", "deploy", *arguments, environ=self.environ | environ, cwd=self.folder)

    def calls(self) -> list[str]:
        path = Path(self.environ["CALLS"])
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def stack(tmp_path: Path, spawn: Spawner) -> Stack:
    folder, bin_folder = tmp_path / "stack", tmp_path / "bin"
    folder.mkdir()
    bin_folder.mkdir()
    (folder / "docker-compose.yml").touch()
    docker = bin_folder / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    path = f"{bin_folder}:/usr/bin:/bin"
    return Stack(folder, spawn, {"PATH": path, "CALLS": str(tmp_path / "calls")})


def test_to_pgbouncer_and_back(stack: Stack) -> None:
    """`.env` is the state: what was ordered once stays, and everything else in it is kept."""
    stack.dotenv.write_text(
        "# my fleet\nexport COMPOSE_PROFILES='monitoring' # and more\n\n#WORKERS=\nDB_HOST=postgres"
    )
    done = stack.deploy("--workers", "10", "--pgbouncer")
    assert (done.returncode, done.stderr) == (0, "")
    assert stack.dotenv.read_text() == (
        "# my fleet\nexport COMPOSE_PROFILES='monitoring,pgbouncer' # and more\n\nWORKERS=10\n"
        "#DB_HOST=postgres  # poolctl deploy: COMPOSE_PROFILES decides\nDB_POOL_MAX=5"
    )
    for line in (
        "-#WORKERS=",
        "+WORKERS=10",
        "-DB_HOST=postgres",
        "after this: 10 workers, pools of 5, through PgBouncer",
        "fleet:  10 workers × 5 + 10 overhead = 60 connections",
        "peak, at the server           40  fits",
        ".env is written",
        "to put it in force: docker compose up -d",
    ):
        assert line in done.stdout.splitlines()
    back = stack.deploy("--direct")
    assert back.returncode == 0
    assert back.stderr == "the pools stay at 5, and 6 would fit: --pool-max N changes them\n"
    assert "export COMPOSE_PROFILES='monitoring' # and more\n\nWORKERS=10\n" in stack.dotenv.read_text()
    assert "DB_POOL_MAX=5" in stack.dotenv.read_text()
    assert back.stdout.splitlines()[-1] == (
        "to put it in force: docker compose up -d && docker compose --profile pgbouncer rm -sf pgbouncer"
    )
    assert stack.calls() == []


def test_state(stack: Stack) -> None:
    """Without options nothing changes; what is told is the state of `.env`, and what the shell makes of it."""
    assert "state: 2 workers, pools of 10, straight to the database" in stack.deploy().stdout
    assert not stack.dotenv.exists()
    stack.dotenv.write_text("WORKERS=4\nDB_POOL_MAX=7\n")
    before = stack.written()
    done = stack.deploy()
    assert (done.returncode, done.stderr) == (0, "")
    assert "state: 4 workers, pools of 7, straight to the database" in done.stdout
    assert ".env" not in done.stdout
    assert stack.written() == before
    done = stack.deploy(WORKERS="5")
    assert "state: 4 workers" in done.stdout
    assert done.stderr == (
        "WORKERS of the shell wins over .env: unset WORKERS in the shell\n"
        "in this shell docker compose would make it 5 workers, pools of 7, straight to the database: fits\n"
    )
    assert stack.calls() == []


def test_a_new_file(stack: Stack) -> None:
    """Its owner's alone: secrets may come into it."""
    done = stack.deploy("--workers", "3")
    assert done.returncode == 0
    assert (stack.dotenv.read_text(), stack.dotenv.stat().st_mode & 0o777) == ("WORKERS=3\n", 0o600)
    assert "--- /dev/null\n+++ .env\n@@ -0,0 +1 @@\n+WORKERS=3\n" in done.stdout


def test_twice(stack: Stack) -> None:
    """The second time there is nothing to write."""
    stack.deploy("--workers", "3", "--pool-max", "4", "--pgbouncer")
    before = stack.written()
    done = stack.deploy("--workers", "3", "--pool-max", "4", "--pgbouncer")
    assert ".env has these lines already" in done.stdout
    assert "@@" not in done.stdout
    assert stack.written() == before


def test_over(stack: Stack) -> None:
    """Nothing is written and nothing is run; the orders that are offered instead do."""
    stack.dotenv.write_text("DB_POOL_MIN=4\n")
    done = stack.deploy("--workers", "10", "--apply")
    assert done.returncode == 1
    assert "peak                         110  over" in done.stdout
    assert done.stdout.count("way out ") == 3
    assert done.stderr == (
        "the plan is over, .env is not changed: try poolctl deploy --workers 10 --pool-max 6,"
        " or poolctl deploy --workers 10 --pgbouncer --pool-max 5\n"
    )
    assert stack.dotenv.read_text() == "DB_POOL_MIN=4\n"
    assert stack.calls() == []
    for order in done.stderr.partition(": try ")[2].split(", or "):
        assert stack.deploy(*shlex.split(order)[2:]).returncode == 0


def test_apply(stack: Stack) -> None:
    """What was printed is run, when the file is written; back from PgBouncer the pooler goes last."""
    done = stack.deploy("--workers", "3", "--pgbouncer", "--apply")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(".env is written\nruns: docker compose up -d\ncompose says so\n")
    assert stack.calls() == [UP]
    assert Path(stack.environ["CALLS"] + ".env").read_text() == stack.dotenv.read_text()
    done = stack.deploy("--direct", "--apply")
    assert done.returncode == 0
    assert "runs: docker compose up -d && docker compose --profile pgbouncer rm -sf pgbouncer\n" in done.stdout
    assert stack.calls() == [UP, UP, REMOVE]
    assert stack.deploy("--apply").returncode == 0
    assert stack.calls() == [UP, UP, REMOVE, UP]


def test_apply_on_a_terminal(stack: Stack) -> None:
    """Compose has the terminal, for its progress and its questions."""
    master, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "poolctl", "deploy", "--apply"],
        env={**stack.environ, "PYTHONPATH": str(ROOT)},
        cwd=stack.folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        timeout=60,
        check=False,
    )
    os.close(slave)
    output = os.read(master, 100_000).decode()
    os.close(master)
    assert done.returncode == 0, output
    assert output.index("runs: docker compose up -d") < output.index("on a terminal")


@pytest.mark.parametrize(
    ("fails", "calls", "line"),
    [
        ("up", [UP], "`docker compose up -d` ended with exit code 17: see above; .env has the new state, `docker"),
        ("--profile", [UP, REMOVE], "`docker compose --profile pgbouncer rm -sf pgbouncer` ended with exit code 17:"),
    ],
)
def test_compose_fails(stack: Stack, fails: str, calls: list[str], line: str) -> None:
    """One line after its own, and exit 3; nothing is run after it."""
    done = stack.deploy("--workers", "3", "--direct", "--apply", FAILS=fails)
    assert done.returncode == 3
    assert stack.calls() == calls
    assert done.stderr.splitlines()[-1].startswith(line)
    assert stack.dotenv.read_text() == "WORKERS=3\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(stack: Stack, signum: signal.Signals) -> None:
    """Compose is told to end, and waited for; nothing is run after it."""
    process = stack.start("--workers", "3", "--direct", "--apply", HANGS="1")
    process.wait_for("up and up")
    process.send(signum)
    assert process.wait() == 3
    assert stack.calls() == [UP, "[ends]"]
    assert process.output().splitlines()[-1] == (
        "interrupted: .env has the new state, `docker compose up -d && docker compose --profile pgbouncer rm -sf"
        " pgbouncer` puts it in force"
    )


def test_without_docker(stack: Stack, tmp_path: Path) -> None:
    """One line before anything is written; without --apply it is not needed."""
    done = stack.deploy("--workers", "3", "--apply", PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(
        "docker is not on PATH: install Docker with its compose plugin, or leave out --apply;"
    )
    assert not stack.dotenv.exists()
    assert stack.deploy("--workers", "3", PATH=str(tmp_path)).returncode == 0


def test_one_at_a_time(stack: Stack) -> None:
    """One waits for the other, and edits what that has left."""
    first = stack.start("--workers", "3", "--apply", HANGS="1")
    first.wait_for("up and up")
    second = stack.start("--pool-max", "4", "--apply")
    second.wait_for(WAITS)
    assert stack.dotenv.read_text() == "WORKERS=3\n"
    assert stack.calls() == [UP]
    first.send(signal.SIGTERM)
    assert (first.wait(), second.wait()) == (3, 0)
    assert stack.dotenv.read_text() == "WORKERS=3\nDB_POOL_MAX=4\n"
    assert stack.calls() == [UP, "[ends]", UP]


def test_killed(stack: Stack) -> None:
    """Compose goes on then, and the next one waits for it: two at a time would fight for the containers."""
    first = stack.start("--workers", "3", "--apply", HANGS="1")
    first.wait_for("up and up")
    compose = int(Path(stack.environ["CALLS"] + ".pid").read_text())
    try:
        first.send(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        second = stack.start("--pool-max", "4", "--apply")
        second.wait_for(WAITS)
        assert stack.calls() == [UP]
        assert stack.dotenv.read_text() == "WORKERS=3\n"
    finally:
        os.kill(compose, signal.SIGTERM)
    assert second.wait() == 0
    assert stack.calls() == [UP, "[ends]", UP]


def test_the_shell_wins(stack: Stack) -> None:
    """A variable of the shell that compose would prefer: told; and refused where compose is to run."""
    line = "WORKERS of the shell wins over .env: unset WORKERS in the shell\n"
    done = stack.deploy("--workers", "3", "--apply", WORKERS="4")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert not stack.dotenv.exists()
    done = stack.deploy("--workers", "3", WORKERS="4")
    assert (done.returncode, done.stderr.splitlines(keepends=True)[0]) == (0, line)
    assert "after this: 3 workers" in done.stdout
    assert stack.dotenv.read_text() == "WORKERS=3\n"
    done = stack.deploy("--apply", WORKERS="4", LOG_LEVEL="DEBUG")
    line = "LOG_LEVEL, WORKERS of the shell win over .env: unset LOG_LEVEL WORKERS in the shell\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert stack.calls() == []


@pytest.mark.parametrize(
    ("name", "value", "fleet"),
    [
        ("DB_POOL_MAX", "5", "10 workers, pools of 5, straight to the database"),
        ("COMPOSE_PROFILES", "pgbouncer", "10 workers, pools of 10, through PgBouncer"),
        ("POSTGRES_MAX_CONNECTIONS", "500", "10 workers, pools of 10, straight to the database"),
    ],
)
def test_the_shell_does_not_make_it_fit(stack: Stack, name: str, value: str, fleet: str) -> None:
    """What is written is for a plain `up` without that variable: it has to fit alone."""
    done = stack.deploy("--workers", "10", **{name: value})
    assert (done.returncode, stack.dotenv.exists()) == (1, False)
    assert "peak                         110  over" in done.stdout
    told, here, refused = done.stderr.splitlines()
    assert told == f"{name} of the shell wins over .env: unset {name} in the shell"
    assert here == f"in this shell docker compose would make it {fleet}: fits"
    assert refused.startswith("the plan is over, .env is not changed: try poolctl deploy --workers 10 --pool-max 6,")


def test_the_shell_makes_it_too_large(stack: Stack) -> None:
    """`.env` is right, and is written; compose would not be run in this shell."""
    done = stack.deploy("--workers", "3", WORKERS="50")
    assert done.returncode == 0
    assert done.stderr.splitlines()[1] == (
        "in this shell docker compose would make it 50 workers, pools of 10, straight to the database: over"
    )
    assert stack.dotenv.read_text() == "WORKERS=3\n"


@pytest.mark.parametrize(
    ("dotenv", "arguments", "line"),
    [
        ("POSTGRES_MAX_CONNECTIONS=10\n", ("--workers", "2"), "take a way out"),
        (
            "DATABASE_URL=postgres://u:p@h/d\n",
            ("--workers", "50"),
            "take a way out, or order fewer workers, at most 13",
        ),
        (
            "COMPOSE_PROFILES=pgbouncer\nPGBOUNCER_MAX_CLIENT_CONN=5\nPOSTGRES_MAX_CONNECTIONS=10\n",
            ("--workers", "2"),
            "no single change is enough, begin with a larger POSTGRES_MAX_CONNECTIONS",
        ),
    ],
)
def test_over_and_no_order_fits(stack: Stack, dotenv: str, arguments: tuple[str, ...], line: str) -> None:
    """What is advised helps: fewer workers only where one at least would fit."""
    stack.dotenv.write_text(dotenv)
    done = stack.deploy(*arguments)
    assert (done.returncode, stack.dotenv.read_text()) == (1, dotenv)
    assert done.stderr.splitlines()[-1] == f"the plan is over, .env is not changed: {line}"


def test_a_scale_by_hand(stack: Stack) -> None:
    """It ends with the next plain `up`: told, unless a number was ordered."""
    stack.dotenv.write_text("WORKERS=3\n")
    line = "workers that run now: 5, and the command makes them 3: WORKERS in .env counts, not a --scale by hand\n"
    assert stack.deploy("--apply", RUNNING="1 2 3 4 5").stderr == line
    assert stack.deploy("--apply", RUNNING="1 2 3").stderr == ""
    assert stack.deploy("--workers", "3", RUNNING="1 2 3 4 5").stderr == ""


def test_secrets_stay_secret(stack: Stack, secrecy: Secrecy) -> None:
    """They are in the lines around those that change."""
    secrecy.secrets |= {"s3cret-in-deploy", "s3cret-too"}
    stack.dotenv.write_text(
        "DB_PASSWORD=s3cret-in-deploy\nWORKERS=2\n# the token was s3cret-too\nMINE='s3cret-too\n'\n"
    )
    done = stack.deploy("--workers", "4")
    assert " DB_PASSWORD=***\n-WORKERS=2\n+WORKERS=4\n # ***\n MINE=***\n" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr
    assert "MINE='s3cret-too\n'\n" in stack.dotenv.read_text()


def test_floors_and_pools(stack: Stack) -> None:
    """A floor above the new pool goes down with it, told; a worker's own pool is what is changed."""
    stack.dotenv.write_text("DB_POOL_MIN=8\n")
    done = stack.deploy("--pool-max", "5")
    assert done.stderr == "DB_POOL_MIN was greater than the pools are now: lowered to 5\n"
    assert stack.dotenv.read_text() == "DB_POOL_MIN=5\nDB_POOL_MAX=5\n"
    stack.dotenv.write_text("WORKER_DB_POOL_MAX=8\n")
    done = stack.deploy("--pgbouncer")
    assert done.stderr == "WORKER_DB_POOL_MAX=8 stays as it is: --pool-max N changes it\n"
    stack.deploy("--pool-max", "4")
    assert stack.dotenv.read_text() == "WORKER_DB_POOL_MAX=4\nCOMPOSE_PROFILES=pgbouncer\n"


@pytest.mark.parametrize(
    ("arguments", "dotenv", "line"),
    [
        (("--workers", "0"), "", "--workers 0 is less than 1: give a number from 1 to 10000"),
        (("--pool-max", "0"), "", "--pool-max 0 is less than 1"),
        (("--pool-max", "101"), "", "pool_max=101 is greater than max_connections=100"),
        (("--pgbouncer", "--direct"), "", "--pgbouncer and --direct exclude each other: leave out one of them"),
        (("--pool-max", "5"), "DATABASE_URL=postgres://u:p4ssw0rd@h/d\n", "--pool-max 5 and DATABASE_URL exclude each"),
        (
            ("--pgbouncer",),
            "DATABASE_URL=postgres://u:p4ssw0rd@h/d\n",
            "--pgbouncer cannot move the processes, as DATA",
        ),
        (("--pgbouncer",), "DB_HOST=db.example.com\n", "DB_HOST=db.example.com is a database outside of this stack:"),
        (("--workers", "3"), "p4ssw0rd\n", ".env line 1 is not NAME=value"),
        (("--workers", "3"), "LOG_LEVEL=loud\n", "LOG_LEVEL=loud is not one of"),
        ((), "WORKERS=many\n", "WORKERS=many is not a whole number"),
    ],
)
def test_bad_input(stack: Stack, arguments: tuple[str, ...], dotenv: str, line: str) -> None:
    """One clear line, exit 2, nothing written, nothing run."""
    stack.dotenv.write_text(dotenv)
    done = stack.deploy(*arguments, "--apply")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1
    assert "p4ssw0rd" not in done.stderr
    assert stack.dotenv.read_text() == dotenv
    assert stack.calls() == []


def test_unreadable(stack: Stack) -> None:
    """What is there and is no text is not written over."""
    stack.dotenv.write_bytes(b"A=\xff\n")
    done = stack.deploy("--workers", "3")
    assert (done.returncode, done.stderr) == (2, ".env is not UTF-8 text: save it as UTF-8\n")
    assert stack.dotenv.read_bytes() == b"A=\xff\n"


def test_another_folder(stack: Stack) -> None:
    """A `.env` where no stack is would be of no use to anybody; COMPOSE_FILE may say that it is elsewhere."""
    (stack.folder / "docker-compose.yml").unlink()
    done = stack.deploy("--workers", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("/stack has no docker-compose.yml: run this in the stack's folder\n")
    assert not stack.dotenv.exists()
    assert stack.deploy("--workers", "3", COMPOSE_FILE="../other.yml").returncode == 0


def test_a_locked_folder_can_be_looked_at(stack: Stack) -> None:
    """The state is told at once while somebody else deploys."""
    folder = os.open(stack.folder, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert stack.deploy().returncode == 0
        waiting = stack.start("--workers", "3")
        waiting.wait_for("waiting for its end")
        assert not stack.dotenv.exists()
    finally:
        os.close(folder)
    assert waiting.wait() == 0
    wait_until(stack.dotenv.exists)
