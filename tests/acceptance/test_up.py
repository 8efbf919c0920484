"""`poolctl up`: a whole fleet of real processes on servers of its own, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from local import Tether
from tests.local_fleet import LocalFleet, Project, open_project, wait_until_gone
from tests.processes import ROOT, Spawner
from tests.secrecy import Secrecy
from tests.waiting import wait_until

pytestmark = pytest.mark.slow  # a fleet of its own for each

ROW = re.compile(
    r"^(?P<process>(worker|bot)-\d+) +(?P<role>worker|bot) +(?P<pid>\d+) +(?P<size>\d+) of (?P<limit>\d+)"
    r" +(?P<in_use>\d+) +(?P<peak>\d+) +(?P<queries>\d+) +(?P<jobs>\d+) +(?P<wait>[\d.]+) ms +(?P<restarts>\d+)$",
    re.MULTILINE,
)


@pytest.fixture
def project(tmp_path: Path, spawn: Spawner, secrecy: Secrecy) -> Iterator[Project]:
    with open_project(tmp_path, spawn, secrecy) as opened:
        yield opened


def crashed(fleet: LocalFleet) -> bool:
    """Whether `up` itself printed a traceback; those of the processes stand behind their names."""
    return any(line.startswith("Traceback") for line in fleet.process.output().splitlines())


def test_once_runs_an_exercise_and_shows_the_processes(project: Project) -> None:
    """`up --once --exercise` ends with exit code 0 and a table in which the pools did all the jobs."""
    fleet = project.up(
        *("--workers", "2", "--bots", "1", "--exercise", "12", "--once", "--max-connections", "40"),
        environ={"DB_POOL_MAX": "4", "BOT_DB_POOL_MAX": "3"},
    )
    assert fleet.process.wait(90) == 0, fleet.process.output()
    output = fleet.process.output()

    rows = {match["process"]: match for match in ROW.finditer(output)}
    assert list(rows) == ["worker-1", "worker-2", "bot-1"]
    assert {name: row["limit"] for name, row in rows.items()} == {"worker-1": "4", "worker-2": "4", "bot-1": "3"}
    assert sum(int(row["jobs"]) for row in rows.values()) >= 12  # the scheduled jobs may add to them
    assert all(1 <= int(row["peak"]) <= int(row["limit"]) for row in rows.values())
    assert int(rows["worker-1"]["queries"]) + int(rows["worker-2"]["queries"]) > 12 * 100
    assert {(name, int(row["pid"])) for name, row in rows.items()} == set(fleet.started())

    connections = re.search(
        r"connections: (\d+) of 37 available \(max_connections=40, 3 reserved\), (\d+) of them", output
    )
    assert connections is not None, output
    assert int(connections[2]) == sum(int(row["size"]) for row in rows.values())
    assert int(connections[1]) == int(connections[2]) + 1  # the one that counted
    assert "which may open 11 (Σ DB_POOL_MAX = 2 workers × 4 + 1 bot × 3)" in output
    assert "exercise: 12 of 12 jobs in" in output
    assert " 0 errors" in output


def test_configured_servers_are_left_alone(project: Project, environ: dict[str, str]) -> None:
    """Without --configured-servers nothing of the environment or of .env leads a process to a configured server."""
    (project.folder / ".env").write_text(
        "DB_HOST=db.invalid\nDATABASE_URL=postgres://u:p@db.invalid/x\nWORKER_DB_NAME=other\nBOT_TOKEN=12:token\n"
        "DB_POOL_MAX=3\n"
    )
    foreign = {f"WORKER_{name}": value for name, value in environ.items() if name.startswith("DB_")}
    foreign |= {"REDIS_URL": "redis://redis.invalid", "PGSSLMODE": "verify-full", "DB_PASSWORD_FILE": "/nowhere"}
    fleet = project.up("--bots", "1", "--exercise", "2", "--once", environ=environ | foreign)
    assert fleet.process.wait(90) == 0, fleet.process.output()
    assert "1 worker × 3 + 1 bot × 3" in fleet.process.output()
    assert (project.data / "passwords.json").exists()
    with redis.Redis(
        host=environ["REDIS_HOST"], port=int(environ["REDIS_PORT"]), password=environ["REDIS_PASSWORD"]
    ) as client:
        assert client.dbsize() == 0


def test_configured_servers_are_used_when_asked_for(project: Project, environ: dict[str, str]) -> None:
    """With --configured-servers the fleet runs on the servers of the environment, and starts none."""
    fleet = project.up("--workers", "2", "--exercise", "4", "--once", "--configured-servers", environ=environ)
    assert fleet.process.wait(60) == 0, fleet.process.output()
    assert "exercise: 4 of 4 jobs in" in fleet.process.output()
    assert not project.data.exists()
    with redis.Redis(
        host=environ["REDIS_HOST"], port=int(environ["REDIS_PORT"]), password=environ["REDIS_PASSWORD"]
    ) as client:
        assert len(list(client.scan_iter("arq:result:*"))) >= 4


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"DB_PORT": "1", "DB_CONNECT_TIMEOUT": "0.2"}, 3, "@127.0.0.1:1/"),
        ({"REDIS_PORT": "1", "REDIS_CONNECT_TIMEOUT": "0.2"}, 3, "unreachable"),
        ({"DB_NAME": "postgres"}, 3, "poolctl migrate"),
        ({"DB_POOL_MAX": "0"}, 2, "DB_POOL_MAX=0"),
        ({"BOT_DB_PASSWORD": "wrong"}, 2, "bot-1 refuses its settings (exit code 2)"),
    ],
)
def test_configured_servers_that_do_not_serve_are_told_in_a_line(
    project: Project, environ: dict[str, str], changes: dict[str, str], code: int, text: str
) -> None:
    """What is wrong with configured servers ends `up` with a line about it and its exit code, and no traceback."""
    fleet = project.up("--bots", "1", "--once", "--configured-servers", environ=environ | changes)
    assert fleet.process.wait(60) == code, fleet.process.output()
    assert text in fleet.process.output().splitlines()[-1]
    assert not crashed(fleet)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_in_order(project: Project, signum: signal.Signals) -> None:
    """Ctrl-C or SIGTERM stops the processes, then the servers; exit code 0, and nothing is left running."""
    fleet = project.up("--workers", "2", "--bots", "1")
    fleet.wait_until_up()
    family = fleet.family()
    assert len(family) > 3 + 2, family
    fleet.process.send(signum)
    assert fleet.process.wait(30) == 0, fleet.process.output()
    output = fleet.process.output()
    wait_until_gone(family, timeout_s=0)
    for name, pid in fleet.started():
        last_words = f"worker@\\S+:{pid} is down" if name.startswith("worker") else "ended by SIGTERM"
        assert re.search(rf"^{name} +\| .* {last_words}$", output, re.MULTILINE), output
    assert "ended by itself" not in output
    assert "database system is shut down" in (project.data / "postgres.log").read_text()


@pytest.mark.parametrize(
    ("texts", "signum"),
    [
        (("initdb",), signal.SIGTERM),
        (("postgres", "-D"), signal.SIGINT),
        (("-m worker",), signal.SIGTERM),
    ],
    ids=["initdb", "postgres", "worker"],
)
def test_a_signal_during_start_up_leaves_nothing_running(
    project: Project, texts: tuple[str, ...], signum: signal.Signals
) -> None:
    """A signal at any point of the start ends what was started until then."""
    fleet = project.up("--workers", "2")
    fleet.wait_for_child(*texts)
    family = fleet.family()
    fleet.process.send(signum)
    assert fleet.process.wait(30) == 0, fleet.process.output()
    wait_until_gone(family)
    assert not crashed(fleet)


def test_a_second_signal_does_not_wait(project: Project) -> None:
    """While a worker takes its time to stop, a second Ctrl-C kills it, and all is over at once."""
    fleet = project.up("--workers", "1")
    fleet.wait_until_up()
    ((_, worker),) = fleet.started()
    family = fleet.family()
    os.kill(worker, signal.SIGSTOP)
    fleet.process.send(signal.SIGINT)
    fleet.process.wait_for("SIGINT: stopping all in order")
    fleet.process.send(signal.SIGINT)
    assert fleet.process.wait(15) == 0, fleet.process.output()
    assert "killed: it did not end in time" in fleet.process.output()
    wait_until_gone(family)


def test_a_process_that_does_not_stop_is_killed(project: Project) -> None:
    """A worker that does not answer to SIGTERM is killed when its grace is over."""
    fleet = project.up("--workers", "1", environ={"WORKER_SHUTDOWN_GRACE": "0.1"})
    fleet.wait_until_up()
    ((_, worker),) = fleet.started()
    family = fleet.family()
    os.kill(worker, signal.SIGSTOP)
    fleet.process.send(signal.SIGTERM)
    assert fleet.process.wait(30) == 0, fleet.process.output()
    assert "killed: it did not end in time" in fleet.process.output()
    wait_until_gone(family)


@pytest.mark.parametrize("kind", ["signal", "guard"])
def test_sigkill_of_up_leaves_nothing_running(project: Project, spawn: Spawner, kind: str) -> None:
    """After `kill -9` of `up` no process of its fleet is left, with the parent-death signal as with the guard."""
    if kind == "guard":
        fleet = LocalFleet(project, spawn("tests.guarded_up", environ={}, cwd=project.folder))
    elif sys.platform == "linux":
        fleet = project.up("--workers", "2", "--bots", "1")
    else:
        pytest.skip("the parent-death signal is Linux's")
    fleet.wait_until_up()
    family = fleet.family()
    assert any("guard.py" in row.command for row in family.values()) == (kind == "guard")
    fleet.process.send(signal.SIGKILL)
    wait_until_gone(family)


def test_a_run_after_a_killed_one_works_on_its_data(project: Project) -> None:
    """`up --once` after `kill -9` of another on the same data waits for what is left of that, and is up and done."""
    killed = project.up()
    killed.wait_until_up()
    killed.process.send(signal.SIGKILL)
    fleet = project.up("--workers", "2", "--once")
    assert fleet.process.wait(60) == 0, fleet.process.output()
    assert [row["process"] for row in ROW.finditer(fleet.process.output())] == ["worker-1", "worker-2"]


def test_a_second_up_in_the_same_folder_is_refused(project: Project) -> None:
    """A second `up` on the same data says in one line who holds it, ends with exit code 3, and the first goes on."""
    first = project.up()
    first.wait_until_up()
    second = project.up("--fresh")
    assert second.process.wait(20) == 3
    (line,) = second.process.output().splitlines()
    assert line.startswith(f"{project.data} is in use by process {first.process.pid}: ")
    assert first.process.child.exit_code() is None
    assert (project.data / "passwords.json").exists()


def test_a_killed_worker_is_started_again(project: Project) -> None:
    """A worker killed with SIGKILL is replaced by a new process, and the table counts the restart."""
    fleet = project.up("--workers", "2")
    fleet.wait_until_up()
    before = dict(fleet.started())
    os.kill(before["worker-2"], signal.SIGKILL)
    wait_until(lambda: dict(fleet.started())["worker-2"] != before["worker-2"], timeout_s=30, what="a new worker-2")
    assert "worker-2  | ended by itself with signal SIGKILL: restart in 0.5 s" in fleet.process.output()
    assert dict(fleet.started())["worker-1"] == before["worker-1"]
    fleet.process.send(signal.SIGINT)
    assert fleet.process.wait(30) == 0


@pytest.mark.parametrize("server", ["PostgreSQL", "Redis"])
def test_the_end_of_a_server_is_the_end_of_up(project: Project, server: str) -> None:
    """A server that dies is named in one line, everything stops, and the exit code is 3."""
    fleet = project.up("--workers", "2", environ={"WORKER_SHUTDOWN_GRACE": "1"})
    fleet.wait_until_up()
    family = fleet.family()
    marks = ("postgres", "-D") if server == "PostgreSQL" else ("-server 127.0.0.1",)
    victim = fleet.wait_for_child(*marks)
    os.kill(victim.pid, signal.SIGKILL)
    assert fleet.process.wait(30) == 3, fleet.process.output()
    assert f"{server} (pid {victim.pid}) ended by itself with signal 9" in fleet.process.output()
    assert not crashed(fleet)
    wait_until_gone(family)


def test_failed_units_are_a_finding(project: Project) -> None:
    """An exercise in which queries failed ends with exit code 1, and the table is shown all the same."""
    one_connection_for_ten_jobs = {"DB_POOL_MAX": "1", "WORKER_DB_POOL_TIMEOUT": "0.2", "WORKER_MAX_JOBS": "10"}
    fleet = project.up("--exercise", "10", "--once", environ=one_connection_for_ten_jobs)
    assert fleet.process.wait(60) == 1, fleet.process.output()
    assert re.search(r"^worker-1 +worker +\d+ +1 of 1 ", fleet.process.output(), re.MULTILINE)
    assert "exercise: 10 of 10 jobs in" in fleet.process.output()


def test_an_interrupted_exercise_is_no_success(project: Project) -> None:
    """`up --once` that is stopped before its exercise is done ends with exit code 1."""
    fleet = project.up("--exercise", "1000", "--once")
    fleet.process.wait_for("exercise of 1000 jobs")
    fleet.process.send(signal.SIGINT)
    assert fleet.process.wait(60) == 1, fleet.process.output()


def test_bad_settings_are_told_before_anything_starts(project: Project) -> None:
    """A wrong pool setting ends `up` with exit code 2 and a line, before a server or a process is started."""
    fleet = project.up(environ={"WORKER_DB_POOL_MIN": "7", "WORKER_DB_POOL_MAX": "5"})
    assert fleet.process.wait(20) == 2
    (line,) = fleet.process.output().splitlines()
    assert line.startswith("WORKER_DB_POOL_MIN=7 is greater than WORKER_DB_POOL_MAX=5")
    assert not project.data.exists()


def test_a_table_is_drawn_on_a_terminal(project: Project, tether: Tether) -> None:
    """On a terminal the table and a progress bar are drawn below the log while the fleet runs."""
    ours, theirs = os.openpty()
    child = tether.spawn(
        [sys.executable, "-m", "poolctl", "up", "--exercise", "3", "--once"],
        death_signal=signal.SIGKILL,
        environ={"PATH": os.defpath, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "150", "LINES": "40"},
        cwd=project.folder,
        stdout=theirs,
    )
    os.close(theirs)
    drawn = b""
    try:
        while chunk := _read(ours):
            drawn += chunk
    finally:
        os.close(ours)
        child.stop((signal.SIGTERM, 30.0))
    assert child.exit_code() == 0
    (project.secrecy.folder / "terminal.log").write_bytes(drawn)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    assert len(re.findall(r"worker-1 +worker +\d+", text)) > 3
    assert re.search(r"exercise .*3/3", text)
    assert drawn.decode().count("\x1b[36m") > 0  # the log lines of worker-1 have a colour of their own


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""
