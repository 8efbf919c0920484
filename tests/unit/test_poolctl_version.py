from __future__ import annotations

import tomllib
from pathlib import Path

from poolctl import __version__


def test_version_is_that_of_the_project() -> None:
    """`poolctl --version` is the version in pyproject.toml."""
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    assert tomllib.loads(pyproject.read_text())["project"]["version"] == __version__
