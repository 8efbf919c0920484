"""The settings themselves, in frozen groups: each field is one variable, with its bounds and its meaning.

This file and config/stack.py are the single source of README's table, of `.env.example` and of
`docker-compose.settings.yml` (`make reference` writes all three).
A field's default is what the table shows; where a default follows from another setting, `default_text` says how.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

LARGEST_POOL = 10_000  # asyncpg makes an object for each possible connection when the pool is made
LONGEST_S = 365 * 86_400.0  # a year; longer is a slip of the keyboard, and overflows Redis' milliseconds


def _items(value: Any) -> Any:
    """'a, b' → ('a', 'b')."""
    return tuple(item.strip() for item in value.split(",")) if isinstance(value, str) else value


def _no_scheme(host: str) -> str:
    if "://" in host:
        raise ValueError("a URL")
    return host


Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True, pattern=r"^[^\x00]*$")]
# No URL and no user@host: what is shown in every message must not hold a password.
Host = Annotated[Name, StringConstraints(pattern=r"^[^\x00@]*$"), AfterValidator(_no_scheme)]
Port = Annotated[int, Field(ge=1, le=65_535)]
HostAndPort = Annotated[str, StringConstraints(pattern=r"^[^@/\s]+:[0-9]{1,5}$")]
Hosts = Annotated[tuple[Host, ...], BeforeValidator(_items)]
Ports = Annotated[tuple[Port, ...], BeforeValidator(_items)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_items)]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_S, allow_inf_nan=False)]
SecondsOrNone = Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False)]  # 0 switches it off

ModuleName = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=255, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
]

# Not quoted on its way into `search_path`: only names that mean the same without quotes.
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
PoolReset = Literal["auto", "always", "never"]
PoolMode = Literal["pool", "none"]
Pooler = Literal["auto", "none", "transaction", "session"]
Engine = Literal["pool", "tortoise"]
SessionAttributes = Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby"]


def setting(default: Any, description: str, *, variable: str | None = None, default_text: str | None = None) -> Any:
    """A field with what the reference needs: its meaning, and its name and default where these differ."""
    return Field(
        default=default,
        description=description,
        json_schema_extra={"variable": variable, "default_text": default_text},
    )


class Group(BaseSettings):
    """Settings that belong together.

    Values come from config/settings.py alone: pydantic-settings' own sources know neither `WORKER_DB_*` nor
    `*_FILE`, and they pass over a misspelt name in silence.
    """

    # Without hide_input_in_errors pydantic prints the input of a failed validation, a password included.
    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class DatabaseSettings(Group):
    """The database, and this process's pool of connections to it."""

    model_config = SettingsConfigDict(env_prefix="DB_")

    host: Hosts = setting(("localhost",), "server, or several, comma-separated, tried in this order")
    port: Ports = setting((5432,), "its port; one for all hosts, or one each, comma-separated")
    user: Name = setting("postgres", "role to log in as")
    password: SecretStr = setting(SecretStr("postgres"), "its password")
    name: Name = setting("postgres", "database")

    pool_min: Annotated[int, Field(ge=0, le=LARGEST_POOL)] = setting(
        2,
        "connections **of each process** that are kept open: the floor. 0 = open none until needed",
        default_text="2, or `DB_POOL_MAX` if that is less",
    )
    pool_max: Annotated[int, Field(ge=1, le=LARGEST_POOL)] = setting(
        10,
        "connections **of each process** at most: the ceiling. All processes together must fit `max_connections`",
    )
    pool_timeout: Seconds = setting(30.0, "s; longest wait for a connection of the pool")
    pool_max_waiting: Annotated[int, Field(ge=0, le=2**31 - 1)] = setting(
        0,
        "callers that may wait for a connection; further ones are refused at once, in a short burst, too. 0 = no bound",
    )
    pool_pre_ping: bool = setting(True, "check a connection that was idle before it is used")
    pool_pre_ping_idle: SecondsOrNone = setting(
        1.0, "s; only a connection idle for longer is checked, one round trip each time. 0 = before every use"
    )
    pool_reset: PoolReset = setting(
        "auto",
        "whether the session of a connection that comes back is reset, one round trip: auto, if a statement may have"
        " changed it (what a function changes is not seen); always; never",
    )
    pool_mode: PoolMode = setting(
        "pool",
        "pool; or none: each use opens a connection and closes it, at the cost of a connect; `DB_POOL_MAX` and"
        " `DB_POOL_TIMEOUT` hold all the same. What mode a pooler is in: `DB_POOLER`",
    )
    pool_log: bool = setting(
        False, "log each connect, check-out, check-in and close, at DEBUG; several lines for each query"
    )
    max_queries: Annotated[int, Field(ge=1, le=2**31 - 1)] = setting(
        50_000, "queries after which a connection is replaced"
    )
    max_idle_time: SecondsOrNone = setting(
        300.0, "s; a connection above the floor that is idle for so long is closed. 0 = never"
    )
    max_lifetime: SecondsOrNone = setting(3600.0, "s; a connection older than this is replaced. 0 = no limit")
    leak_threshold: SecondsOrNone = setting(
        0.0,
        "s; warn of a connection that is held for longer, with where it was acquired and where its task is now; costs"
        " some µs for each check-out. 0 = off",
    )

    direct_host: Hosts = setting(
        (),
        "the server itself, where `DB_HOST` is a pooler: migrations and admin queries go there",
        default_text="`DB_HOST`",
    )
    direct_port: Ports = setting((), "its port", default_text="`DB_PORT`; 5432 where `DB_DIRECT_HOST` is set")
    pooler: Pooler = setting(
        "auto",
        "what `DB_HOST` is: none, the server itself; transaction or session, a pooler in that mode; auto: found out at"
        " the first connection",
    )
    echo: bool = setting(False, "log every statement with its values")
    connect_timeout: Seconds = setting(10.0, "s; to connect, and at start to try again")
    command_timeout: SecondsOrNone = setting(60.0, "s; one statement. 0 = no limit")
    read_retry: bool = setting(
        True,
        "run a SELECT that the ORM built, outside a transaction, once more on a new connection if its own died, and"
        " wait for a server that restarts, up to `DB_CONNECT_TIMEOUT`",
    )
    sslmode: SslMode = setting("prefer", "TLS, as in libpq: disable, allow, prefer, require, verify-ca, verify-full")
    sslrootcert: Name | None = setting(None, "file of the certificate authorities that the server is checked against")
    target_session_attrs: SessionAttributes = setting(
        "any",
        "which of several servers, as in libpq: any, read-write, read-only, primary, standby, prefer-standby",
    )
    schema_name: Identifier | None = setting(None, "PostgreSQL schema, set as `search_path`", variable="DB_SCHEMA")
    application_name: Name = setting(
        "{role}@{host}:{pid}",
        "how `pg_stat_activity` names this process; `{role}`, `{host}`, `{pid}` are filled in; at most 63 bytes",
        default_text="`{role}@{host}:{pid}`",
    )
    engine: Engine = setting(
        "pool",
        "pool; or tortoise: Tortoise's own engine on asyncpg, for comparison, without the guards of the pool",
    )

    @property
    def addresses(self) -> str:
        """`host:port`, comma-separated, for messages."""
        return join_addresses(self.host, self.port)

    @property
    def direct_addresses(self) -> str:
        """`host:port` of the server itself, comma-separated, for messages."""
        return join_addresses(self.direct_host, self.direct_port)

    @property
    def has_pooler(self) -> bool:
        """Whether `host` is a pooler: the server itself is elsewhere."""
        return self.addresses != self.direct_addresses


