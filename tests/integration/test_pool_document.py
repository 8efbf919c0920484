"""What docs/pool.md shows is what happens: its examples run, and print what stands there."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import pytest
from tortoise.exceptions import OperationalError

from config import Settings
from config.variables import VARIABLES
from db import connect
from local import Tether
from pool import PoolOptions, TooManyClients
from tests.conftest import Environ
from tests.engines import open_tortoise
from tests.pgbouncer import PgBouncer, open_pgbouncer
from tests.pools import open_pool
from tests.processes import ROOT, Spawner
from tests.proxy import open_proxy
from tests.secrecy import Secrecy

DOCUMENT = (ROOT / "docs" / "pool.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", DOCUMENT, re.DOTALL | re.MULTILINE)
(FRAME, _), *EXAMPLES, (PROJECT, PROJECT_OUTPUT) = BLOCKS
NAMED = dict(re.findall(r"^<!-- output: ([\w-]+) -->\n```text\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE))
ELLIPSIS = "        ...\n"  # of the frame, where an example goes
BEHIND_PGBOUNCER = "behind PgBouncer"
SETTING = re.compile(r"\b[A-Z_]+=\S+")
TRACKING = 200  # max_prepared_statements

Opener = Callable[..., PgBouncer]


def masked(text: str, environ: Environ) -> str:
    """The text on one line, without what differs from run to run and from machine to machine."""
    text = text.replace(f"{sys.base_prefix}/lib/python{sys.version_info.major}.{sys.version_info.minor}/", "…/")
    for name, shown in (("DB_USER", "app"), ("DB_NAME", "shop")):
        text = re.sub(rf"\b{environ[name]}\b", shown, text)
    for pattern, shown in (
        (r"\b(worker@)[\w.-]+:\d+", r"\1…"),
        (r"\bfor \d+\.\d+ s\b", "for N s"),
        (r"(backend |Task-)\d+", r"\1N"),
        (r"\b(\w+\.py):\d+", r"\1:N"),
        (r"@[\w.-]+:\d+/", "@…/"),
        (r"\d+(\.\d+)? ms", "N ms"),
    ):
        text = re.sub(pattern, shown, text)
    return " ".join(text.split())


def same(printed: str, name: str, environ: Environ) -> None:
    """What is printed is what the document shows under this name."""
    assert masked(printed, environ) == masked(NAMED[name], environ)


@pytest.fixture
def pgbouncer(environ: Environ, data_folder: Path, tether: Tether, secrecy: Secrecy) -> Iterator[Opener]:
    """Opens one before this test's server."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(
            open_pgbouncer(environ, data_folder, tether, logs=secrecy.folder, **arguments)
        )


