"""`Settings.load`: the whole environment of one process, checked at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic import ValidationError

from config import database_url, near_miss, redis_url
from config.environment import Value, read
from config.errors import Fault, SettingsError
from config.group_reader import GroupReader
from config.groups import (
    BotSettings,
    DatabaseSettings,
    FleetSettings,
    LogSettings,
    RedisSettings,
    WorkerSettings,
)
from config.stack import PgBouncerSettings, StackSettings
from config.variables import POOL_PREFIXES, variables_of

Role = Literal["worker", "bot", "poolctl"]

LEGACY_POOL_MIN, LEGACY_POOL_MAX = 1, 5  # Tortoise's own
LEASE_TIMEOUTS = 3  # a lease outlasts so many commands to Redis that hang
APPLICATION_NAME_BYTES = 63  # PostgreSQL cuts a longer one, and the process id at its end with it

_DATABASE_PARTS = ("DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_NAME")
_REDIS_PARTS = ("REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_USERNAME", "REDIS_PASSWORD")


@dataclass(frozen=True, slots=True)
class Settings:
    """All that one process is told by its environment. Frozen; secrets are `SecretStr` and print as asterisks.

    `warnings` are lines to log once at start. `origins` says for each variable where its value came from:
    "environment", ".env", "file PATH", "DATABASE_URL", "REDIS_URL" or "default"; with a role's prefix, the
    variable that won is named too. `legacy` is true where DATABASE_URL is used instead of `DB_*`.
    """

    role: Role
    db: DatabaseSettings
    redis: RedisSettings
    worker: WorkerSettings
    bot: BotSettings
    fleet: FleetSettings
    log: LogSettings
    pgbouncer: PgBouncerSettings
    stack: StackSettings
    legacy: bool
    warnings: tuple[str, ...]
    origins: Mapping[str, str]

    @classmethod
    def load(cls, role: Role, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings for a process of `role`, from `environ`, or from the process's environment over `.env`.

        Raises SettingsError with every fault that there is, not only the first.
        """
        return _Loader(role, read(environ)).load()

    def pool_line(self) -> str:
        """One line for the log: how many connections this process takes, where to, and by which settings."""
        db = self.db
        where = f"{db.user}@{db.addresses}/{db.name}"
        mode = "legacy mode (DATABASE_URL), " if self.legacy else ""
        return (
            f"{mode}this process: {db.pool_min}–{db.pool_max} connections to {where}"
            f" as {db.application_name}, wait at most {db.pool_timeout:g} s, replaced after {db.max_queries} queries"
            f" or {_seconds(db.max_lifetime)}, closed after {_seconds(db.max_idle_time)} idle"
        )


def _seconds(value: float) -> str:
    return f"{value:g} s" if value else "no time"


