"""What several of these tests share: a shell for the stack's scripts, a role that is not the superuser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import Environ
from tests.shells import NAMES, Shell, open_shell
from tests.superuser import create_role, execute


@pytest.fixture(params=NAMES)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    """Each of the shells, one after the other."""
    return open_shell(request.param, tmp_path)


@pytest.fixture
async def ordinary_role(environ: Environ) -> AsyncIterator[str]:
    """An ordinary role of this test's own, with the password `pw-of-` and its name."""
    name = f"ordinary_{environ['DB_NAME']}"
    await create_role(environ, name)
    yield name
    await execute(environ, f"DROP OWNED BY {name}", f"DROP ROLE {name}")
