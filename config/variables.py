"""The table of all variables, read off the groups: what README shows and what misspellings are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import SecretStr

from config.environment import ROLES
from config.groups import (
    BotSettings,
    DatabaseSettings,
    FleetSettings,
    Group,
    LogSettings,
    RedisSettings,
    WorkerSettings,
)
from config.stack import PgBouncerSettings, StackSettings

POOL_PREFIXES = ("DB_POOL_", "DB_MAX_", "DB_LEAK_")


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable: its name, default as text, meaning, what it may be, and where it belongs."""

    name: str
    default: str
    meaning: str
    secret: bool
    group: str  # "DB", "REDIS", "WORKER", "BOT", "FLEET", "LOG", "PGBOUNCER" or "STACK"
    field: str = ""  # of the group; empty for a URL, which stands for several, and for what compose alone reads
    wanted: str = "a URL"  # "a whole number from 1 to 65535"

    @property
    def is_pool_setting(self) -> bool:
        """Whether it sizes or guards the pool, and therefore excludes DATABASE_URL.

        DB_POOLER does not: it says what the address is of, as a URL may need to have said.
        """
        return self.name.startswith(POOL_PREFIXES)


@cache
def variables_of(group: type[Group]) -> tuple[Variable, ...]:
    """A group's variables, in the order of its fields."""
    prefix = str(group.model_config["env_prefix"])
    schema = group.model_json_schema()["properties"]
    variables = []
    for field, info in group.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        if extra.get("variable") == "":  # set by a URL alone
            continue
        variables.append(
            Variable(
                name=str(extra.get("variable") or f"{prefix}{field.upper()}"),
                default=str(extra.get("default_text") or as_text(info.get_default())),
                meaning=info.description or "",
                secret="'password'" in str(schema[field]),
                group=prefix.rstrip("_") or group.__name__.removesuffix("Settings").upper(),
                field=field,
                wanted=_wanted(schema[field]),
            )
        )
    return tuple(variables)


def as_text(value: Any) -> str:
    """A setting's value as it is written in an environment, a secret too; `–` for none."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "–"
    if isinstance(value, float):
        return f"{value:g}" if value < 1e6 else f"{value:.0f}"
    return "–" if value is None else str(value)


def _wanted(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema: 'true or false', 'a whole number from 1 to 65535'."""
    for alternative in schema.get("anyOf", ()):
        if alternative.get("type") != "null":
            return _wanted(alternative)
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    match schema.get("type"):
        case "boolean":
            return "true or false"
        case "integer":
            return f"a whole number from {schema['minimum']} to {schema['maximum']}"
        case "number" if "exclusiveMinimum" in schema:
            return f"a number above {schema['exclusiveMinimum']:g}, up to {schema['maximum']:.0f}"
        case "number":
            return f"a number from {schema['minimum']:g} to {schema['maximum']:.0f}"
        case "string" if schema.get("pattern", "").startswith("^[A-Za-z_]"):
            return "the dotted name of a module"
        case "string" if schema.get("pattern", "").startswith("^[a-z_]"):
            return "a name of lower-case letters, digits and underscores"
        case "string" if schema.get("pattern", "").endswith(":[0-9]{1,5}$"):
            return "host:port"
        case "array":
            return f"{_wanted(schema['items'])}, or several, comma-separated"
        case _:
            return "a text"


DATABASE_URL = Variable(
    "DATABASE_URL",
    "–",
    "legacy: one URL instead of host, port, user, password and name; excludes every pool setting",
    secret=True,
    group="DB",
)
REDIS_URL = Variable(
    "REDIS_URL",
    "–",
    "one URL instead of host, port, db, username and password; `rediss://` is TLS and verifies the server's name",
    secret=True,
    group="REDIS",
)
VARIABLES: tuple[Variable, ...] = (
    *variables_of(DatabaseSettings),
    DATABASE_URL,
    *variables_of(RedisSettings),
    REDIS_URL,
    *variables_of(WorkerSettings),
    *variables_of(BotSettings),
    *variables_of(FleetSettings),
    *variables_of(LogSettings),
    *variables_of(PgBouncerSettings),
    *variables_of(StackSettings),
)
# What docker-compose.yml alone reads: no process is told. `${NAME:-default}` there has the same default.
COMPOSE_VARIABLES: tuple[Variable, ...] = tuple(
    Variable(name, default, meaning, secret=False, group="STACK")
    for name, default, meaning in (
        ("SECRETS_DIR", "./secrets", "folder of the files with passwords, which `make secrets` makes"),
        ("POOLCTL_IMAGE", "poolctl:latest", "image of worker, bot, migrate and poolctl"),
        ("PGBOUNCER_IMAGE", "poolctl-pgbouncer:latest", "image of PgBouncer"),
        ("POSTGRES_IMAGE", "postgres:17-alpine", "image of PostgreSQL"),
        ("REDIS_IMAGE", "redis:8-alpine", "image of Redis"),
        ("DEV_POSTGRES_PORT", "5432", "port of this machine for PostgreSQL, with docker-compose.dev.yml"),
        ("DEV_PGBOUNCER_PORT", "6432", "port of this machine for PgBouncer, with docker-compose.dev.yml"),
        ("DEV_REDIS_PORT", "6379", "port of this machine for Redis, with docker-compose.dev.yml"),
    )
)
POOL_SETTINGS: tuple[str, ...] = tuple(v.name for v in VARIABLES if v.is_pool_setting)


def _for_roles(names: set[str]) -> frozenset[str]:
    return frozenset(names | {f"{role.upper()}_{n}" for role in ROLES for n in names if n.startswith("DB_")})


@cache
def known_names() -> frozenset[str]:
    """Every name that means something: variables, compose's own, `*_FILE` of secrets, `DB_*` with a role's prefix."""
    names = {v.name for v in (*VARIABLES, *COMPOSE_VARIABLES)}
    return _for_roles(names | {f"{v.name}_FILE" for v in VARIABLES if v.secret})


@cache
def secret_names() -> frozenset[str]:
    """Every name whose value is a secret, also with a role's prefix."""
    return _for_roles({v.name for v in VARIABLES if v.secret})
