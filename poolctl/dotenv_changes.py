"""What somebody orders of the compose stack, and which lines of `.env` change for it. Pure.

`.env` and the shell are mappings here, as they stand: compose takes a variable from the shell even where it is empty,
and a process takes an empty one as unset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from config import SettingsError
from config.environment import ROLES, Environment, Value, read
from config.errors import Fault
from config.groups import LARGEST_POOL, DatabaseSettings
from config.stack import ALL_PROFILES, PROFILE
from config.variables import known_names, secret_names
from fleet.ways_out import POOLED_POOL_MAX
from poolctl.dotenv_text import PLAIN

DIRECT, POOLED = "postgres", "pgbouncer"  # the stack's hosts
URL_OVERRIDE = "docker-compose.database-url.yml"  # hands DATABASE_URL on as a file
UNREAD = ("COMPOSE_ENV_FILES", "COMPOSE_DISABLE_ENV_FILE")  # with these compose reads no `.env`
REASON = "poolctl deploy: COMPOSE_PROFILES decides"
_OPEN_SECRETS = {"DATABASE_URL", "REDIS_URL"}  # the containers have the others from files alone
_FROM_FILES = {name + end for name in secret_names() - _OPEN_SECRETS for end in ("", "_FILE")}
HANDED_ON = known_names() - _FROM_FILES  # what compose takes from the shell or `.env`

Variables = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What somebody asked for; None = as it is. Raises SettingsError when made of what cannot be."""

    workers: int | None = None
    pgbouncer: bool | None = None  # through PgBouncer, or straight to the server
    pool_max: int | None = None

    def __post_init__(self) -> None:
        faults = []
        for option, number in (("--workers", self.workers), ("--pool-max", self.pool_max)):
            if number is not None and not 1 <= number <= LARGEST_POOL:
                bound = "less than 1" if number < 1 else f"greater than {LARGEST_POOL}"
                faults.append(Fault(f"{option} {number}", f"is {bound}", f"give a number from 1 to {LARGEST_POOL}"))
        if faults:
            raise SettingsError(faults)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to change."""
        return self == Order()

    def __str__(self) -> str:
        """The command line."""
        words = ["poolctl deploy"]
        if self.workers is not None:
            words.append(f"--workers {self.workers}")
        if self.pgbouncer is not None:
            words.append("--pgbouncer" if self.pgbouncer else "--direct")
        if self.pool_max is not None:
            words.append(f"--pool-max {self.pool_max}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Change:
    """One line of `.env` and what is to become of it; a value of None comments it out."""

    name: str
    value: str | None


def changes(order: Order, dotenv: Variables, shell: Variables) -> list[Change]:
    """The lines of `.env` that the order is about, each once. Raises SettingsError for an order that cannot be."""
    _refuse_url(order, {**dotenv, **shell})
    found: list[Change] = []
    if order.workers is not None:
        found.append(Change("WORKERS", str(order.workers)))
    if order.pgbouncer is not None:
        found += _switched(order.pgbouncer, dotenv)
    pool = list(_pool(order, dotenv))
    found += pool
    if pool:
        found += _lowered_floors(applied(dotenv, pool))
    return found


def applied(dotenv: Variables, changed: list[Change]) -> dict[str, str]:
    """What `.env` sets after the changes."""
    gone = {change.name for change in changed if change.value is None}
    values = {name: value for name, value in dotenv.items() if name not in gone}
    return values | {change.name: change.value for change in changed if change.value is not None}


def overriding(dotenv: Variables, shell: Variables) -> list[str]:
    """Variables of the shell because of which compose would not do what `.env` says: it prefers them."""
    names = {name for name in HANDED_ON & shell.keys() if shell[name].strip() != dotenv.get(name, "").strip()}
    return sorted(names | {name for name in UNREAD if shell.get(name, "").strip()})


def contradicting(pgbouncer: bool, values: Variables) -> list[str]:
    """Variables that lead a process elsewhere than the profile does. Raises SettingsError for a foreign database."""
    names: set[str] = set()
    while found := set(_contradicting(pgbouncer, {n: v for n, v in values.items() if n not in names})):
        names |= found  # without them others count: DB_HOST, where WORKER_DB_HOST and BOT_DB_HOST did
    return sorted(names)


def _contradicting(pgbouncer: bool, values: Variables) -> Iterator[str]:
    environment = read(values)
    for role in ROLES:
        yield from _wrong_address(environment, role, POOLED if pgbouncer else DIRECT)
        pooler = environment.find("DB_POOLER", role)
        if pooler is not None and pooler.text in (("none",) if pgbouncer else ("transaction", "session")):
            yield pooler.variable


def _refuse_url(order: Order, values: Variables) -> None:
    variable = url_variable(values)
    if variable is None:
        return
    faults = []
    if order.pool_max is not None:
        faults.append(
            Fault(
                f"--pool-max {order.pool_max}",
                f"and {variable} exclude each other",
                f"leave out --pool-max, or unset {variable}",
            )
        )
    if order.pgbouncer is not None:
        option = "--pgbouncer" if order.pgbouncer else "--direct"
        faults.append(
            Fault(
                option,
                f"cannot move the processes, as {variable} says where the database is",
                f"unset {variable}, or change the address in it",
            )
        )
    if faults:
        raise SettingsError(faults)


def url_variable(values: Variables) -> str | None:
    """What gives the processes a DATABASE_URL, if anything does."""
    for name in ("DATABASE_URL", "DATABASE_URL_FILE"):
        if values.get(name, "").strip():
            return name
    files = values.get("COMPOSE_FILE", "").split(values.get("COMPOSE_PATH_SEPARATOR") or ":")
    return f"{URL_OVERRIDE} in COMPOSE_FILE" if any(PurePath(file).name == URL_OVERRIDE for file in files) else None


def _switched(pgbouncer: bool, dotenv: Variables) -> Iterator[Change]:
    text = dotenv.get("COMPOSE_PROFILES", "")
    items = [item for item in text.split(",") if item.strip()]
    if not PLAIN.fullmatch(text):
        raise SettingsError([Fault("COMPOSE_PROFILES", "is not names of profiles", "write them comma-separated", text)])
    if pgbouncer and not has_pgbouncer(dotenv):
        yield Change("COMPOSE_PROFILES", ",".join([*items, PROFILE]))
    if not pgbouncer and ALL_PROFILES in map(str.strip, items):
        remedy = "name the profiles that you want in .env"
        raise SettingsError([Fault("COMPOSE_PROFILES", "is every profile, PgBouncer's too", remedy, text)])
    if not pgbouncer and has_pgbouncer(dotenv):
        yield Change("COMPOSE_PROFILES", ",".join(item for item in items if item.strip() != PROFILE).strip())
    yield from (Change(name, None) for name in contradicting(pgbouncer, dotenv))


def has_pgbouncer(values: Variables) -> bool:
    """Whether compose starts PgBouncer, by the profile's name or as one of all."""
    return any(name.strip() in (PROFILE, ALL_PROFILES) for name in values.get("COMPOSE_PROFILES", "").split(","))