class _Loader(GroupReader):
    """One load: every group, and what must hold between several variables."""

    role: Role

    def load(self) -> Settings:
        url = self.secret("DATABASE_URL")
        excluded = self._refuse_pool_settings_beside(url) if url is not None else set()
        self.faults += [f for f in near_miss.faults(self.environment.values) if f.variable not in excluded]
        db = self._database(url)
        redis, worker = self._redis(), self._worker()
        if self.role == "worker":
            self._check_lease(worker.lease, redis.socket_timeout)
        settings = Settings(
            role=self.role,
            db=db,
            redis=redis,
            worker=worker,
            bot=self.read(BotSettings),
            fleet=self.read(FleetSettings),
            log=self.read(LogSettings),
            pgbouncer=self.read(PgBouncerSettings),
            stack=self.read(StackSettings),
            legacy=url is not None,
            warnings=(*self.warnings, *near_miss.warnings(self.environment.values)),
            origins=MappingProxyType(self.origins),
        )
        if self.faults:
            raise SettingsError(self.faults, self.secrets)
        return settings

    # Groups

    def _database(self, url: Value | None) -> DatabaseSettings:
        values = self.values(DatabaseSettings)
        if url is not None:
            parts = database_url.parse(url.text, self.faults)
            # Pool settings beside a URL were refused already; here they must not be faults a second time.
            refused = {variable.field for variable in variables_of(DatabaseSettings) if variable.is_pool_setting}
            values = {field: value for field, value in values.items() if field not in refused}
            self.overlay(DatabaseSettings, values, url, parts, _DATABASE_PARTS)
        db, faulty = self.build(DatabaseSettings, values)
        changes: dict[str, Any] = {"application_name": self._application_name(db.application_name)}
        if url is not None:
            changes |= {"pool_min": LEGACY_POOL_MIN, "pool_max": LEGACY_POOL_MAX}
        elif "pool_min" not in values:
            changes["pool_min"] = min(db.pool_min, db.pool_max)
        elif not faulty & {"pool_min", "pool_max"} and db.pool_min > db.pool_max:
            low, high = (
                self.named(values, "pool_min", "DB_POOL_MIN"),
                self.named(values, "pool_max", "DB_POOL_MAX"),
            )
            self.faults.append(
                Fault(
                    low,
                    f"is greater than {high}={db.pool_max}",
                    f"lower {low} or raise {high}",
                    str(db.pool_min),
                )
            )
        if db.sslrootcert is not None and db.sslmode in ("disable", "allow", "prefer"):
            self.warnings.append(
                f"DB_SSLROOTCERT is set, but DB_SSLMODE={db.sslmode} checks no certificate: set DB_SSLMODE=verify-full"
            )
        changes["direct_host"] = db.direct_host or db.host
        changes["direct_port"] = db.direct_port or ((5432,) if db.direct_host else db.port)
        if not faulty & {"host", "port"}:
            self._check_ports(values, "host", "port", db.host, db.port)
        if db.engine == "tortoise" and len(db.host) > 1:
            engine, host = self.named(values, "engine", "DB_ENGINE"), self.named(values, "host", "DB_HOST")
            self.faults.append(
                Fault(
                    engine,
                    f"takes one host, and {host} names {len(db.host)}",
                    f"name one host, or unset {engine}",
                    db.engine,
                )
            )
        if db.direct_host or db.direct_port:
            self._check_ports(values, "direct_host", "direct_port", changes["direct_host"], changes["direct_port"])
        return db.model_copy(update=changes)

    def _redis(self) -> RedisSettings:
        values = self.values(RedisSettings)
        url = self.secret("REDIS_URL")
        if url is not None:
            parts = redis_url.parse(url.text, self.faults)
            self.overlay(RedisSettings, values, url, parts, _REDIS_PARTS)
        redis, _ = self.build(RedisSettings, values)
        if redis.sentinels:
            unused = [self.named(values, field, "") for field in ("host", "port") if field in values]
            self.warnings += [f"{name} is not used: REDIS_SENTINELS say where Redis is" for name in unused]
        return redis if url is None else redis.model_copy(update={"tls": redis_url.is_tls(url.text)})

    def _worker(self) -> WorkerSettings:
        values = self.values(WorkerSettings)
        worker, faulty = self.build(WorkerSettings, values)
        pool_max = self._worker_pool_max()
        if "max_jobs" not in values:
            return worker.model_copy(update={"max_jobs": pool_max})
        if self.role == "worker" and not faulty and worker.max_jobs > pool_max:
            self.warnings.append(
                f"WORKER_MAX_JOBS={worker.max_jobs} is greater than DB_POOL_MAX={pool_max}: jobs will queue for"
                f" connections; lower WORKER_MAX_JOBS or raise DB_POOL_MAX"
            )
        return worker

    def _worker_pool_max(self) -> int:
        """A worker's DB_POOL_MAX, also when a bot asks: WORKER_DB_POOL_MAX is not a bot's own setting."""
        if self.environment.find("DATABASE_URL") or self.environment.find("DATABASE_URL_FILE"):
            return LEGACY_POOL_MAX
        found = self.environment.find("DB_POOL_MAX", "worker")
        try:
            return DatabaseSettings(pool_max=found.text).pool_max if found else DatabaseSettings().pool_max
        except ValidationError:  # its own fault is reported where it is read
            return DatabaseSettings().pool_max

    # Checks of several variables together

    def _refuse_pool_settings_beside(self, url: Value) -> set[str]:
        """DATABASE_URL and pool settings exclude each other, for every role and also when misspelt."""
        misses = {miss.variable for miss in near_miss.pool_near_misses(self.environment.values)}
        refused = set()
        for name, text in self.environment.values.items():
            bare = name.removeprefix("WORKER_").removeprefix("BOT_")
            if name in misses or bare.startswith(POOL_PREFIXES):
                refused.add(name)
                self.faults.append(
                    Fault(
                        name,
                        f"is a pool setting beside {url.variable}, and they exclude each other",
                        "unset it; or unset DATABASE_URL and set DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME",
                        value=text,
                    )
                )
        return refused

    def _check_lease(self, lease: float, socket_timeout: float) -> None:
        """One heartbeat that hangs must not cost the worker its jobs: the next ones come before the lease is over."""
        least = LEASE_TIMEOUTS * socket_timeout
        if lease < least:
            self.faults.append(
                Fault(
                    "WORKER_LEASE",
                    f"is less than {LEASE_TIMEOUTS} times REDIS_SOCKET_TIMEOUT={socket_timeout:g}",
                    f"give at least {least:g}, or lower REDIS_SOCKET_TIMEOUT",
                    value=f"{lease:g}",
                )
            )

    def _check_ports(
        self,
        values: Mapping[str, Value],
        host: str,
        port: str,
        hosts: tuple[str, ...],
        ports: tuple[int, ...],
    ) -> None:
        if len(ports) not in (1, len(hosts)):
            variable = self.named(values, port, f"DB_{port.upper()}")
            hosts_variable = self.named(values, host, f"DB_{host.upper()}")
            self.faults.append(
                Fault(
                    variable,
                    f"has {len(ports)} ports for the {len(hosts)} hosts of {hosts_variable}",
                    "give one port for all, or one for each host",
                    value=",".join(map(str, ports)),
                )
            )

    def _application_name(self, template: str) -> str:
        """The name for `pg_stat_activity`, cut to PostgreSQL's 63 bytes; of the host rather than of the pid."""
        pid = str(os.getpid())
        host = socket.gethostname()

        def filled(host: str) -> str:
            return template.replace("{role}", self.role).replace("{host}", host).replace("{pid}", pid)

        excess = len(filled(host).encode()) - APPLICATION_NAME_BYTES
        if excess > 0 and "{host}" in template:
            host = host.encode()[: max(1, len(host.encode()) - excess)].decode(errors="ignore")
        return filled(host).encode()[:APPLICATION_NAME_BYTES].decode(errors="ignore")
