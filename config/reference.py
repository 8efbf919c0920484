"""The settings as documentation: README's table and `.env.example`, both made from the groups."""

from __future__ import annotations

import textwrap

from config.variables import VARIABLES, Variable

TITLES = {
    "DB": "Database. Any DB_* can be given for one role only: WORKER_DB_POOL_MAX=5, BOT_DB_POOL_TIMEOUT=10",
    "REDIS": "Job queue",
    "WORKER": "Worker",
    "BOT": "Bot",
    "FLEET": "Fleet",
    "LOG": "Log",
}


def markdown_table() -> str:
    """Every variable with its default and meaning, as a Markdown table."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [f"| `{v.name}` | {_cell(v)} | {v.meaning}{' (secret)' if v.secret else ''} |" for v in VARIABLES]
    return "\n".join(rows)


def env_example() -> str:
    """A `.env` in which every variable is commented out and shows its default."""
    lines = [
        "# Copy to .env and uncomment what you change. The environment wins over this file; an empty value is unset.",
        "# Every variable marked (secret) can also be read from a file: DB_PASSWORD_FILE=/run/secrets/db_password",
    ]
    group = ""
    for variable in VARIABLES:
        if variable.group != group:
            group = variable.group
            lines += ["", f"# --- {TITLES[group]}"]
        secret = " (secret)" if variable.secret else ""
        lines += textwrap.wrap(
            f"{variable.meaning}{secret}. Default: {variable.default}".replace("`", "").replace("**", ""),
            width=116,
            initial_indent="# ",
            subsequent_indent="#   ",
        )
        follows = "`" in variable.default or variable.default == "–"  # none, or one that follows from another
        lines.append(f"#{variable.name}={'' if follows else variable.default}")
    return "\n".join(lines) + "\n"


def _cell(variable: Variable) -> str:
    return variable.default if variable.default == "–" or "`" in variable.default else f"`{variable.default}`"
