"""What the servers beside the processes are started with, in the same frozen groups: PostgreSQL, PgBouncer, profiles.

A process does not open anything with these. `poolctl plan` calculates with them, and `poolctl migrate` and
`poolctl check` ask the PgBouncer that they name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from config.groups import Group, Host, Name, Port, Seconds, SecondsOrNone, SslMode, join_addresses, setting

LARGEST_SERVER = 262_143  # max_connections; PostgreSQL takes no more
LARGEST_INT = 2**31 - 1  # of PgBouncer's settings
PROFILE = "pgbouncer"  # compose's profile that starts the service of that name and moves the processes to it
ALL_PROFILES = "*"

ClientTls = Literal["disable", "allow", "prefer", "require"]  # a client shows no certificate: it has a password


def _items(value: Any) -> Any:
    """'a, b,' → ('a', 'b'): compose takes an empty item, too."""
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


class PgBouncerSettings(Group):
    """PgBouncer before the database: where it would be, and its own settings under its own names."""

    model_config = SettingsConfigDict(env_prefix="PGBOUNCER_")

    host: Host | None = setting(
        None,
        "where PgBouncer is if it runs: `poolctl migrate` has it renew its connections, `poolctl check` tells if nobody"
        " uses it. Compose sets it",
    )
    port: Port = setting(6432, "its port")
    user: Name = setting("pgbouncer", "who logs in to its admin console, and looks up the others' passwords for it")
    password: SecretStr | None = setting(None, "that user's password")

    default_pool_size: Annotated[int, Field(ge=1, le=LARGEST_INT)] = setting(
        25, "connections to the server for each pair of database and user; its clients share them"
    )
    reserve_pool_size: Annotated[int, Field(ge=0, le=LARGEST_INT)] = setting(
        5, "as many more for a pair whose clients wait for too long. 0 = none"
    )
    reserve_pool_timeout: SecondsOrNone = setting(5.0, "s; a client's wait that opens the reserve. 0 = never")
    max_client_conn: Annotated[int, Field(ge=1, le=LARGEST_INT)] = setting(
        1000, "clients at most: the connections of all processes' pools together"
    )
    max_db_connections: Annotated[int, Field(ge=0, le=LARGEST_INT)] = setting(
        0, "connections to the server for one database at most, all its users together. 0 = no limit"
    )
    max_prepared_statements: Annotated[int, Field(ge=0, le=LARGEST_INT)] = setting(
        200, "prepared statements that it keeps on each connection to the server. 0 = it cannot have any"
    )
    query_wait_timeout: SecondsOrNone = setting(
        120.0, "s; a client that waits for a connection of the server for longer is disconnected. 0 = never"
    )
    server_lifetime: SecondsOrNone = setting(
        3600.0, "s; a connection to the server older than this is replaced. 0 = used once"
    )
    server_idle_timeout: SecondsOrNone = setting(
        600.0, "s; a connection to the server that is idle for longer is closed. 0 = never"
    )
    server_connect_timeout: Seconds = setting(15.0, "s; to connect to the server")
    client_tls_sslmode: ClientTls = setting(
        "disable", "TLS for its clients: disable, allow, prefer or require; all but disable need certificate and key"
    )
    client_tls_cert_file: Name | None = setting(None, "file of its certificate, in its container")
    client_tls_key_file: Name | None = setting(None, "file of its key, in its container")
    server_tls_sslmode: SslMode = setting("prefer", "TLS to the server, as in libpq")
    server_tls_ca_file: Name | None = setting(None, "file of the authorities that the server is checked against")

    @property
    def address(self) -> str:
        """`host:port`, for messages; the host is compose's service where none is given."""
        return join_addresses((self.host or PROFILE,), (self.port,))


class StackSettings(Group):
    """What Docker Compose starts."""

    model_config = SettingsConfigDict(env_prefix="")

    compose_profiles: Annotated[tuple[Name, ...], BeforeValidator(_items)] = setting(
        (),
        "profiles, comma-separated. pgbouncer starts PgBouncer, and where `DB_HOST` is not given every process goes"
        " through it; `poolctl plan` counts with it",
    )
    postgres_max_connections: Annotated[int, Field(ge=1, le=LARGEST_SERVER)] = setting(
        100, "`max_connections` that PostgreSQL is started with, and that `poolctl plan` counts with"
    )

    @property
    def pgbouncer(self) -> bool:
        """Whether the profile is on, as compose reads it: by its name, or as one of all."""
        return not {PROFILE, ALL_PROFILES}.isdisjoint(self.compose_profiles)
