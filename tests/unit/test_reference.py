"""The settings in the documentation are the code's."""

from __future__ import annotations

from pathlib import Path

import pytest
from dotenv import dotenv_values

from config import Settings
from config.reference import env_example, markdown_table, with_table
from config.variables import VARIABLES

ROOT = Path(__file__).parents[2]


def test_readme_has_the_table() -> None:
    """README's table of settings is what `make reference` writes."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_table(readme)
    assert markdown_table() in readme


def test_env_example_is_the_settings() -> None:
    """`.env.example` is what `make reference` writes."""
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == env_example()


def test_env_example_names_every_variable(tmp_path: Path) -> None:
    """Uncommented, `.env.example` is read as it stands, names every variable and changes no default."""
    file = tmp_path / "env"
    lines = env_example().splitlines()
    file.write_text("\n".join(line[1:] for line in lines if line.startswith("#") and line[1:2].isupper()))
    values = dotenv_values(file, interpolate=False)
    assert set(values) == {v.name for v in VARIABLES}
    given = {name: value or "" for name, value in values.items()}
    loaded, default = Settings.load("worker", given), Settings.load("worker", {})
    assert (loaded.db, loaded.redis, loaded.worker, loaded.bot, loaded.log) == (
        default.db,
        default.redis,
        default.worker,
        default.bot,
        default.log,
    )


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: v.name)
def test_every_variable_is_explained(variable: object) -> None:
    """Each variable has a meaning and a default."""
    assert variable.meaning  # type: ignore[attr-defined]
    assert variable.default  # type: ignore[attr-defined]
