"""Settings as the keyword arguments of Tortoise and of asyncpg. Pure: nothing is opened or read here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from config.settings import Settings

ENGINE = "pool.engine"
APP = "fleet"


def tortoise_config(settings: Settings, models: Sequence[str] = ("db.models",)) -> dict[str, Any]:
    """What `Tortoise.init(config=…)` takes: one connection named "default", one app named "fleet".

    The engine is pool/engine.py. `acquire_timeout_s`, `pre_ping` and `max_lifetime_s` are its own guards; all
    other credentials are Tortoise's or asyncpg's. `ssl` is libpq's sslmode as text: where a root certificate is
    named, db/ puts an SSLContext in its place, because that reads files.
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
        "acquire_timeout_s": db.pool_timeout,
        "pre_ping": db.pool_pre_ping,
        "max_lifetime_s": db.max_lifetime,
    }
    return {
        "connections": {"default": {"engine": ENGINE, "credentials": credentials}},
        "apps": {APP: {"models": list(models), "default_connection": "default", "migrations": "db.migrations"}},
        "use_tz": True,
        "timezone": "UTC",
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
