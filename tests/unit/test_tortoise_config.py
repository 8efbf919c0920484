"""Settings as keyword arguments: pure, without a server."""

from __future__ import annotations

import inspect

import asyncpg
from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.config import TortoiseConfig

from config import Settings, asyncpg_pool_kwargs, tortoise_config
from config.tortoise import asyncpg_connect_kwargs
from pool.options import PoolOptions

ENVIRON = {
    "DB_HOST": "db",
    "DB_PORT": "6432",
    "DB_USER": "app",
    "DB_PASSWORD": "s3cr3t-Zx9",
    "DB_NAME": "shop",
    "DB_POOL_MIN": "3",
    "DB_POOL_MAX": "7",
    "DB_MAX_QUERIES": "99",
    "DB_MAX_IDLE_TIME": "0",
    "DB_COMMAND_TIMEOUT": "0",
    "DB_CONNECT_TIMEOUT": "4",
    "DB_SSLMODE": "disable",
    "DB_APPLICATION_NAME": "me",
    "DB_DIRECT_HOST": "server",
}


def test_asyncpg_pool_kwargs() -> None:
    """The pool's four numbers and the connection's arguments, nothing else, and all known to asyncpg."""
    kwargs = asyncpg_pool_kwargs(Settings.load("worker", ENVIRON))
    assert kwargs.pop("password")() == "s3cr3t-Zx9"
    assert kwargs == {
        "min_size": 3,
        "max_size": 7,
        "max_queries": 99,
        "max_inactive_connection_lifetime": 0,
        "host": "db",
        "port": 6432,
        "user": "app",
        "database": "shop",
        "timeout": 4,
        "command_timeout": None,
        "ssl": "disable",
        "target_session_attrs": "any",
        "server_settings": {"application_name": "me"},
    }
    known = {*inspect.signature(asyncpg.create_pool).parameters, *inspect.signature(asyncpg.connect).parameters}
    assert set(kwargs) <= known


def test_several_hosts_are_a_list() -> None:
    """asyncpg reads 'a,b' as one host name, so several go as a list."""
    kwargs = asyncpg_pool_kwargs(Settings.load("worker", {"DB_HOST": "a, b", "DB_PORT": "1,2"}))
    assert (kwargs["host"], kwargs["port"]) == (["a", "b"], [1, 2])


def test_schema_is_the_search_path() -> None:
    """DB_SCHEMA goes to the server as search_path."""
    settings = Settings.load("worker", {"DB_SCHEMA": "shop"})
    assert asyncpg_pool_kwargs(settings)["server_settings"]["search_path"] == "shop"
    assert tortoise_config(settings)["connections"]["default"]["credentials"]["schema"] == "shop"


def test_direct_goes_past_the_pooler() -> None:
    """Direct arguments name the server itself."""
    kwargs = asyncpg_connect_kwargs(Settings.load("worker", ENVIRON), direct=True)
    assert (kwargs["host"], kwargs["port"]) == ("server", 5432)


def test_tortoise_config() -> None:
    """Tortoise accepts it, with the pool's size under the names that cannot be overridden by others."""
    settings = Settings.load("worker", ENVIRON)
    config = tortoise_config(settings, models=("db.models", "shop.models"))
    parsed = TortoiseConfig.from_dict(config)
    assert parsed.apps["fleet"].models == ["db.models", "shop.models"]
    assert parsed.apps["fleet"].migrations == "db.migrations"
    credentials = config["connections"]["default"]["credentials"]
    assert (credentials["minsize"], credentials["maxsize"]) == (3, 7)
    # in Tortoise these two would silently beat minsize and maxsize
    assert not {"min_size", "max_size"} & set(credentials)
    assert config["connections"]["default"]["engine"] == "pool.engine"


def test_guards_are_the_options_of_the_pool() -> None:
    """Every setting of the pool reaches its option, and the pool's defaults are the settings'."""
    others = {
        "DB_POOL_TIMEOUT": "1.5",
        "DB_POOL_MAX_WAITING": "20",
        "DB_POOL_PRE_PING": "false",
        "DB_POOL_PRE_PING_IDLE": "7",
        "DB_MAX_LIFETIME": "900",
        "DB_POOL_MODE": "none",
        "DB_POOL_RESET": "always",
        "DB_POOLER": "session",
        "DB_POOL_LOG": "true",
        "DB_READ_RETRY": "false",
        "DB_LEAK_THRESHOLD": "0.5",
    }
    assert guards(ENVIRON) == PoolOptions()
    assert guards(ENVIRON | others) == PoolOptions(
        acquire_timeout_s=1.5,
        max_waiting=20,
        pre_ping=False,
        pre_ping_idle_s=7,
        max_lifetime_s=900,
        mode="none",
        reset="always",
        pooler="session",
        log=True,
        read_retry=False,
        leak_threshold_s=0.5,
    )


def guards(environ: dict[str, str]) -> PoolOptions:
    """The options of the pool that a process with `environ` gets."""
    config = tortoise_config(Settings.load("worker", environ))
    return PoolOptions.taken_from(dict(config["connections"]["default"]["credentials"]))


def test_stock_engine_gets_no_guards() -> None:
    """With DB_ENGINE=tortoise all that is left is known to Tortoise and asyncpg, which refuse anything else."""
    config = tortoise_config(Settings.load("worker", ENVIRON | {"DB_ENGINE": "tortoise"}))
    connection = config["connections"]["default"]
    assert connection["engine"] == "tortoise.backends.asyncpg"
    client = AsyncpgDBClient(connection_name="default", **connection["credentials"])
    known = {*inspect.signature(asyncpg.create_pool).parameters, *inspect.signature(asyncpg.connect).parameters}
    assert set(client.extra) <= known
    assert connection["credentials"]["maxsize"] == 7


def test_no_repr_shows_the_password() -> None:
    """What the functions return can be logged whole."""
    settings = Settings.load("worker", ENVIRON)
    assert "s3cr3t" not in f"{asyncpg_pool_kwargs(settings)}{tortoise_config(settings)}"
