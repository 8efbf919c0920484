"""deploy/postgres/entrypoint.sh: what would spoil a new data folder is refused before there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from config.exit_codes import ExitCode
from tests.processes import ROOT
from tests.shells import Shell

ENTRYPOINT = ROOT / "deploy" / "postgres" / "entrypoint.sh"
SECRETS = ("postgres_password", "db_password", "pgbouncer_password")
NOBODY = 65_534

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The folder of the secrets, as `make secrets` fills it."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    for name in SECRETS:
        (folder / name).write_text(f"pw of {name} \"'$HOME\\ ü")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder; new, so it is empty."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def run(shell: Shell, tmp_path: Path, secrets: Path, data: Path) -> Run:
    """Run it with a program in the image's place that prints its arguments."""
    programs = tmp_path / "programs"
    programs.mkdir()
    image = programs / "docker-entrypoint.sh"
    image.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    image.chmod(0o755)

    def run_one(**environ: str) -> subprocess.CompletedProcess[str]:
        own = {"STACK_SECRETS": str(secrets), "PGDATA": str(data)}
        return shell.run(
            ENTRYPOINT, "postgres", "-ca=b c", environ=own | environ, cwd=tmp_path, first_on_path=programs
        )  # fmt: skip

    return run_one


@pytest.mark.parametrize("end", ["", "\n"], ids=["no line break", "line break"])
def test_the_image_goes_on(run: Run, secrets: Path, end: str) -> None:
    """With good settings the image's own entrypoint gets the arguments as they are."""
    for name in SECRETS:
        (secrets / name).write_text((secrets / name).read_text() + end)
    for environ in ({}, {"DB_USER": "o'neil", "DB_NAME": "my db", "DB_SCHEMA": "shop", "PGBOUNCER_USER": "pooler"}):
        done = run(**environ)
        assert (done.returncode, done.stdout, done.stderr) == (0, "<postgres><-ca=b c>", "")


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is missing: run 'make secrets'"),
        ("", "is empty: remove it and run 'make secrets'"),
        (" \r\n", "is empty: remove it and run 'make secrets'"),
        ("one-7c1e\ntwo-7c1e\n", "has a line break or another control character: write the password on one line"),
        ("one-7c1e\r\n", "has a line break or another control character: write the password on one line"),
    ],
    ids=["missing", "empty", "blank", "two lines", "two-byte line break"],
)
def test_bad_secret(run: Run, secrets: Path, name: str, content: str | None, reason: str) -> None:
    """One line that names the file and what to do, and nothing is set up."""
    (secrets / name).unlink()
    if content is not None:
        (secrets / name).write_bytes(content.encode())
    done = run()
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr == f"postgres: {secrets / name} {reason}\n"


def test_unreadable_secret(shell: Shell, data_folder: Path) -> None:
    """A file that the container's user may not read."""
    folder = data_folder / f"postgres-unreadable-{shell.command[0].replace('/', '-')}"
    folder.mkdir(mode=0o755)
    script = Path(shutil.copy(ENTRYPOINT, folder))
    secret = folder / "postgres_password"
    secret.write_text("pw-of-postgres-91c2")
    root = os.geteuid() == 0
    secret.chmod(0o600 if root else 0)
    environ = {"STACK_SECRETS": str(folder), "PGDATA": str(folder)}
    done = shell.run(script, environ=environ, cwd=folder, uid=NOBODY if root else None)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr.startswith(f"postgres: {secret} cannot be read by uid ")


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"DB_USER": "postgres"}, "DB_USER=postgres is the superuser"),
        ({"DB_USER": "root", "POSTGRES_USER": "root"}, "DB_USER=root is the superuser"),
        ({"DB_USER": "pgbouncer"}, "DB_USER=pgbouncer is PgBouncer's own role"),
        ({"DB_USER": "pooler", "PGBOUNCER_USER": "pooler"}, "DB_USER=pooler is PgBouncer's own role"),
        ({"DB_USER": "pg_shop"}, "DB_USER=pg_shop is a name that PostgreSQL keeps for itself"),
        ({"PGBOUNCER_USER": "postgres"}, "PGBOUNCER_USER=postgres is the superuser"),
        ({"PGBOUNCER_USER": "pg_bouncer"}, "PGBOUNCER_USER=pg_bouncer is a name that PostgreSQL keeps for itself"),
        ({"PGBOUNCER_USER": "Pooler"}, "PGBOUNCER_USER=Pooler is no plain name of a role"),
        ({"DB_NAME": "postgres"}, "DB_NAME=postgres is one of PostgreSQL's own databases"),
        ({"DB_NAME": "template1"}, "DB_NAME=template1 is one of PostgreSQL's own databases"),
        ({"DB_SCHEMA": "pg_shop"}, "DB_SCHEMA=pg_shop is a name that PostgreSQL keeps for itself"),
    ],
    ids=str,
)
def test_bad_name(run: Run, data: Path, environ: dict[str, str], said: str) -> None:
    """One line that says which setting; but a database that exists is started all the same."""
    done = run(**environ)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr.startswith(f"postgres: {said}")
    assert ": " in done.stderr.removeprefix(f"postgres: {said}")
    assert done.stderr.count("\n") == 1
    (data / "PG_VERSION").write_text("17\n")
    assert run(**environ).returncode == 0