class RedisSettings(Group):
    """The job queue's server, and this process's connections to it."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")

    host: Host = setting("localhost", "server of the job queue")
    port: Port = setting(6379, "its port")
    db: Annotated[int, Field(ge=0, le=2**31 - 1)] = setting(0, "number of its database")
    username: Name | None = setting(None, "user, where Redis has access lists")
    password: SecretStr | None = setting(None, "its password")
    tls: bool = setting(False, "", variable="")  # only by REDIS_URL=rediss://…
    max_connections: Annotated[int, Field(ge=1, le=LARGEST_POOL)] = setting(
        50, "connections of each process to Redis at most"
    )
    connect_timeout: Seconds = setting(5.0, "s; to connect")
    socket_timeout: Seconds = setting(5.0, "s; one command")
    health_check_interval: SecondsOrNone = setting(30.0, "s; an idle connection is checked before use. 0 = never")
    sentinels: Annotated[tuple[HostAndPort, ...], BeforeValidator(_items)] = setting(
        (), "Redis Sentinels, host:port, comma-separated: they say where the server is, instead of `REDIS_HOST`"
    )
    sentinel_master: Name = setting("mymaster", "what they call it")


class WorkerSettings(Group):
    """How a worker runs jobs."""

    model_config = SettingsConfigDict(env_prefix="WORKER_")

    max_jobs: Annotated[int, Field(ge=1, le=LARGEST_POOL)] = setting(
        10,
        "jobs at once in one worker; more than the pool has connections means waiting",
        default_text="`DB_POOL_MAX`",
    )
    job_timeout: Seconds = setting(300.0, "s; one job")
    max_tries: Annotated[int, Field(ge=1, le=1000)] = setting(5, "starts of one job at most")
    outage_tries: Annotated[int, Field(ge=0, le=1000)] = setting(
        20,
        "starts of one job at most that ended because the database or Redis was away or the pool full; they do not"
        " count as `WORKER_MAX_TRIES`, and 20 take about 10 minutes",
    )
    lease: Annotated[float, Field(ge=1, le=3600, allow_inf_nan=False)] = setting(
        20.0,
        "s; a worker that is silent for so long has lost its jobs to others: so long a killed worker's jobs wait, and"
        " no job may block the event loop for longer. At least three times `REDIS_SOCKET_TIMEOUT`; the same for all"
        " workers",
    )
    poll_delay: Annotated[float, Field(ge=0.001, le=60, allow_inf_nan=False)] = setting(
        1.0, "s; an idle worker looks at the queue that often, though an enqueued job wakes it"
    )
    max_payload: Annotated[int, Field(ge=1_000, le=512_000_000)] = setting(
        1_000_000, "bytes; a job whose arguments are larger is not run"
    )
    shutdown_grace: SecondsOrNone = setting(
        30.0, "s; after SIGTERM running jobs may finish for so long, then they go back to the queue"
    )
    queue: Name = setting("arq:queue", "Redis key of the queue")


class BotSettings(Group):
    """The operators' chat bot."""

    model_config = SettingsConfigDict(env_prefix="BOT_")

    token: SecretStr | None = setting(None, "token of a telegram bot")
    transport: Literal["auto", "console", "log", "telegram"] = setting(
        "auto", "auto: telegram with a token, else console on a terminal, else log"
    )
    api_url: Name | None = setting(None, "URL of the Bot API server, where it is not telegram's own")
    admins: Names = setting(
        (),
        "who may give commands on telegram: user ids, comma-separated; unset, nobody. On the console everybody may",
        default_text="–",
    )


