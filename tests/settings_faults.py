"""What Settings.load finds wrong with an environment."""

from __future__ import annotations

import pytest

from config import Settings, SettingsError


def faults(role: str = "worker", **environ: str) -> list[str]:
    """The lines of the SettingsError that `environ` raises."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(role, environ)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2, caught.value.exit_code
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.faults), caught.value.faults
    return lines
