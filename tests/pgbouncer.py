"""A real PgBouncer before a server, as tests configure, stop and pause it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pg8000.native
import pytest

from local import Child, Tether
from local.account import server_account
from local.port import LOOPBACK, free_port
from tests.waiting import wait_until

ADMIN, ADMIN_PASSWORD = "harness", "pw-of-harness"
FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")
TRACKS_STATEMENTS = (1, 21)
TERM_WAITS_FOR_CLIENTS = (1, 23)  # since then SIGQUIT is what ends it at once
ANSWER_TIMEOUT_S = 2.0


class PgBouncer:
    """One PgBouncer on a port of its own; `open_pgbouncer` makes one and ends it.

    All methods block, and `pause` until the clients' transactions are over: in a coroutine whose own loop runs
    those, `await asyncio.to_thread(pgbouncer.pause)`. `start` and `restart` belong in the main thread (see Tether).
    """

    def __init__(self, program: str, folder: Path, tether: Tether, settings: str, users: Mapping[str, str]) -> None:
        self.version = program_version(program)
        self.host, self.port = LOOPBACK, free_port()
        self.log = folder / "pgbouncer.log"
        self._program, self._folder, self._tether = program, folder, tether
        self._account = server_account("postgres", "nobody")  # PgBouncer does not run as root
        self._child: Child | None = None
        self._write("users.txt", "".join(f'"{name}" "{password}"\n' for name, password in users.items()))
        self._write(
            "pgbouncer.ini",
            f"{settings}\nlisten_addr = {self.host}\nlisten_port = {self.port}\n"
            f"auth_file = {folder / 'users.txt'}\nunix_socket_dir = {folder}\n",
        )

    def environ(self) -> dict[str, str]:
        """The variables that lead a process here rather than to the server."""
        return {"DB_HOST": self.host, "DB_PORT": str(self.port)}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as output:
            child = self._child = self._tether.spawn(
                [self._program, self._folder / "pgbouncer.ini"],
                death_signal=signal.SIGKILL,
                environ={"PATH": os.defpath},
                cwd=self._folder,
                account=self._account,
                stdout=output,
            )

        def answers() -> bool:
            assert child.exit_code() is None, f"PgBouncer ended at start:\n{self.log.read_text()}"
            try:
                return bool(self.ask("SHOW VERSION"))
            except (OSError, pg8000.native.Error):
                return False

        wait_until(answers, what="PgBouncer answers")

    def stop(self) -> None:
        """End it at once, and with it its clients' connections."""
        if self._child is not None:
            at_once = signal.SIGQUIT if self.version >= TERM_WAITS_FOR_CLIENTS else signal.SIGTERM
            self._child.stop((at_once, 5.0))
            self._child = None

    def restart(self) -> None:
        """Stop it and start it again, on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Wait for transactions to end, and from then on let queries wait."""
        self.ask("PAUSE")

    def resume(self) -> None:
        """Let the queries go on that `pause` made wait."""
        self.ask("RESUME")

    def ask(self, command: str) -> list[dict[str, Any]]:
        """The rows that the admin console answers with; none to a command without any."""
        with pg8000.native.Connection(
            ADMIN,
            host=self.host,
            port=self.port,
            password=ADMIN_PASSWORD,
            database="pgbouncer",
            # PAUSE waits for others; whether it answers at all is to be seen soon.
            timeout=ANSWER_TIMEOUT_S if command.startswith("SHOW") else None,
        ) as console:
            rows = console.run(command)
            names = [column["name"] for column in console.columns or ()]
            return [dict(zip(names, row, strict=True)) for row in rows or ()]

    def _write(self, name: str, text: str) -> None:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        if self._account is not None:
            os.chown(path, self._account.uid, self._account.gid)


@contextmanager
def open_pgbouncer(
    server: Mapping[str, str],
    folder: Path,
    tether: Tether,
    *,
    pool_mode: str = "transaction",
    max_prepared_statements: int | None = None,
    default_pool_size: int = 20,
    admin_users: Sequence[str] = (),
    stats_users: Sequence[str] = (),
    users: Mapping[str, str] | None = None,
    databases: Mapping[str, str] | None = None,
    user_settings: Mapping[str, str] | None = None,
    settings: Mapping[str, object] | None = None,
    logs: Path | None = None,
) -> Iterator[PgBouncer]:
    """A PgBouncer before the server that the DB_* variables in `server` name; the test is skipped where there is none.

    folder: where the server's own account can reach it (the fixture `data_folder`). max_prepared_statements: None
    for PgBouncer's own default. users: those that may log in beside the one in `server`, with their passwords.
    databases: `{"shop": "pool_size=7"}`, settings of single ones; all others are the server's own, too. user_settings:
    the same of single users. settings: anything else in pgbouncer.ini. logs: where its log is copied to at the end, to
    be searched for secrets.
    """
    program = find_pgbouncer()
    lines: dict[str, object] = {
        "pool_mode": pool_mode,
        "default_pool_size": default_pool_size,
        "auth_type": "scram-sha-256",
        "admin_users": ", ".join((ADMIN, *admin_users)),
        "stats_users": ", ".join(stats_users),
    }
    if max_prepared_statements is not None:
        if program_version(program) >= TRACKS_STATEMENTS:
            lines["max_prepared_statements"] = max_prepared_statements
        elif max_prepared_statements > 0:
            pytest.skip("PgBouncer tracks prepared statements since 1.21, and this one is older")
    to_server = f"host={server['DB_HOST']} port={server['DB_PORT']}"
    text = ["[databases]"]
    text += [f"{name} = {to_server} {own}" for name, own in (databases or {}).items()]
    text += [f"* = {to_server}", "", "[users]"]
    text += [f"{name} = {own}" for name, own in (user_settings or {}).items()]
    text += ["", "[pgbouncer]"]
    text += [f"{name} = {value}" for name, value in (lines | dict(settings or {})).items()]
    logins = {server["DB_USER"]: server["DB_PASSWORD"], ADMIN: ADMIN_PASSWORD} | dict(users or {})
    own_folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=folder))
    own_folder.chmod(0o755)
    pgbouncer = PgBouncer(program, own_folder, tether, "\n".join(text), logins)
    if (account := server_account("postgres", "nobody")) is not None:
        os.chown(own_folder, account.uid, account.gid)  # its socket
    try:
        pgbouncer.start()
        yield pgbouncer
    finally:
        pgbouncer.stop()
        if logs is not None and pgbouncer.log.exists():
            shutil.copy(pgbouncer.log, logs / f"{own_folder.name}.log")
        shutil.rmtree(own_folder)


def find_pgbouncer() -> str:
    """The program; skips the test where there is none."""
    found = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *FOLDERS)))
    if found is None:
        pytest.skip("no pgbouncer on PATH or in /usr/sbin: apt install pgbouncer")
    return found


def program_version(program: str) -> tuple[int, int]:
    """(1, 18) of `PgBouncer 1.18.0`."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True)
    found = re.search(r"PgBouncer (\d+)\.(\d+)", done.stdout)
    assert found is not None, done.stdout
    return int(found[1]), int(found[2])
