"""Both servers of a fleet, together with the passwords that were made for them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from local.account import server_account
from local.binaries import EVERYWHERE, Source, find_postgres, find_redis
from local.child import Tether
from local.directory import BINARIES, discard, prepare
from local.errors import ServerFailed
from local.lock import locked
from local.postgres import DATABASE, USER, PostgresServer, open_postgres
from local.redis import RedisServer, open_redis
from local.server_log import last_lines

PASSWORDS = "passwords.json"


@dataclass(frozen=True, slots=True)
class LocalServers:
    """A running PostgreSQL and Redis."""

    postgres: PostgresServer
    redis: RedisServer
    database_password: str = field(repr=False)
    redis_password: str = field(repr=False)

    def __str__(self) -> str:
        """What they are and where they listen; no password."""
        postgres, redis = self.postgres, self.redis
        return (
            f"PostgreSQL {postgres.binary.major} on {postgres.host}:{postgres.port}, "
            f"{redis.binary.name.capitalize()} {redis.binary.major} on {redis.host}:{redis.port}"
        )

    def environ(self, database: str = DATABASE, redis_db: int = 0) -> dict[str, str]:
        """The variables with which a process of the fleet reaches them, passwords included."""
        return {
            "DB_HOST": self.postgres.host,
            "DB_PORT": str(self.postgres.port),
            "DB_USER": USER,
            "DB_PASSWORD": self.database_password,
            "DB_NAME": database,
            "DB_SSLMODE": "disable",
            "REDIS_HOST": self.redis.host,
            "REDIS_PORT": str(self.redis.port),
            "REDIS_DB": str(redis_db),
            "REDIS_PASSWORD": self.redis_password,
        }

    def check(self) -> None:
        """Raise ServerFailed when one of them has ended."""
        for name, server in (("PostgreSQL", self.postgres), ("Redis", self.redis)):
            code = server.child.exit_code()
            if code is not None:
                how = f"exit code {code}" if code >= 0 else f"signal {-code}"
                raise ServerFailed(
                    f"{name} (pid {server.child.pid}) ended by itself with {how}, "
                    f"see {server.log}:{last_lines(server.log)}"
                )


@contextmanager
def open_servers(
    directory: Path,
    tether: Tether,
    *,
    max_connections: int = 100,
    fresh: bool = False,
    durable: bool = True,
    search: Sequence[Source] = EVERYWHERE,
) -> Iterator[LocalServers]:
    """Start both on the data in `directory`, which is made when missing; stop Redis, then PostgreSQL, on leaving.

    Passwords are generated once and kept beside the data. fresh: discard the data of earlier runs.
    durable=False: faster, and nothing is promised after a crash. search: where to look for the programs.
    To be used outside of a running event loop. Raises a LocalError.
    """
    prepare(directory)
    postgres_account = server_account("postgres", "nobody")
    redis_account = server_account("redis", "valkey", "nobody")
    copies = directory / BINARIES
    with locked(directory) as lock:
        if fresh:
            discard(directory)
        postgres_binary = find_postgres(copies, postgres_account, search)
        redis_binary = find_redis(copies, redis_account, search)
        passwords = _passwords(directory)
        with (
            open_postgres(
                directory,
                postgres_binary,
                tether,
                lock=lock,
                password=passwords["database"],
                max_connections=max_connections,
                durable=durable,
                account=postgres_account,
            ) as postgres,
            open_redis(
                directory,
                redis_binary,
                tether,
                lock=lock,
                password=passwords["redis"],
                durable=durable,
                account=redis_account,
            ) as redis,
        ):
            yield LocalServers(postgres, redis, passwords["database"], passwords["redis"])


def _passwords(directory: Path) -> dict[str, str]:
    """Those kept with the data, or new ones."""
    path = directory / PASSWORDS
    try:
        kept: dict[str, str] = json.loads(path.read_text())
    except FileNotFoundError:
        kept = {name: secrets.token_hex(24) for name in ("database", "redis")}
        unfinished = path.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as stream:
            json.dump(kept, stream)
        unfinished.rename(path)
    return kept