class FleetSettings(Group):
    """All processes together: how many there are to be, what else they do, what happens when they are too many."""

    model_config = SettingsConfigDict(env_prefix="")

    workers: Annotated[int, Field(ge=1, le=LARGEST_POOL)] | None = setting(
        None,
        "worker processes of the whole fleet; `poolctl plan` and `poolctl migrate` calculate with it. Compose starts so"
        " many, 2 where it is not set",
    )
    app: ModuleName | None = setting(
        None,
        "module of your own jobs, commands and tables, as in `import shop`: docs/adopt.md. The same for all processes",
    )
    plan_check: Literal["warn", "error", "off"] = setting(
        "warn",
        "at start, when the pools of all live processes may open more connections than the server has: warn; error: do"
        " not start; off: do not look. `poolctl migrate` obeys it, too, with `WORKERS` instead of live processes"
        " (in compose it is error there)",
    )


class LogSettings(Group):
    """What a process writes to its standard error."""

    model_config = SettingsConfigDict(env_prefix="LOG_")

    level: Annotated[LogLevel, BeforeValidator(lambda value: str(value).upper())] = setting(
        "INFO", "DEBUG, INFO, WARNING, ERROR or CRITICAL"
    )
    format: Literal["auto", "text", "json"] = setting("auto", "auto: text on a terminal, JSON lines otherwise")


def join_addresses(hosts: tuple[str, ...], ports: tuple[int, ...]) -> str:
    """`host:port` pairs for messages; an IPv6 address is put in brackets."""
    each = ports * len(hosts) if len(ports) == 1 else ports
    return ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in zip(hosts, each, strict=False))