@contextlib.contextmanager
def printing() -> Iterator[io.StringIO]:
    """Standard output, with the pool's log lines among it."""
    handler = logging.StreamHandler(printed := io.StringIO())
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("pool")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stdout(printed):
            yield printed
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def run(example: str, environ: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the example prints and logs, and the last line of its traceback."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    code = FRAME.replace(ELLIPSIS, textwrap.indent(example, "        "))
    with printing() as printed:
        try:
            exec(compile(code, "report.py", "exec"), {"__name__": "report"})
        except Exception as error:
            printed.write("".join(traceback.format_exception_only(error)))
    return printed.getvalue()


@pytest.mark.parametrize(("example", "output"), EXAMPLES, ids=[code.splitlines()[0] for code, _ in EXAMPLES])
def test_example(
    example: str,
    output: str,
    environ: Environ,
    pgbouncer: Opener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It prints what stands below it, with the settings in its first line."""
    first = example.splitlines()[0]
    own = dict(setting.split("=", 1) for setting in SETTING.findall(first))
    if BEHIND_PGBOUNCER in first:
        own |= pgbouncer(max_prepared_statements=0, settings={"ignore_startup_parameters": "search_path"}).environ()
    printed = run(example, environ | own, tmp_path, monkeypatch)
    assert masked(printed, environ) == masked(output, environ)


def test_the_frame_runs(environ: Environ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frame of all examples is a program of its own."""
    assert FRAME.count(ELLIPSIS) == 1
    printed = run("print(pool.limit)\n", environ, tmp_path, monkeypatch)
    assert printed == "10\n"


def test_a_project_of_one_s_own(environ: Environ, spawn: Spawner, tmp_path: Path) -> None:
    """The whole program for a Tortoise project runs, with the place of the server and of the models filled in."""
    server = {
        "host": environ["DB_HOST"],
        "port": int(environ["DB_PORT"]),
        "user": environ["DB_USER"],
        "password": environ["DB_PASSWORD"],
        "database": environ["DB_NAME"],
    }
    program, places = re.subn(r"^server = .*$", f"server = {server}", PROJECT, flags=re.MULTILINE)
    assert places == 1
    (tmp_path / "shop.py").write_text(program.replace('"shop.models"', '"db.models"'), encoding="utf-8")
    done = spawn.run("shop", environ={"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert masked(done.stdout, environ) == masked(PROJECT_OUTPUT, environ)


def test_everything_that_is_shown_is_run() -> None:
    """No block of code or output is left out by the tests here, and there are no others."""
    shown = re.findall(r"^```(\w+)$", DOCUMENT, re.MULTILINE)
    assert shown.count("python") == len(BLOCKS)
    assert shown.count("text") == len(EXAMPLES) + 1 + len(NAMED)
    assert len(EXAMPLES) >= 10
    assert set(NAMED) == {"too-many-clients", "black-hole", "stale-plan"}


def test_commands_and_settings_exist() -> None:
    """Variables are settings, options are all the fields of PoolOptions, and commands are in the Makefile."""
    known = {variable.name for variable in VARIABLES}
    assert set(re.findall(r"`(DB_[A-Z_]+)", DOCUMENT)) <= known
    options = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE))
    assert options == {field.name for field in fields(PoolOptions)}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^\$ make (\S+)", DOCUMENT, re.MULTILINE)) <= targets


def test_defaults_are_real() -> None:
    """The defaults of the guards in the document are those of the settings."""
    shown = re.findall(r"`(DB_[A-Z_]+)` \(default `([^`]+)`\)", DOCUMENT)
    assert shown
    real = {variable.name: variable.default.strip("`") for variable in VARIABLES}
    assert dict(shown) == {name: real[name] for name, _ in shown}


async def test_too_many_clients(environ: Environ) -> None:
    """The server has no slot left for another connection of this role."""
    async with connect(Settings.load("poolctl", environ)) as admin:
        await admin.execute("CREATE ROLE app LOGIN PASSWORD 'pw-of-app' CONNECTION LIMIT 2")
        try:
            async with open_pool(environ, user="app", password="pw-of-app", max_size=10) as pool:
                held = [await pool.acquire(), await pool.acquire()]
                with pytest.raises(TooManyClients) as caught:
                    await pool.acquire()
                for connection in held:
                    await pool.release(connection)
        finally:
            await admin.execute("DROP ROLE app")
    same("".join(traceback.format_exception_only(caught.value)), "too-many-clients", environ)


async def test_a_black_hole(environ: Environ) -> None:
    """An idle connection whose server has gone silent is replaced, and its caller waits for the ping alone."""
    async with open_proxy(environ["DB_HOST"], int(environ["DB_PORT"])) as proxy:
        away = environ | {"DB_HOST": "127.0.0.1", "DB_PORT": str(proxy.listens_on)}
        async with open_pool(away, pre_ping_idle_s=0.0) as pool:
            await pool.release(await pool.acquire())
            proxy.freeze()
            with printing() as printed:
                connection = await pool.acquire()
            assert await connection.fetchval("SELECT 1") == 1
            await pool.release(connection)
    same(printed.getvalue(), "black-hole", environ)


async def test_a_stale_plan(environ: Environ, pgbouncer: Opener) -> None:
    """After a change of the schema behind a pooler that tracks prepared statements."""
    pooler = pgbouncer(max_prepared_statements=TRACKING, default_pool_size=1)
    async with (
        connect(Settings.load("poolctl", environ)) as admin,
        open_tortoise(environ | pooler.environ()) as client,
    ):
        await client.execute_query("SELECT * FROM fleet_subscriber")
        await admin.execute("ALTER TABLE fleet_subscriber ADD COLUMN one int")
        with pytest.raises(OperationalError) as caught:
            await client.execute_query("SELECT * FROM fleet_subscriber")
    same("".join(traceback.format_exception_only(caught.value)), "stale-plan", environ)
