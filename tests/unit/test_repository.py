"""What a stranger finds in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted(ROOT.glob("requirements*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_is_hashed_and_names_no_host(lock: Path) -> None:
    """Every requirement has a hash, and no lock says where a package comes from."""
    text = lock.read_text()
    assert not re.search(r"https?:|^--|@ ", text, re.MULTILINE)
    requirements = re.findall(r"^\S+==[^\n]*\n(?:    [^\n]*\n)*", text, re.MULTILINE)
    assert requirements
    assert all("--hash=sha256:" in requirement for requirement in requirements)


def test_locks_agree() -> None:
    """The locks that include each other pin the same versions."""
    pins = [dict(re.findall(r"^(\S+)==([^ \n;]+)", lock.read_text(), re.MULTILINE)) for lock in LOCKS]
    merged = {name: {pin[name] for pin in pins if name in pin} for pin in pins for name in pin}
    assert {name: versions for name, versions in merged.items() if len(versions) > 1} == {}


def test_packages_are_named_everywhere() -> None:
    """A new package is in the wheel, in mypy's list, in the layers and in `make clean`."""
    packages = sorted(path.parent.name for path in ROOT.glob("*/py.typed"))
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert pyproject.count(str(packages).replace("'", '"')) == 3
    assert f"PACKAGES := {' '.join(packages)}\n" in (ROOT / "Makefile").read_text()
    layers = re.search(r"^layers = (.*)$", pyproject, re.MULTILINE)
    assert layers is not None
    assert sorted(re.findall(r"\w+", layers[1])) == packages
