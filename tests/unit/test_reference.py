"""The settings in the documentation are the code's."""

from __future__ import annotations

from pathlib import Path

import pytest
from dotenv import dotenv_values

from config import Settings
from config.reference import env_example
from config.variables import VARIABLES
from poolctl.documentation import CHARTS, scaling_table, written
from poolctl.plan_picture import draw

ROOT = Path(__file__).parents[2]


def test_documentation_is_the_codes() -> None:
    """README's tables and `.env.example` are what `make reference` writes."""
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
