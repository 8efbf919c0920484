"""The options of `poolctl up`, and the environment it hands on."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from config.variables import POOL_PREFIXES, VARIABLES
from poolctl.app import build_app
from poolctl.fleet_environ import configured_environ, is_foreign, own_servers_environ

SERVERS = {"DB_HOST": "127.0.0.1", "REDIS_HOST": "127.0.0.1"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workers", "0"],
        ["--workers", "-1"],
        ["--workers", "two"],
        ["--workers", "1.5"],
        ["--bots", "-1"],
        ["--exercise", "0"],
        ["--exercise", "-5"],
        ["--max-connections", "0"],
        ["--worker", "3"],
        ["three"],
        ["--configured-servers", "--fresh"],
        ["--configured-servers", "--max-connections", "50"],
    ],
)
def test_wrong_options_are_bad_usage(arguments: list[str]) -> None:
    """Numbers out of range, unknown options and options that exclude each other end with exit code 2."""
    result = CliRunner().invoke(build_app(), ["up", *arguments])
    assert result.exit_code == 2
    assert "Error" in result.output


@pytest.mark.parametrize(
    "name",
    [
        *("DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_NAME", "DB_DIRECT_HOST", "DB_DIRECT_PORT", "DB_SCHEMA"),
        *("DATABASE_URL", "DATABASE_URL_FILE", "DB_PASSWORD_FILE", "WORKER_DB_HOST", "BOT_DB_PASSWORD_FILE"),
        *("DB_SSLMODE", "DB_SSLROOTCERT", "DB_TARGET_SESSION_ATTRS", "PGHOST", "PGSSLMODE", "PGPASSFILE"),
        *("REDIS_URL", "REDIS_URL_FILE", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_USERNAME", "REDIS_PASSWORD"),
        *(
            "PGBOUNCER_HOST",
            "PGBOUNCER_PASSWORD",
            "REDIS_PASSWORD_FILE",
            "BOT_TOKEN",
            "BOT_TOKEN_FILE",
            "BOT_API_URL",
            "BOT_TRANSPORT",
        ),
    ],
)
def test_what_leads_to_a_server_is_left_out(name: str) -> None:
    """No variable that names a configured server, a way into it, or the real bot reaches a fleet on own servers."""
    assert name not in own_servers_environ({name: "x"}, {})


def test_pool_settings_and_all_others_are_handed_on() -> None:
    """Pool settings, also a role's, misspelt ones, and what is no setting at all reach the processes."""
    given = {
        **{variable.name: "1" for variable in VARIABLES if variable.is_pool_setting},
        "WORKER_DB_POOL_MAX": "4",
        "DB_POOL_SIZE": "9",
        "PG_POOL_SIZE": "9",
        "DB_COMMAND_TIMEOUT": "3",
        "WORKER_MAX_JOBS": "2",
        "LOG_LEVEL": "DEBUG",
        "PATH": "/bin",
    }
    assert given.items() <= own_servers_environ(given, SERVERS).items()


def test_every_variable_that_names_a_server_is_foreign() -> None:
    """Of the settings of database and Redis only pool settings and those of any server are handed on."""
    handed_on = {v.name for v in VARIABLES if v.group in ("DB", "REDIS") and not is_foreign(v.name)}
    assert {name for name in handed_on if not name.startswith(POOL_PREFIXES)} == {
        *("DB_ECHO", "DB_ENGINE", "DB_READ_RETRY", "DB_CONNECT_TIMEOUT", "DB_COMMAND_TIMEOUT", "DB_APPLICATION_NAME"),
        *("REDIS_MAX_CONNECTIONS", "REDIS_CONNECT_TIMEOUT", "REDIS_SOCKET_TIMEOUT", "REDIS_HEALTH_CHECK_INTERVAL"),
    }


def test_own_servers_replace_the_configured_ones() -> None:
    """The fleet gets the servers of its own, whatever the environment had."""
    assert own_servers_environ({"DB_HOST": "db.invalid"}, SERVERS)["DB_HOST"] == "127.0.0.1"


def test_configured_servers_are_handed_on() -> None:
    """With --configured-servers every variable reaches the processes as it is."""
    given = {"DB_HOST": "db.example", "REDIS_URL": "rediss://r.example", "BOT_TOKEN": "1:a", "PGSSLMODE": "require"}
    assert given.items() <= configured_environ(given).items()


def test_logs_are_text_unless_asked_otherwise() -> None:
    """The processes write text for the person at `up`, and JSON where LOG_FORMAT says so."""
    assert configured_environ({})["LOG_FORMAT"] == "text"
    assert configured_environ({"LOG_FORMAT": "auto"})["LOG_FORMAT"] == "text"
    assert configured_environ({"LOG_FORMAT": "json"})["LOG_FORMAT"] == "json"


def test_the_users_own_python_path_is_kept() -> None:
    """The packages come first on the path of modules, and what was there stays."""
    assert configured_environ({"PYTHONPATH": "/mine"})["PYTHONPATH"].endswith(":/mine")
