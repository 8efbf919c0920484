"""deploy/secrets.sh (`make secrets`): random passwords, or the given ones, once; and no word of them."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values

from config.exit_codes import ExitCode
from tests.processes import ROOT
from tests.secrecy import Secrecy
from tests.shells import Shell

SCRIPT = ROOT / "deploy" / "secrets.sh"
ALWAYS = ["db_password", "pgbouncer_password", "postgres_password", "redis_password"]
OPTIONAL = ["bot_token", "database_url", "redis_url"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty folder in which the script runs."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def run(shell: Shell, project: Path) -> Run:
    def run_one(**environ: str) -> subprocess.CompletedProcess[str]:
        return shell.run(SCRIPT, environ=environ, cwd=project)

    return run_one


def made(folder: Path) -> dict[str, str]:
    """The secrets in a folder, to the last byte."""
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_random(run: Run, project: Path) -> None:
    """Four files, four different long passwords of letters and digits; their names are printed, and no more."""
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    secrets = made(project / "secrets")
    assert list(secrets) == ALWAYS
    assert len(set(secrets.values())) == len(ALWAYS)
    for secret in secrets.values():
        assert re.fullmatch(r"[A-Za-z0-9]{32}", secret)
        assert secret not in done.stdout
    assert sorted(done.stdout.splitlines()) == [f"created ./secrets/{name} (random)" for name in ALWAYS]


def test_modes(run: Run, project: Path) -> None:
    """Only the owner gets into the folder, and in there whoever a container's process is may read."""
    folder = project / "secrets"
    folder.mkdir(mode=0o755)
    assert run().returncode == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}


def test_nothing_is_overwritten(run: Run, project: Path) -> None:
    """A second run keeps every file, also when another password is given by then, and says so."""
    run()
    before = made(project / "secrets")
    assert run().stdout.splitlines() == [f"kept    ./secrets/{name}" for name in sorted(ALWAYS, key=_order)]
    (project / "secrets" / "redis_password").unlink()
    done = run(DB_PASSWORD="another-7c1e")
    after = made(project / "secrets")
    assert {name for name in ALWAYS if before[name] != after[name]} == {"redis_password"}
    assert "created ./secrets/redis_password (random)" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "db_password" in line]
    assert line.startswith("kept    ./secrets/db_password (DB_PASSWORD is another one:")
    assert "another-7c1e" not in done.stdout
    assert "is another one" not in run(DB_PASSWORD=before["db_password"]).stdout


def _order(name: str) -> int:
    return SCRIPT.read_text().index(f"make {name} ")


@pytest.mark.parametrize("name", [*ALWAYS, *OPTIONAL])
def test_given(run: Run, project: Path, secrecy: Secrecy, name: str) -> None:
    """A secret is taken from .env, the shell's value before it, and written whole; an empty one is not given."""
    variable, password = name.upper(), f"pw of {name} \"'$HOME\\ 5b1d"
    secrecy.secrets.add(password)
    (project / ".env").write_text(f"{variable}=from-the-file-5b1d\n")
    done = run(**{variable: password})
    assert (done.returncode, done.stderr) == (0, "")
    assert made(project / "secrets")[name] == password
    assert f"created ./secrets/{name} (from {variable})" in done.stdout
    (project / "secrets" / name).unlink()
    done = run(**{variable: ""})
    assert made(project / "secrets")[name] == "from-the-file-5b1d"
    assert "5b1d" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "DB_PASSWORD=plain-5b1d",
        "export DB_PASSWORD=plain-5b1d",
        "  DB_PASSWORD = plain-5b1d  ",
        "DB_PASSWORD=plain-5b1d # a comment",
        "DB_PASSWORD=plain#5b1d",
        "DB_PASSWORD=pl=ain=5b1d",
        "DB_PASSWORD='single \"5b1d\" $HOME #'",
        "DB_PASSWORD='single-5b1d' # a comment",
        "DB_PASSWORD=\"double '5b1d' #\"",
        'DB_PASSWORD="double-5b1d" # a comment',
        "DB_PASSWORD=first-5b1d\nDB_PASSWORD=second-5b1d",
        "#DB_PASSWORD=not-this\nMY_DB_PASSWORD=nor-this\nDB_PASSWORD=plain-5b1d\nDB_PASSWORD_FILE=nor-this",
        "DB_PASSWORD=plain-5b1d\r",
        "DB_PASSWORD=ü-5b1d",
    ],
)
def test_dotenv_is_read_as_the_settings_read_it(run: Run, project: Path, line: str) -> None:
    """Quotes, comments, spaces and `export` in .env mean what they mean to compose and to the processes."""
    (project / ".env").write_bytes(f"{line}\nLAST=1\n".encode())
    expected = dotenv_values(project / ".env")["DB_PASSWORD"]
    assert expected is not None
    assert "5b1d" in expected
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert made(project / "secrets")["db_password"] == expected


