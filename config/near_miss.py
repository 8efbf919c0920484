"""Names that look like a setting and are none: other libraries' names, misspellings, names that mean nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from config.environment import ROLES
from config.errors import Fault
from config.variables import COMPOSE_VARIABLES, POOL_SETTINGS, VARIABLES, known_names

SQLALCHEMY_POOL_SIZE, SQLALCHEMY_MAX_OVERFLOW = 5, 10  # its defaults
GREATEST_DISTANCE = 2

# Other libraries' names (SQLAlchemy, asyncpg, psycopg, Django, HikariCP, node-postgres) after DB_, PG_, … is taken off.
_TRANSLATIONS = {
    "POOL_RECYCLE": "DB_MAX_LIFETIME",
    "POOL_MAX_LIFETIME": "DB_MAX_LIFETIME",
    "CONN_MAX_AGE": "DB_MAX_LIFETIME",
    "POOL_PRE_PING": "DB_POOL_PRE_PING",
    "POOL_PING": "DB_POOL_PRE_PING",
    "POOL_TIMEOUT": "DB_POOL_TIMEOUT",
    "POOL_ACQUIRE_TIMEOUT": "DB_POOL_TIMEOUT",
    "MAX_WAITING": "DB_POOL_MAX_WAITING",
    "POOL_MAX_WAITING": "DB_POOL_MAX_WAITING",
    "POOL_RESET_ON_RETURN": "DB_POOL_RESET",
    "RESET_ON_RETURN": "DB_POOL_RESET",
    "ECHO_POOL": "DB_POOL_LOG",
    "POOL_ECHO": "DB_POOL_LOG",
    "LEAK_DETECTION_THRESHOLD": "DB_LEAK_THRESHOLD",
    "POOLER_MODE": "DB_POOLER",
    "POOL_MIN": "DB_POOL_MIN",
    "POOL_MIN_SIZE": "DB_POOL_MIN",
    "POOL_MINSIZE": "DB_POOL_MIN",
    "MIN_POOL_SIZE": "DB_POOL_MIN",
    "MIN_SIZE": "DB_POOL_MIN",
    "MINSIZE": "DB_POOL_MIN",
    "POOL_MAX": "DB_POOL_MAX",
    "POOL_MAX_SIZE": "DB_POOL_MAX",
    "POOL_MAXSIZE": "DB_POOL_MAX",
    "MAX_POOL_SIZE": "DB_POOL_MAX",
    "MAXIMUM_POOL_SIZE": "DB_POOL_MAX",
    "POOL_MAX_CONNECTIONS": "DB_POOL_MAX",
    "MAX_CONNECTIONS": "DB_POOL_MAX",
    "MAX_SIZE": "DB_POOL_MAX",
    "MAXSIZE": "DB_POOL_MAX",
    "POOL_MAX_QUERIES": "DB_MAX_QUERIES",
    "POOL_IDLE_TIMEOUT": "DB_MAX_IDLE_TIME",
    "POOL_MAX_IDLE_TIME": "DB_MAX_IDLE_TIME",
    "IDLE_TIMEOUT": "DB_MAX_IDLE_TIME",
    "MAX_INACTIVE_CONNECTION_LIFETIME": "DB_MAX_IDLE_TIME",
}
_OF_THE_SERVER = "PG_MAX_CONNECTIONS"  # its limit and no pool's, by the name of a common image
_WITHOUT_COUNTERPART = {
    "POOL_USE_LIFO": "remove it: the connection returned last is always reused first here",
    "DISABLE_SQLALCHEMY_POOLING": "remove it: every process has a pool; DB_POOL_MODE=none is to do without",
    "POOLCLASS": "remove it: every process has a pool; DB_POOL_MODE=none is SQLAlchemy's NullPool",
}
# Without a prefix only what SQLAlchemy's users write so: other words are too common to claim.
_BARE = ("POOL_RECYCLE", "POOL_PRE_PING", "POOL_TIMEOUT", "POOL_SIZE", "MAX_OVERFLOW", *_WITHOUT_COUNTERPART)
_PREFIX = re.compile(r"^(?:(?P<role>WORKER|BOT)_)?(?P<library>DB_|PG_|POSTGRES_|DATABASE_|SQLALCHEMY_)?(?P<rest>.+)$")

_HINTS = {  # for names that are not the pool's: a warning says what was probably meant
    "DB_URL": "DATABASE_URL",
    "DB_URI": "DATABASE_URL",
    "DB_DSN": "DATABASE_URL",
    "DB_USERNAME": "DB_USER",
    "DB_PASS": "DB_PASSWORD",
    "DB_DATABASE": "DB_NAME",
    "DB_HOSTNAME": "DB_HOST",
    "DB_SSL": "DB_SSLMODE",
    "DB_SSL_MODE": "DB_SSLMODE",
    "DB_PGBOUNCER": "DB_POOLER",
    "DB_POOL": "DB_POOL_MAX",
    "PGBOUNCER_POOL_SIZE": "PGBOUNCER_DEFAULT_POOL_SIZE",
    "PGBOUNCER_MAX_CLIENT_CONNECTIONS": "PGBOUNCER_MAX_CLIENT_CONN",
}
_OURS = ("DB_", "PGBOUNCER_")  # meant for nobody else: any unknown name is told
_ALSO_OTHERS = ("WORKER_", "BOT_", "REDIS_", "LOG_", "DATABASE_", "POSTGRES_", "COMPOSE_")  # only one close to ours
# What Kubernetes injects for a Service named db: not ours, and nobody's mistake.
_SERVICE_LINK = re.compile(r"_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)$")


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A variable that was surely meant as a pool setting: its name, the right name if there is one, the remedy."""

    variable: str
    meant: str | None
    remedy: str


