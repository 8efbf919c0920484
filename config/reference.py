"""The settings as documentation and as what compose hands on, all made from the groups.

README's table, `.env.example`, `docker-compose.settings.yml`, and the list in `docker-stack.yml`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from config.environment import ROLES
from config.variables import COMPOSE_VARIABLES, VARIABLES, Variable

TITLES = {
    "DB": "Database. Any DB_* can be given for one role only: WORKER_DB_POOL_MAX=5, BOT_DB_POOL_TIMEOUT=10",
    "REDIS": "Job queue",
    "WORKER": "Worker",
    "BOT": "Bot",
    "FLEET": "Fleet",
    "LOG": "Log",
    "PGBOUNCER": "PgBouncer, by its own names",
    "STACK": "Docker Compose",
}
# Other libraries' names. They are no settings, but they must reach a process for it to refuse them.
REFUSED = ("DB_POOL_SIZE", "DB_MAX_OVERFLOW", "DB_POOL_RECYCLE")


def markdown_table() -> str:
    """Every variable with its default and meaning, as a Markdown table."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [
        f"| `{v.name}` | {_cell(v)} | {v.meaning}{' (secret)' if v.secret else ''} |"
        for v in (*VARIABLES, *COMPOSE_VARIABLES)
    ]
    return "\n".join(rows)


def env_example() -> str:
    """A `.env` in which every variable is commented out and shows its default."""
    lines = [
        "# Copy to .env and uncomment what you change. The environment wins over this file; an empty value is unset.",
        "# Every variable marked (secret) can also be read from a file: DB_PASSWORD_FILE=/run/secrets/db_password",
        "# In Docker Compose what leads to a server (DB_HOST, DB_USER, REDIS_HOST, PGBOUNCER_HOST, passwords) is set",
        "# for you unless it stands here.",
    ]
    for title, variables in _sections((*VARIABLES, *COMPOSE_VARIABLES)):
        lines += ["", f"# --- {title}"]
        for variable in variables:
            lines += [*_explained(variable), f"#{variable.name}={_default(variable)}"]
    return "\n".join(lines) + "\n"


def compose_settings() -> str:
    """A compose file whose one service hands on every setting that is set, for the others to extend."""
    lines = [
        "# Every setting, handed on to a container only where `.env` or the shell sets it. Other services extend this",
        "# one; it never runs itself. Written by `make reference`. Passwords are no settings of a container: they come",
        "# as files.",
        "services:",
        "  settings:",
        "    environment:",
    ]
    lines += [f"      {line}" for line in _handed_on()]
    return "\n".join(lines) + "\n"


def swarm_settings() -> str:
    """The same list for docker-stack.yml, which can extend nothing.

    Less COMPOSE_PROFILES, because there a second file is the switch; and WORKERS, because a service whose environment
    changes is started anew, and more workers are no reason for those that run.
    """
    return "\n".join(f"  {line}" for line in _handed_on() if line not in ("COMPOSE_PROFILES:", "WORKERS:"))


def _handed_on() -> Iterator[str]:
    """Keys without a value: such a one is absent in the container when it is unset.

    No password is among them, only the URLs, which may be given plainly.
    """
    handed_on = [v for v in VARIABLES if not v.secret or not v.field]
    for title, variables in _sections(handed_on):
        yield f"# {title.partition('. ')[0]}"
        yield from (f"{variable.name}:" for variable in variables)
    of_roles = [v.name for v in handed_on if v.group == "DB" and v.field]
    for role in ROLES:
        yield f"# The database for the {role} only"
        yield from (f"{role.upper()}_{name}:" for name in of_roles)
    yield "# No settings: other libraries' names, handed on so that they are refused with the right name"
    yield from (f"{name}:" for name in REFUSED)


def _sections(variables: Sequence[Variable]) -> Iterator[tuple[str, list[Variable]]]:
    """The variables by their groups, each with its title."""
    for group, title in TITLES.items():
        yield title, [variable for variable in variables if variable.group == group]


def _explained(variable: Variable) -> list[str]:
    """Meaning and default, as comments."""
    secret = " (secret)" if variable.secret else ""
    return textwrap.wrap(
        f"{variable.meaning}{secret}. Default: {variable.default}".replace("`", "").replace("**", ""),
        width=116,
        initial_indent="# ",
        subsequent_indent="#   ",
    )


def _default(variable: Variable) -> str:
    """The default as a value; nothing where there is none, or where it follows from another setting."""
    return "" if "`" in variable.default or variable.default == "–" else variable.default


def _cell(variable: Variable) -> str:
    return variable.default if variable.default == "–" or "`" in variable.default else f"`{variable.default}`"
