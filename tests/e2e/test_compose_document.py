"""docs/compose.md, typed from its first line to its last: every command ends well, and prints what stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import open_stack
from tests.e2e.stack import POOLCTL, ROOT, Images, Stack
from tests.secrecy import Secrecy

DOCUMENT = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
SHOWN = re.findall(r"^\$ ([^\n]*)\n((?:(?!\$ )[^\n]*\n)*)", "".join(BLOCKS), re.MULTILINE)
LEFT_OUT = "…"


@pytest.fixture(scope="module")
def clone(images: Images, stacks_folder: Path, secrecy: Secrecy, opened_stacks: list[Stack]) -> Iterator[Stack]:
    """What a newcomer has: no secrets yet."""
    with open_stack("document", stacks_folder, images, secrecy, opened_stacks) as stack:
        for secret in (stack.folder / "secrets").iterdir():
            secret.unlink()
        yield stack


def test_every_command_is_here() -> None:
    """No command stands outside the blocks that are run."""
    assert len(SHOWN) == len(re.findall(r"^\$ ", DOCUMENT, re.MULTILINE)) > 10


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[f"{n}: {c}" for n, (c, _) in enumerate(SHOWN, start=1)])
def test_command(clone: Stack, command: str, output: str) -> None:
    """It exits with 0, and prints what is shown, apart from numbers and names of this run."""
    path = f"{POOLCTL.parent}:{clone.environ['PATH']}"
    done = clone.run("sh", "-c", command, environ={"PATH": path}, timeout_s=300)
    if (clone.folder / "secrets").exists():
        clone.secrecy.secrets |= set(clone.secrets().values())
    said = iter(masked(done.stdout + done.stderr, clone.folder.name))
    for line in masked(output, "poolctl"):
        assert line == LEFT_OUT or line in said, (
            f"{line!r} is not, or not in this order, in:\n{done.stdout}{done.stderr}"
        )


def masked(text: str, project: str) -> list[str]:
    """The lines without what differs from run to run: numbers, identifiers, the project's name, widths of columns."""
    lines = text.replace(f"{project}-", "PROJECT-").splitlines()
    masks = [(r"\b[0-9a-f]{12}\b", "ID"), (r"\d+(\.\d+)?", "#"), (r"[─-╿=+-]{3,}", "---"), (r"\s+", " ")]
    for pattern, mask in masks:
        lines = [re.sub(pattern, mask, line).strip() for line in lines]
    return [line for line in lines if line]