def pool_near_misses(values: Mapping[str, str]) -> Iterator[NearMiss]:
    """Every variable in `values` that is not a setting and was meant as a pool setting."""
    known = known_names()
    for name in values:
        if name in known:
            continue
        match = _PREFIX.match(name)
        role, library, rest = match.group("role", "library", "rest") if match else (None, None, name)
        prefix = f"{role}_" if role else ""
        if rest in ("POOL_SIZE", "MAX_OVERFLOW") and (library or role or rest in _BARE):
            yield NearMiss(name, None, _sqlalchemy_remedy(values, name.removesuffix(rest), prefix))
        elif rest in _WITHOUT_COUNTERPART:
            yield NearMiss(name, None, _WITHOUT_COUNTERPART[rest])
        elif rest in _TRANSLATIONS and (library or role or rest in _BARE) and name != _OF_THE_SERVER:
            meant = prefix + _TRANSLATIONS[rest]
            yield NearMiss(name, meant, f"the name here is {meant}")
        elif (meant_name := _closest_pool_setting(name)) is not None:
            yield NearMiss(name, meant_name, f"did you mean {meant_name}?")
        elif name.startswith("PG_POOL_"):
            yield NearMiss(name, None, f"pool settings here are {', '.join(POOL_SETTINGS)}")


def faults(values: Mapping[str, str]) -> list[Fault]:
    """A fault for each near miss of a pool setting, and for a `*_FILE` of something that is no secret."""
    found = [
        Fault(miss.variable, "is not a setting", miss.remedy, value=values[miss.variable])
        for miss in pool_near_misses(values)
    ]
    missed = {fault.variable for fault in found}
    for name in values:
        if name not in known_names() and re.fullmatch(r"(WORKER|BOT)_(DATABASE_URL|REDIS_[A-Z_]+)", name):
            plain = name.partition("_")[2]
            if plain in known_names():
                found.append(Fault(name, "is not a setting", f"only DB_* can be given for one role: set {plain}"))
                missed.add(name)
    for name in values:
        setting = name.removesuffix("_FILE")
        if name != setting and name not in missed and name not in known_names() and setting in known_names():
            found.append(
                Fault(name, "is not a setting", f"only secrets are read from files: set {setting}", values[name])
            )
            missed.add(name)
    return found


def warnings(values: Mapping[str, str]) -> list[str]:
    """A line for each `DB_*` or `PGBOUNCER_*` name that means nothing, and for near misses that are not the pool's."""
    known = known_names()
    handled = {fault.variable for fault in faults(values)}
    lines = []
    for name in sorted(values):
        if name in known or name in handled or _SERVICE_LINK.search(name):
            continue
        bare = re.sub(r"^(WORKER|BOT)_(?=DB_)", "", name)
        meant = _HINTS.get(bare) or _closest(name, [v.name for v in (*VARIABLES, *COMPOSE_VARIABLES)])
        if meant and name.startswith(_OURS + _ALSO_OTHERS):
            lines.append(f"{name} is not a setting and is ignored: did you mean {meant}?")
        elif bare.startswith(_OURS):
            lines.append(f"{name} is not a setting and is ignored: remove it, or see README for the settings")
    return lines


def _sqlalchemy_remedy(values: Mapping[str, str], library: str, prefix: str) -> str:
    """SQLAlchemy's pool_size and max_overflow in our terms: the floor, and the floor plus the overflow."""
    size_text = values.get(f"{library}POOL_SIZE")
    overflow_text = values.get(f"{library}MAX_OVERFLOW")
    try:
        size = SQLALCHEMY_POOL_SIZE if size_text is None else int(size_text)
        overflow = SQLALCHEMY_MAX_OVERFLOW if overflow_text is None else int(overflow_text)
    except ValueError:
        size, overflow = 0, -1
    if size < 1 or overflow < 0:  # SQLAlchemy: pool_size=0 and max_overflow=-1 mean no limit
        return f"set {prefix}DB_POOL_MIN and {prefix}DB_POOL_MAX: a pool always has a limit here"
    remedy = f"set {prefix}DB_POOL_MIN={size}, {prefix}DB_POOL_MAX={size + overflow}"
    if size_text is None:
        return f"{remedy} (SQLAlchemy's default pool_size {SQLALCHEMY_POOL_SIZE} taken for the other)"
    if overflow_text is None:
        return f"{remedy} (SQLAlchemy's default max_overflow {SQLALCHEMY_MAX_OVERFLOW} taken for the other)"
    return remedy


def _closest_pool_setting(name: str) -> str | None:
    return _closest(name, [*POOL_SETTINGS, *(f"{role.upper()}_{p}" for role in ROLES for p in POOL_SETTINGS)])


def _closest(name: str, candidates: list[str]) -> str | None:
    """The candidate within edit distance 2, the nearest first; letter case is not counted."""
    upper = name.upper()
    distances = [(edit_distance(upper, candidate), candidate) for candidate in candidates]
    distance, candidate = min(distances)
    return candidate if distance <= GREATEST_DISTANCE else None


def edit_distance(a: str, b: str, bound: int = GREATEST_DISTANCE) -> int:
    """Damerau-Levenshtein distance (optimal string alignment), or `bound + 1` if it is greater than `bound`."""
    if abs(len(a) - len(b)) > bound:
        return bound + 1
    before_last: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], before_last[j - 2] + 1)
        if min(row) > bound:
            return bound + 1
        before_last, last = last, row
    return min(last[-1], bound + 1)
