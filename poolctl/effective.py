"""Effective settings with their origins, as rows, JSON or `.env` text. Pure; a secret is never in any of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from config import Settings
from config.environment import Environment, Value
from config.variables import VARIABLES, Variable, as_text

MASK = "***"
DEFAULT = "default"
URLS = ("DATABASE_URL", "REDIS_URL")

# A variable that is no secret by its name may hold one: BOT_API_URL=https://user:password@host.
_URL_WITH_PASSWORD = re.compile(r"://[^/\s]*:[^/\s]*@")
_NEEDS_NO_QUOTES = re.compile(r"[\w.,:/@%+-]+", re.ASCII)


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


def effective_settings(settings: Settings, environment: Environment) -> Iterator[EffectiveSetting]:
    """All settings, in the order of the reference. `environment` is what `settings` were loaded from."""
    for variable in VARIABLES:
        origin = settings.origins[variable.name]
        from_file = origin.startswith("file ")
        given = None
        if origin != DEFAULT and origin not in URLS:
            given = environment.find(f"{variable.name}_FILE" if from_file else variable.name, settings.role)
        value = _value(settings, variable, given)
        text = as_text(value)
        hidden = value is not None and (variable.secret or _URL_WITH_PASSWORD.search(text) is not None)
        yield EffectiveSetting(
            variable=variable.name,
            value=MASK if hidden else list(value) if isinstance(value, tuple) else value,
            text=MASK if hidden else text,
            origin=origin,
            given=given if from_file or not hidden else None,
        )


def as_json(settings: Settings, environment: Environment) -> str:
    """An object with `role`, `legacy`, `warnings` and `settings`: name → `{"value": …, "origin": …}`."""
    return json.dumps(
        {
            "role": settings.role,
            "legacy": settings.legacy,
            "warnings": settings.warnings,
            "settings": {
                setting.variable: {"value": setting.value, "origin": setting.origin}
                for setting in effective_settings(settings, environment)
            },
        },
        indent=2,
        ensure_ascii=False,
    )


def as_env(settings: Settings, environment: Environment) -> str:
    """Lines of a `.env` file that give the same settings again once the secrets are put in.

    What was set is an assignment. Secrets, defaults and what a URL says are comments.
    """
    lines = [f"# Settings of the role {settings.role}. In comments: defaults, parts of a URL, and secrets as {MASK}."]
    for setting in effective_settings(settings, environment):
        if setting.given is not None:
            lines.append(f"{setting.given.variable}={quoted(setting.given.text)}")
        else:
            text = setting.text if setting.value not in (None, []) else ""
            lines.append(_one_line(f"# {setting.variable}={text}  {setting.origin}"))
    return "\n".join(lines)


def quoted(text: str) -> str:
    """`text` as the value of a line in `.env`: in single quotes where it is more than a plain word.

    In single quotes neither python-dotenv nor compose replaces anything but `\\'` and `\\\\`.
    """
    if _NEEDS_NO_QUOTES.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _value(settings: Settings, variable: Variable, given: Value | None) -> Any:
    if not variable.field:  # a URL; what it says is in the variables that it stands for
        return SecretStr(MASK) if settings.origins[variable.name] != DEFAULT else None
    group = getattr(settings, variable.group.lower())
    if variable.name == "DB_APPLICATION_NAME" and settings.origins[variable.name] not in URLS:
        # Filled in, it would hold the process id of this very command.
        return given.text if given is not None else type(group).model_fields[variable.field].get_default()
    return getattr(group, variable.field)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
