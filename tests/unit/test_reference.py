"""The settings in the documentation are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dotenv import dotenv_values

from config import Settings, SettingsError
from config.reference import REFUSED, compose_settings, env_example
from config.variables import COMPOSE_VARIABLES, VARIABLES, known_names, secret_names
from poolctl.documentation import CHARTS, scaling_table, written
from poolctl.plan_picture import draw

ROOT = Path(__file__).parents[2]


def test_documentation_is_the_codes() -> None:
    """README's tables, `.env.example` and `docker-compose.settings.yml` are what `make reference` writes."""
    for path, text in written(ROOT):
        assert path.read_text(encoding="utf-8") == text, path.name


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_the_plans(name: str, tmp_path: Path) -> None:
    """The charts in docs/ are what `make reference` draws, and docs/scaling.md shows each."""
    pytest.importorskip("matplotlib", reason="the extra `chart` is not installed")
    drawn = tmp_path / "drawn.svg"
    draw(CHARTS[name], drawn)
    assert (ROOT / name).read_bytes() == drawn.read_bytes()
    assert f"]({Path(name).name})" in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_scaling_table_reaches_the_line() -> None:
    """The table covers 1 worker up to the last that fits, without a gap."""
    assert [row.split(" | ")[0] for row in scaling_table().splitlines()[2:]] == ["| 1–3", "| 4–8", "| 9–13"]


def test_env_example_names_every_variable(tmp_path: Path) -> None:
    """Uncommented, `.env.example` is read as it stands, names every variable and changes no default."""
    file = tmp_path / "env"
    lines = env_example().splitlines()
    file.write_text("\n".join(line[1:] for line in lines if line.startswith("#") and line[1:2].isupper()))
    values = dotenv_values(file, interpolate=False)
    assert set(values) == {v.name for v in (*VARIABLES, *COMPOSE_VARIABLES)}
    loaded = Settings.load("worker", {name: value or "" for name, value in values.items()})
    default = Settings.load("worker", {})
    groups = ("db", "redis", "worker", "bot", "fleet", "log", "pgbouncer", "stack")
    assert {name: getattr(loaded, name) for name in groups} == {name: getattr(default, name) for name in groups}
    assert loaded.warnings == ()


def compose_keys() -> list[str]:
    """The names that docker-compose.settings.yml hands on."""
    _, _, listed = compose_settings().partition("    environment:\n")
    lines = [line for line in listed.splitlines() if not line.startswith("      # ")]
    assert all(re.fullmatch(r" {6}[A-Z_]+:", line) for line in lines), "a key must have no value"
    return [line.strip(" :") for line in lines]


def test_compose_hands_on_every_setting() -> None:
    """Each setting has a key once, also with a role's prefix; of the secrets the URLs alone, and no file."""
    keys = compose_keys()
    assert len(keys) == len(set(keys))
    urls = {"DATABASE_URL", "REDIS_URL"}
    compose = {v.name for v in COMPOSE_VARIABLES}
    files = {name for name in known_names() if name.removesuffix("_FILE") in secret_names() and name.endswith("_FILE")}
    role_urls = {f"{role}_{url}" for role in ("WORKER", "BOT") for url in urls}
    assert set(keys) - set(REFUSED) == known_names() - (secret_names() - urls) - compose - files - role_urls
    assert {"WORKER_DB_POOL_MAX", "BOT_DB_POOL_MAX", "WORKERS", "COMPOSE_PROFILES", "PGBOUNCER_HOST"} <= set(keys)


@pytest.mark.parametrize("name", REFUSED)
def test_names_of_others_that_compose_hands_on_are_refused(name: str) -> None:
    """They are handed on only so that somebody says what the name here is."""
    with pytest.raises(SettingsError, match=f"{name}=5 is not a setting: .*DB_"):
        Settings.load("worker", {name: "5"})


COMPOSE_FILES = sorted((path for path in ROOT.glob("docker-*.yml")), key=lambda path: path.name)
# In `$${NAME}` it is the container's shell that replaces.
INTERPOLATED = re.compile(r"(?<!\$)\$\{?([A-Z_][A-Z0-9_]*)(?::?-([^}]*))?")
DEFAULTS_OF_THE_STACK = {"PLAN_CHECK": "error", "DB_USER": "app", "DB_NAME": "app"}


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda path: path.name)
def test_what_compose_reads_is_documented(file: Path) -> None:
    """Each `${NAME:-default}` in a compose file, and each key without a value, is in `.env.example`; so is the default.

    What is missing belongs into COMPOSE_VARIABLES of config/variables.py.
    """
    defaults = {v.name: v.default for v in (*VARIABLES, *COMPOSE_VARIABLES)} | DEFAULTS_OF_THE_STACK
    lines = (line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#"))
    text = "\n".join(lines)
    for name, default in INTERPOLATED.findall(text):
        assert f"\n#{name}=" in env_example(), f"{file.name} interpolates {name}"
        assert default in ("", defaults[name]) or defaults[name] == "–", f"{file.name}: {name}"
    handed_on = set(re.findall(r"^ +([A-Z][A-Z0-9_]+):$", text, re.MULTILINE))
    assert handed_on <= known_names() | set(REFUSED), file.name


def test_what_is_documented_for_compose_is_read() -> None:
    """No variable that compose alone is to read is left over from another time."""
    read = {name for file in COMPOSE_FILES for name, _ in INTERPOLATED.findall(file.read_text(encoding="utf-8"))}
    assert {v.name for v in COMPOSE_VARIABLES} <= read


@pytest.mark.parametrize("variable", [*VARIABLES, *COMPOSE_VARIABLES], ids=lambda v: v.name)
def test_every_variable_is_explained(variable: object) -> None:
    """Each variable has a meaning and a default."""
    assert variable.meaning  # type: ignore[attr-defined]
    assert variable.default  # type: ignore[attr-defined]
