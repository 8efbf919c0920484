"""The apps in examples/: on public names only, and with migrations that make exactly their models."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tortoise.context import TortoiseContext
from tortoise.migrations.autodetector import MigrationAutodetector

from config import Settings, tortoise_config
from examples.reminder.makemigrations import TORTOISE_ORM
from fleet.app import load_app

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {path.parent.name for path in ROOT.glob("*/py.typed")}
SOURCES = sorted((ROOT / "examples").rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name) of each import but those of its own package's; the name is None for `import module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            assert node.level == 1, f"{path} imports from outside its package by a relative name"
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_public_names(path: Path) -> None:
    """Of the project an example imports names in a package's `__all__`, and nothing from the files behind them."""
    for module, name in imported(path):
        if module.partition(".")[0] in PACKAGES:
            assert module in PACKAGES, f"{module} is not public"
            assert name in importlib.import_module(module).__all__, f"{module}.{name} is not public"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_it_runs_under_any_name(path: Path) -> None:
    """An example does not import itself by its own name: a copy of it would run the original."""
    assert not [module for module, _ in imported(path) if module.partition(".")[0] == "examples"]


def test_public_names_are_used() -> None:
    """The test above has something to look at."""
    used = {module for path in SOURCES for module, _ in imported(path) if module in PACKAGES}
    assert used == {"bot", "fleet"}


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_nothing_needs_an_example(package: str) -> None:
    """The project does not import its examples."""
    for path in (ROOT / package).rglob("*.py"):
        assert not [module for module, _ in imported(path) if module.partition(".")[0] == "examples"], path


def test_the_compose_override() -> None:
    """It mounts the code, read-only, into each service with the project's image, and names the app there."""
    path = ROOT / "examples" / "reminder" / "docker-compose.yml"
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path]
    assert subprocess.run(check, capture_output=True, timeout=60, check=False).returncode == 0
    stack = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    ours = {name for name, service in stack.items() if "POOLCTL_IMAGE" in service["image"]}
    override = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    assert set(override) == ours
    for service in override.values():
        assert service["environment"] == {"APP": "${APP:-examples.reminder}"}  # a copy is never the original
        assert service["volumes"] == ["./examples:/app/examples:ro"]


async def test_the_migrations_make_exactly_the_models() -> None:
    """Tortoise's own migration tool finds nothing to add."""
    async with TortoiseContext() as context:
        await context.init(config=TORTOISE_ORM)
        assert context.apps is not None
        assert await MigrationAutodetector(context.apps, TORTOISE_ORM["apps"]).changes() == []


def test_the_migration_tool_is_configured_as_the_program() -> None:
    """makemigrations.py names the same label, models and migrations as a process with APP."""
    settings = Settings.load("worker", {"APP": "examples.reminder"})
    apps = tortoise_config(settings, apps=load_app(settings).tables)["apps"]
    assert TORTOISE_ORM["apps"].items() <= apps.items()
