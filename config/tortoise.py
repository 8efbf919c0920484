"""Settings as the keyword arguments of Tortoise and of asyncpg. Pure: nothing is opened or read here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from config.groups import DatabaseSettings
from config.settings import Settings

ENGINES = {"pool": "pool.engine", "tortoise": "tortoise.backends.asyncpg"}


@dataclass(frozen=True, slots=True)
class Tables:
    """What Tortoise calls an app: tables under a label of their own.

    `models` are the modules with the models; `migrations` is the package with their migrations.
    """

    label: str
    models: tuple[str, ...]
    migrations: str


FLEET = Tables("fleet", ("db.models",), "db.migrations")


def tortoise_config(
    settings: Settings, models: Sequence[str] = FLEET.models, *, apps: Sequence[Tables] = ()
) -> dict[str, Any]:
    """What `Tortoise.init(config=…)` takes: one connection named "default", one app named "fleet", and `apps`.

    The engine is pool/engine.py, and credentials are Tortoise's, asyncpg's, and the guards of that engine; with
    DB_ENGINE=tortoise it is Tortoise's own, without the guards, which it would hand on to asyncpg. `ssl` is libpq's
    sslmode as text: where a root certificate is named, db/ puts an SSLContext in its place, because that reads files.
    """
    db = settings.db
    connection = asyncpg_connect_kwargs(settings)
    server_settings = connection.pop("server_settings")
    credentials = connection | {
        "minsize": db.pool_min,
        "maxsize": db.pool_max,
        "max_queries": db.max_queries,
        "max_inactive_connection_lifetime": db.max_idle_time,
        "application_name": server_settings["application_name"],
        "schema": db.schema_name,
    }
    if db.engine == "pool":
        credentials |= _guards(db)
    return {
        "connections": {"default": {"engine": ENGINES[db.engine], "credentials": credentials}},
        "apps": {tables.label: _app(tables) for tables in (replace(FLEET, models=tuple(models)), *apps)},
        "use_tz": True,
        "timezone": "UTC",
    }


def _app(tables: Tables) -> dict[str, Any]:
    return {"models": list(tables.models), "default_connection": "default", "migrations": tables.migrations}


def _guards(db: DatabaseSettings) -> dict[str, Any]:
    """The fields of pool/options.py; `elastic` is for whoever opens a pool that is to be resized."""
    return {
        "acquire_timeout_s": db.pool_timeout,
        "max_waiting": db.pool_max_waiting,
        "pre_ping": db.pool_pre_ping,
        "pre_ping_idle_s": db.pool_pre_ping_idle,
        "max_lifetime_s": db.max_lifetime,
        "mode": db.pool_mode,
        "reset": db.pool_reset,
        "pooler": db.pooler,
        "log": db.pool_log,
        "read_retry": db.read_retry,
        "leak_threshold_s": db.leak_threshold,
    }


def asyncpg_pool_kwargs(settings: Settings) -> dict[str, Any]:
    """What `asyncpg.create_pool(**…)` takes: the pool's four numbers and the connection's arguments."""
    db = settings.db
    return {
        "min_size": db.pool_min,
        "max_size": db.pool_max,
        "max_queries": db.max_queries,
        "max_inactive_connection_lifetime": db.max_idle_time,
        **asyncpg_connect_kwargs(settings),
    }


def asyncpg_connect_kwargs(settings: Settings, *, direct: bool = False) -> dict[str, Any]:
    """What `asyncpg.connect(**…)` takes; with `direct`, to the server itself rather than to a pooler before it.

    `password` is a callable, which asyncpg calls for each new connection: so no repr or log line of these
    arguments can show it.
    """
    db = settings.db
    hosts, ports = (db.direct_host, db.direct_port) if direct else (db.host, db.port)
    server_settings = {"application_name": db.application_name}
    if db.schema_name is not None:
        server_settings["search_path"] = db.schema_name
    return {
        "host": hosts[0] if len(hosts) == 1 else list(hosts),
        "port": ports[0] if len(ports) == 1 else list(ports),
        "user": db.user,
        "password": db.password.get_secret_value,
        "database": db.name,
        "timeout": db.connect_timeout,
        "command_timeout": db.command_timeout or None,
        "ssl": db.sslmode,
        "target_session_attrs": db.target_session_attrs,
        "server_settings": server_settings,
    }
