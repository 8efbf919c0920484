"""Effective settings as JSON or `.env` text. Pure; a secret is never in any of them."""

from __future__ import annotations

import json
import re

from config import Settings
from config.effective import MASK, effective_settings
from config.environment import Environment

_NEEDS_NO_QUOTES = re.compile(r"[\w.,:/@%+-]+", re.ASCII)


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


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
