"""PgBouncer's image and the project's settings say the same: names, defaults, bounds, and the sum of connections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from config.stack import LARGEST_INT, LARGEST_SERVER, PgBouncerSettings, StackSettings
from fleet.plan import OVERHEAD, Pooler, Supply

FOLDER = Path(__file__).resolve().parents[2] / "pgbouncer"
TEMPLATE = (FOLDER / "pgbouncer.ini.template").read_text()
ENTRYPOINT = (FOLDER / "entrypoint.sh").read_text()
PREFIX = "PGBOUNCER_"
# Who asks the console must know these; in the image the one is a file, and the other has no meaning.
OF_CLIENTS = {"password", "host"}


def placeholders() -> dict[str, str]:
    """Each variable of the template, and its default; a variable that stands there twice has one default."""
    found = set(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", TEMPLATE))
    assert len(dict(found)) == len(found), found
    return dict(found)


def constant(name: str) -> int:
    """A number that the entrypoint calculates with."""
    found = re.search(rf"^{name}=(\d+)\b", ENTRYPOINT, re.MULTILINE)
    assert found is not None, name
    return int(found[1])


def test_the_same_names_and_defaults() -> None:
    """What is not set is the same for PgBouncer and for whoever plans with it."""
    taken = {name: default for name, default in placeholders().items() if name.startswith(PREFIX)}
    settings: dict[str, Any] = {
        f"{PREFIX}{name.upper()}": field.default
        for name, field in PgBouncerSettings.model_fields.items()
        if name not in OF_CLIENTS
    }
    assert taken.keys() == settings.keys()
    assert PgBouncerSettings.model_validate(
        {name.removeprefix(PREFIX).lower(): text or None for name, text in taken.items()}
    ).model_dump() == {name: field.default for name, field in PgBouncerSettings.model_fields.items()}


@pytest.mark.parametrize("name", ["default_pool_size", "reserve_pool_size", "max_client_conn", "max_db_connections"])
def test_the_plan_s_defaults(name: str) -> None:
    """A plan without any option is of PgBouncer as it starts without any variable."""
    assert str(getattr(Pooler(), name)) == placeholders()[f"{PREFIX}{name.upper()}"]


def test_the_plan_s_arithmetic() -> None:
    """What the entrypoint leaves to PgBouncer is what the plan leaves to it, of the same server."""
    assert constant("RESERVED") == Supply().superuser_reserved + Supply().reserved
    assert constant("OVERHEAD") == OVERHEAD
    default = re.search(r"^POSTGRES_MAX_CONNECTIONS=\$\{POSTGRES_MAX_CONNECTIONS:-(\d+)\}$", ENTRYPOINT, re.MULTILINE)
    assert default is not None
    assert int(default[1]) == StackSettings.model_fields["postgres_max_connections"].default == Supply().max_connections


def test_the_same_bounds() -> None:
    """Of whole numbers and of times."""
    assert (constant("LARGEST_INT"), constant("LARGEST_SERVER")) == (LARGEST_INT, LARGEST_SERVER)
    checked = dict(re.findall(rf"number {PREFIX}([A-Z_]+) (\d+) \$LARGEST_INT", ENTRYPOINT))
    for name, least in checked.items():
        field = PgBouncerSettings.model_fields[name.lower()]
        assert {"ge": int(least), "le": LARGEST_INT}.items() <= _bounds(field.metadata).items(), name
    whole = {name for name, field in PgBouncerSettings.model_fields.items() if field.annotation is int}
    assert whole - {"port"} == {name.lower() for name in checked}


def _bounds(metadata: list[Any]) -> dict[str, float]:
    """{"ge": 1, "le": 5} of a field."""
    return {name: getattr(each, name) for each in metadata for name in ("ge", "le", "gt") if hasattr(each, name)}