@pytest.mark.parametrize("line", ["DB_PASSWORD=", "DB_PASSWORD=''", 'DB_PASSWORD=""', "DB_PASSWORD= # none"])
def test_empty_in_dotenv(run: Run, project: Path, line: str) -> None:
    """An empty variable is unset: the password is random."""
    (project / ".env").write_text(f"{line}\n")
    assert "created ./secrets/db_password (random)" in run().stdout


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("DB_PASSWORD=cash$5b1d", "dollar"),
        ('DB_PASSWORD="cash$5b1d"', "dollar"),
        ('DB_PASSWORD="back\\5b1d"', "backslash"),
        ('DB_PASSWORD="quote\\"5b1d"', "backslash"),
        ("DB_PASSWORD='back\\5b1d'", "backslash"),
        ("DB_PASSWORD: colon-5b1d", "colon"),
        ("export DB_PASSWORD:colon-5b1d", "colon"),
        ("DB_PASSWORD='open-5b1d", "closing quote"),
        ('DB_PASSWORD="open-5b1d', "closing quote"),
    ],
)
def test_unclear_in_dotenv(run: Run, project: Path, line: str, reason: str) -> None:
    """What compose might read as something else is refused, in one line that shows no password."""
    (project / ".env").write_text(f"{line}\n")
    done = run()
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("secrets: DB_PASSWORD in .env has ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert "5b1d" not in done.stdout + done.stderr
    assert not (project / "secrets" / "db_password").exists()


@pytest.mark.parametrize("content", ["", "\n"], ids=["empty", "line break"])
def test_empty_file(run: Run, project: Path, content: str) -> None:
    """A file that holds no password is not kept in silence: no server could be set up with it."""
    run()
    path = project / "secrets" / "db_password"
    path.unlink()
    path.write_text(content)
    done = run()
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == "secrets: ./secrets/db_password is empty: remove it, then run 'make secrets' again\n"
    path.unlink()
    assert run().returncode == 0


def test_after_a_kill(run: Run, project: Path) -> None:
    """What a run that was killed has left over is in nobody's way."""
    left = project / "secrets" / "db_password.new"
    left.parent.mkdir()
    left.symlink_to(project / "nowhere" / "x")  # as unwritable as a file of mode 0444, for root, too
    assert run().returncode == 0
    assert list(made(project / "secrets")) == ALWAYS


def test_scripts_are_opened(shell: Shell, tmp_path: Path) -> None:
    """In a clone that is its owner's alone the scripts that compose mounts are opened to the containers' users."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    mounts = [mount for service in services for mount in service.get("volumes", []) if mount.startswith("./")]
    scripts = [tmp_path / mount.split(":")[0] for mount in mounts]
    for script in scripts:
        script.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / script.relative_to(tmp_path), script)
        script.chmod(0o700)
    copied = Path(shutil.copy(SCRIPT, tmp_path / "deploy"))
    done = shell.run(copied.relative_to(tmp_path), environ={}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("opened ") == len(scripts) > 2
    assert {stat.S_IMODE(script.stat().st_mode) for script in scripts} == {0o755}
    assert "opened" not in shell.run(copied.relative_to(tmp_path), environ={}, cwd=tmp_path).stdout


def test_several_lines(run: Run, project: Path) -> None:
    """A password of several lines is refused: its readers take one."""
    done = run(DB_PASSWORD="one-5b1d\ntwo-5b1d")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == "secrets: DB_PASSWORD has several lines: give it on one line\n"
    assert not (project / "secrets" / "db_password").exists()


def test_folder(run: Run, project: Path) -> None:
    """SECRETS_DIR names another folder, in the shell before .env."""
    (project / ".env").write_text("SECRETS_DIR=of-the-file\n")
    run()
    assert list(made(project / "of-the-file")) == ALWAYS
    run(SECRETS_DIR="of/the/shell")
    assert list(made(project / "of" / "the" / "shell")) == ALWAYS
    assert not (project / "secrets").exists()


def test_compose_mounts_what_it_makes() -> None:
    """The secrets that the compose files name are those that it makes; of the optional ones each file has one."""
    always = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["secrets"]
    assert sorted(always) == ALWAYS
    optional = [
        name
        for path in ROOT.glob("docker-compose.*.yml")
        for name in yaml.safe_load(path.read_text()).get("secrets", {})
    ]
    assert sorted(optional) == ["bot_token", "database_url"]
    assert set(optional) <= set(OPTIONAL)
