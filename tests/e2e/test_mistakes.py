"""What operators get wrong: they are told, in one line, where they look."""

from __future__ import annotations

from tests.e2e.stack import Stack
from tests.waiting import wait_until


def test_url_and_pool_setting(refused: Stack) -> None:
    """DATABASE_URL and DB_POOL_MAX in `.env`: each worker ends with a line that names both, and is tried again."""
    wait_until(lambda: all(worker.restarts > 0 for worker in refused.containers("worker")), what="a restart of each")
    lines = refused.logs("worker").splitlines()
    assert len(lines) >= 2
    assert all("DATABASE_URL" in line and "DB_POOL_MAX=5" in line for line in lines)


def test_missing_secret(stack: Stack) -> None:
    """A secret's file is missing: `up` fails, its output names the file, and nothing of the fleet runs."""
    stack.set(WORKERS=1)
    (stack.folder / "secrets" / "db_password").unlink()
    done = stack.up(check=False)
    assert done.returncode != 0
    assert str(stack.folder / "secrets" / "db_password") in done.stderr
    assert stack.running("worker") == []
    assert "created" in stack.make_secrets()
    stack.up()
    stack.wait_for_processes(2)


def test_url_and_pool_setting_in_a_running_stack(stack: Stack) -> None:
    """The same in a stack that runs: `up` fails in the migrate step, with the same line, and starts no worker."""
    stack.set(DATABASE_URL=stack.url(), DB_POOL_MAX=5)
    done = stack.up(check=False)
    assert done.returncode != 0
    assert "migrate" in done.stderr
    (line,) = stack.logs("migrate").splitlines()
    assert "DATABASE_URL" in line
    assert "DB_POOL_MAX=5" in line
    assert stack.running("worker") == []


def test_url_alone(stack: Stack) -> None:
    """DATABASE_URL alone is legacy mode: it works, with pools of 5."""
    stack.set(DB_POOL_MAX=None)
    stack.up()
    assert set(stack.wait_for_processes(2).values()) == {5}
    stack.set(DATABASE_URL=None)


def test_wrong_password(stack: Stack) -> None:
    """The secret is not the server's password: `up` fails, and one line in the logs says whose it is, and where."""
    path = stack.folder / "secrets" / "db_password"
    right = path.read_text()
    path.chmod(0o644)
    path.write_text(right.strip()[::-1])
    stack.secrecy.secrets.add(right.strip()[::-1])
    done = stack.up(check=False)
    assert done.returncode != 0
    assert "migrate" in done.stderr
    assert stack.containers("migrate")[0].exit_code == 2
    *before, line = stack.logs("migrate").splitlines()
    assert "app@postgres:5432/app" in line
    assert "password" in line
    assert [earlier for earlier in before if "password" in earlier] == []

    stack.compose("up", "-d", "--no-deps", "--force-recreate", "worker")
    wait_until(lambda: stack.containers("worker")[0].restarts > 0, timeout_s=60, what="an end of the worker")
    logged = stack.logs("worker")
    assert '"CRITICAL"' in logged
    assert "app@postgres:5432/app" in logged
    assert "Traceback" not in logged

    path.write_text(right)
    stack.up()
    stack.wait_for_processes(2)