def ports(values: Variables) -> dict[str, str]:
    """The ports of the stack's hosts."""
    return {DIRECT: "5432", POOLED: values.get("PGBOUNCER_PORT", "").strip() or "6432"}


def _wrong_address(environment: Environment, role: str, wanted: str) -> Iterator[str]:
    """The variables of a role's address, if that is the stack's other one, or no address at all."""
    host, port = environment.find("DB_HOST", role), environment.find("DB_PORT", role)
    given = [each for each in (host, port) if each is not None]
    usual_ports = ports(environment.values)
    if host is not None and host.text not in usual_ports:
        raise SettingsError([_foreign(host, "is a database outside of this stack")])
    if port is not None and port.text not in usual_ports.values():
        raise SettingsError([_foreign(port, "is no port of this stack")])
    name = host.text if host else wanted
    # The image fills in PgBouncer's port for DB_HOST, not for a role's own.
    usual = usual_ports[name] if host is None or host.variable == "DB_HOST" else usual_ports[DIRECT]
    if (name, port.text if port else usual) != (wanted, usual_ports[wanted]):
        yield from (each.variable for each in given)


def _foreign(value: Value, problem: str) -> Fault:
    return Fault(
        value.variable,
        problem,
        f"unset {value.variable} for the stack's own, or leave out --pgbouncer and --direct",
        None if "@" in value.text else value.text,  # it may be a URL, with a password
    )


def _pool(order: Order, dotenv: Variables) -> Iterator[Change]:
    """A worker's pool. WORKER_DB_POOL_MAX is what counts where it is set, and then DB_POOL_MAX stays the bot's."""
    of_workers = bool(dotenv.get("WORKER_DB_POOL_MAX", "").strip())
    if order.pool_max is not None:
        yield Change("WORKER_DB_POOL_MAX" if of_workers else "DB_POOL_MAX", str(order.pool_max))
    elif order.pgbouncer and not of_workers:
        # What somebody chose after the switch stays, and so does a smaller pool.
        given = dotenv.get("DB_POOL_MAX", "").strip()
        now = _number(given) or DatabaseSettings().pool_max
        if not given or (now > POOLED_POOL_MAX and not has_pgbouncer(dotenv)):
            yield Change("DB_POOL_MAX", str(min(now, POOLED_POOL_MAX)))


def _lowered_floors(values: Variables) -> Iterator[Change]:
    """The floors that are above their ceilings now."""
    environment = read(values)
    floors: dict[str, int] = {}
    for role in ROLES:
        low, high = environment.find("DB_POOL_MIN", role), environment.find("DB_POOL_MAX", role)
        ceiling = DatabaseSettings().pool_max if high is None else _number(high.text)
        floor = None if low is None else _number(low.text)
        if low is not None and floor is not None and ceiling is not None and floor > ceiling:
            floors[low.variable] = min(ceiling, floors.get(low.variable, ceiling))
    yield from (Change(name, str(floor)) for name, floor in floors.items())


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
