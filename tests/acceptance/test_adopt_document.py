"""docs/adopt.md: its code, run as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import Tether
from tests.conftest import Environ
from tests.processes import ROOT, Spawner
from tests.terminal import Terminal

DOCUMENT = (ROOT / "docs" / "adopt.md").read_text(encoding="utf-8")
PATIENT_S = 600.0


def code(mark: str) -> str:
    """The Python code between two marks of the document."""
    found = re.search(rf"<!-- {mark}: begin -->\n```python\n(.*?)```\n<!-- {mark}: end -->", DOCUMENT, re.DOTALL)
    assert found is not None, mark
    return found[1]


def test_an_app_in_one_file(spawn: Spawner, tether: Tether, environ: Environ, tmp_path: Path) -> None:
    """The app in one file runs with a worker and a bot in its folder: the command answers, the job speaks."""
    (tmp_path / "shop.py").write_text(code("shop"))
    worker = spawn("worker", environ=environ | {"APP": "shop"}, cwd=tmp_path)
    worker.wait_for(" is up", timeout_s=60)
    terminal = Terminal(tether, "bot", environ=environ | {"APP": "shop", "LOG_LEVEL": "WARNING"}, cwd=tmp_path)
    try:
        terminal.wait_for(r"> $")
        terminal.type("/buy tea\n")
        terminal.wait_for(r"Ordered\.\n")
        terminal.wait_for(r"tea is on its way\n")
        terminal.type("/buy\n")
        terminal.wait_for(r"what\?\. Usage: /buy <article>\n> $")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    finally:
        terminal.close()


SHOP_MODELS = """
from tortoise import fields
from tortoise.models import Model

class Article(Model):
    id = fields.IntField(primary_key=True)
    name = fields.TextField()
"""
SHOP_MAIN = """
import asyncio, sys
from tortoise import Tortoise, connections
from tortoise.transactions import in_transaction
from shop.database import TORTOISE_ORM, settings
from shop.models import Article

async def buy(name):
    async with in_transaction() as connection:
        await Article.create(name=name, using_db=connection)
        await connection.execute_query("SELECT pg_sleep(0.02)")

async def main():
    await Tortoise.init(config=TORTOISE_ORM)
    await Tortoise.generate_schemas()
    await asyncio.gather(*(buy(str(number)) for number in range(30)))
    _, rows = await connections.get("default").execute_query(
        "SELECT count(*) AS open FROM pg_stat_activity WHERE application_name = $1", [settings.db.application_name]
    )
    print(await Article.all().count(), rows[0]["open"], *sorted(OURS & sys.modules.keys()))
    await Tortoise.close_connections()

OURS = {"bot", "config", "db", "fleet", "local", "pool", "poolctl", "telemetry", "worker"}
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of a clean virtual environment with our dependencies, and nothing of ours."""
    folder = tmp_path_factory.mktemp("adopt") / "venv"
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip("install", "--require-hashes", "-r", str(ROOT / "requirements.lock"), python=python)
    yield python
    shutil.rmtree(folder)


def pip(*arguments: str, python: Path) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("way", ["copied", "wheel"])
def test_config_and_pool_alone(bare_python: Path, environ: Environ, tmp_path: Path, way: str) -> None:
    """An existing Tortoise project runs on the pool with the ten lines: nothing of ours but config/ and pool/ is there.

    From two copied folders, and then from the wheel that is built here.
    """
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "__init__.py").touch()
    (shop / "database.py").write_text(code("database"))
    (shop / "models.py").write_text(SHOP_MODELS)
    (tmp_path / "main.py").write_text(SHOP_MAIN)
    if way == "copied":
        for package in ("config", "pool"):
            shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=PATIENT_S)
        (wheel,) = (tmp_path / "dist").glob("*.whl")
        pip("install", "--no-index", "--no-deps", "--force-reinstall", str(wheel), python=bare_python)

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [bare_python, "main.py"],
            cwd=tmp_path,
            env={"PATH": os.defpath, **environ, "DB_POOL_MAX": "3", **changes},
            capture_output=True,
            text=True,
            timeout=PATIENT_S,
            check=False,
        )

    done = run()
    assert (done.returncode, done.stdout) == (0, "30 3 config pool\n"), done.stderr
    assert "DB_POOL_MIN=12 is greater than DB_POOL_MAX=3: lower" in run(DB_POOL_MIN="12").stderr
    assert len(code("database").splitlines()) <= 10
