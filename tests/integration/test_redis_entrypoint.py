"""deploy/redis/entrypoint.sh: no server without a password, and the password where nobody sees it."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import redis

from config.exit_codes import ExitCode
from local import Tether
from local.binaries import find_redis
from local.port import LOOPBACK, free_port
from tests.processes import ROOT
from tests.secrecy import Secrecy
from tests.shells import Shell
from tests.waiting import wait_until

ENTRYPOINT = ROOT / "deploy" / "redis" / "entrypoint.sh"
PASSWORDS = ["pw-of-redis-91c2", 'pw "of" \\redis 91c2 $HOME #\'', "pw-öf-redis-91c2"]
NOBODY = 65_534


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Where the secret is looked for; it is not there yet."""
    return tmp_path / "redis_password"


@pytest.fixture
def environ(secret: Path) -> dict[str, str]:
    return {"STACK_SECRETS": str(secret.parent)}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with this machine's server under the name `redis-server`, whatever it is called here."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "redis-server").symlink_to(find_redis(tmp_path, None).path)
    return folder


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=["no line break", "line break", "two-byte line break"])
def test_password_is_the_files(
    shell: Shell,
    secret: Path,
    environ: dict[str, str],
    programs: Path,
    tether: Tether,
    secrecy: Secrecy,
    password: str,
    end: str,
) -> None:
    """The server asks for what is in the file, byte for byte but its line break; no argument of a process shows it."""
    secrecy.secrets.add(password)
    secret.write_bytes(f"{password}{end}".encode())
    port = free_port()
    log = secrecy.folder / f"redis-entrypoint-{port}.log"
    with log.open("wb") as output:
        server = tether.spawn(
            [*shell.command, ENTRYPOINT, "--port", str(port), "--bind", LOOPBACK, "--save", ""],
            death_signal=signal.SIGTERM,
            environ={"PATH": f"{programs}:{shell.path}", **environ},
            cwd=secret.parent,
            stdout=output,
        )
    try:
        with redis.Redis(host=LOOPBACK, port=port, password=password) as client:

            def answers() -> bool:
                assert server.exit_code() is None, log.read_text()
                try:
                    return bool(client.ping())
                except redis.ConnectionError:
                    return False

            wait_until(answers, what="an answer to the password")
        for wrong in (None, f"{password}x"):
            with (
                redis.Redis(host=LOOPBACK, port=port, password=wrong) as client,
                pytest.raises(redis.AuthenticationError),
            ):
                client.ping()
        written = {path for path in secret.parent.iterdir() if path.is_file() and password in path.read_text()}
        assert written == {secret}
        arguments = Path(f"/proc/{server.pid}/cmdline")
        if arguments.exists():
            assert password.encode() not in arguments.read_bytes()
    finally:
        server.stop((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "is missing: run 'make secrets'"),
        ("", "is empty: remove it and run 'make secrets'"),
        (" \n", "is empty: remove it and run 'make secrets'"),
        ("\r\n", "is empty: remove it and run 'make secrets'"),
        ("one-7c1e\ntwo-7c1e\n", "has several lines: write the password on one line"),
    ],
    ids=["missing", "empty", "blank", "line break", "two lines"],
)
@pytest.mark.parametrize("arguments", [(), ("--health",)], ids=["start", "health"])
def test_no_password_no_server(
    shell: Shell, secret: Path, environ: dict[str, str], content: str | None, line: str, arguments: tuple[str, ...]
) -> None:
    """Without exactly one password it starts nothing, and one line says why; so does the health check."""
    if content is not None:
        secret.write_bytes(content.encode())
    done = shell.run(ENTRYPOINT, *arguments, environ=environ, cwd=secret.parent)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr == f"redis: {secret} {line}\n"


def test_unreadable_secret(shell: Shell, data_folder: Path) -> None:
    """A file of mode 0600, which a container's user cannot read, is not taken for an empty password."""
    folder = data_folder / f"unreadable-{shell.command[0].replace('/', '-')}"
    folder.mkdir(mode=0o755)
    script = Path(shutil.copy(ENTRYPOINT, folder))
    secret = folder / "redis_password"
    secret.write_text("pw-of-redis-91c2")
    root = os.geteuid() == 0
    secret.chmod(0o600 if root else 0)
    environ = {"STACK_SECRETS": str(folder)}
    done = shell.run(script, environ=environ, cwd=folder, uid=NOBODY if root else None)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr.startswith(f"redis: {secret} cannot be read by uid ")
    assert "0444" in done.stderr


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
def test_health(
    shell: Shell, secret: Path, environ: dict[str, str], programs: Path, tether: Tether, secrecy: Secrecy
) -> None:
    """The check passes while a server with this password answers, and at no other time."""
    (password, other) = PASSWORDS[:2]
    secrecy.secrets |= {password, other}
    # The check asks Redis' own port, which may be taken on this machine: redis-cli is told another one.
    port = free_port()
    client = programs / "redis-cli"
    client.write_text(f'#!/bin/sh\nexec {shutil.which("redis-cli")} -p {port} "$@"\n')
    client.chmod(0o755)

    def health() -> int:
        return shell.run(
            ENTRYPOINT, "--health", environ=environ, cwd=secret.parent, first_on_path=programs
        ).returncode  # fmt: skip

    secret.write_text(password)
    assert health() != 0
    with (secrecy.folder / f"redis-health-{port}.log").open("wb") as output:
        server = tether.spawn(
            [programs / "redis-server", "--port", str(port), "--bind", LOOPBACK, "--requirepass", password],
            death_signal=signal.SIGTERM,
            environ={"PATH": os.defpath},
            cwd=secret.parent,
            stdout=output,
        )  # fmt: skip
    try:
        wait_until(lambda: health() == 0, what="a healthy server")
        secret.write_text(other)
        assert health() != 0
    finally:
        server.stop((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
