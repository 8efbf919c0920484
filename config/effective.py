"""Effective settings with their origins, for people. Pure; a secret is never in any of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from config.environment import Environment, Value
from config.settings import Settings
from config.variables import VARIABLES, Variable, as_text

MASK = "***"
DEFAULT = "default"
URLS = ("DATABASE_URL", "REDIS_URL")

# A variable that is no secret by its name may hold one: BOT_API_URL=https://user:password@host.
_URL_WITH_PASSWORD = re.compile(r"://[^/\s]*:[^/\s]*@")


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """One setting: what it is, what it is now, and where that came from.

    `value` is as JSON has it, `text` as an environment has it; both are `***` for what must not be shown. `given` is
    the assignment that it came from, of a `NAME_FILE` too; None for a hidden value, a default, or part of a URL.
    """

    variable: str
    value: Any
    text: str
    origin: str
    given: Value | None


def effective_settings(settings: Settings, environment: Environment | None = None) -> Iterator[EffectiveSetting]:
    """All settings, in the order of the reference. `environment` is what `settings` were loaded from.

    Without it no setting has an assignment, and DB_APPLICATION_NAME is as filled in for this process.
    """
    for variable in VARIABLES:
        origin = settings.origins[variable.name]
        from_file = origin.startswith("file ")
        given = None
        if environment is not None and origin != DEFAULT and origin not in URLS:
            given = environment.find(f"{variable.name}_FILE" if from_file else variable.name, settings.role)
        value = _value(settings, variable, environment, given)
        text = as_text(value)
        hidden = value is not None and (variable.secret or _URL_WITH_PASSWORD.search(text) is not None)
        yield EffectiveSetting(
            variable=variable.name,
            value=MASK if hidden else list(value) if isinstance(value, tuple) else value,
            text=MASK if hidden else text,
            origin=origin,
            given=given if from_file or not hidden else None,
        )


def _value(settings: Settings, variable: Variable, environment: Environment | None, given: Value | None) -> Any:
    if not variable.field:  # a URL; what it says is in the variables that it stands for
        return SecretStr(MASK) if settings.origins[variable.name] != DEFAULT else None
    group = getattr(settings, variable.group.lower())
    if (
        environment is not None
        and variable.name == "DB_APPLICATION_NAME"
        and settings.origins[variable.name] not in URLS
    ):
        # Filled in, it would hold the process id of this very command.
        return given.text if given is not None else type(group).model_fields[variable.field].get_default()
    return getattr(group, variable.field)
