"""What can be wrong with the database, each in one line: who, what, what to do. No line shows a password.

`classify` is the one place that knows which of asyncpg's many exceptions means what.
"""

from __future__ import annotations

import ssl
from typing import ClassVar

import asyncpg
from tortoise.exceptions import BaseORMException

import pool.errors
from config.exit_codes import ExitCode

# What asyncpg and Tortoise raise on purpose. Anything else is a mistake in a program and keeps its traceback.
DRIVER_ERRORS = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    BaseORMException,
)


class DatabaseError(Exception):
    """Base of all errors of db/, and itself raised for a refusal by the server that has no class of its own.

    `exit_code` is what a process ends with. `transient` errors may pass by themselves: opening tries again.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.NOT_READY
    transient: ClassVar[bool] = False


class DatabaseUnreachable(DatabaseError):
    """Nobody answers at the address, or who answers is starting up or shutting down."""

    transient = True


class TooManyClients(DatabaseError):
    """The server, the database or the role has no connection slot left."""

    transient = True


class NoSuitableServer(DatabaseError):
    """Servers answer, but none is what DB_TARGET_SESSION_ATTRS asks for; during a failover this passes."""

    transient = True


class WrongPassword(DatabaseError):
    """The server does not accept the password, or knows no such user: it does not say which."""

    exit_code = ExitCode.USAGE


class LoginRefused(DatabaseError):
    """The server does not let this user in from here: no such role, pg_hba.conf, or no CONNECT privilege."""

    exit_code = ExitCode.USAGE


class NoSuchDatabase(DatabaseError):
    """The server has no database of that name. DB_NAME is wrong until somebody acts, so this is a bad setting."""

    exit_code = ExitCode.USAGE


class SchemaNotSet(DatabaseError):
    """A pooler does not pass DB_SCHEMA on, until somebody gives it to the role; the message has the line to run."""

    exit_code = ExitCode.USAGE


class BadTLS(DatabaseError):
    """TLS as DB_SSLMODE and DB_SSLROOTCERT ask for cannot be had: certificate, file, or a server without TLS."""

    exit_code = ExitCode.USAGE


class PoolerNotRead(DatabaseError):
    """PgBouncer's admin console does not tell its settings; the message says why, and what to add or correct."""


class PoolerNotReconnected(DatabaseError):
    """PgBouncer runs, but does not replace its connections to the server; the message says why, and what to do."""


class SchemaBehind(DatabaseError):
    """The database lacks migrations that this program needs."""


class MigrationFailed(DatabaseError):
    """A migration, or the wait for its turn, ended with an error; the message says which and what to do."""


_REMEDIES: tuple[tuple[tuple[type[BaseException], ...], type[DatabaseError], str], ...] = (
    # The first line that fits counts: several are subclasses of ones below.
    (
        (asyncpg.InvalidPasswordError,),
        WrongPassword,
        "correct DB_USER and DB_PASSWORD (or DB_PASSWORD_FILE, or DATABASE_URL)",
    ),
    (
        (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InsufficientPrivilegeError),
        LoginRefused,
        "correct DB_USER, or let it in (role, GRANT CONNECT, pg_hba.conf; where that asks for TLS, DB_SSLMODE)",
    ),
    (
        (asyncpg.InvalidCatalogNameError,),
        NoSuchDatabase,
        "correct DB_NAME (or DATABASE_URL), or create the database",
    ),
    (
        (asyncpg.TooManyConnectionsError,),
        TooManyClients,
        "lower DB_POOL_MAX, run fewer processes, raise max_connections (or CONNECTION LIMIT), or use PgBouncer",
    ),
    (
        # The peer hung up during the handshake: no fault of the certificate.
        (ssl.SSLEOFError, ssl.SSLZeroReturnError),
        DatabaseUnreachable,
        "see the server's log",
    ),
    (
        (ssl.SSLError,),
        BadTLS,
        "correct DB_SSLMODE and DB_SSLROOTCERT, or the server's certificate",
    ),
    (
        (asyncpg.ClientConfigurationError,),  # asyncpg's word for a missing root certificate
        BadTLS,
        "name the certificate authority's file in DB_SSLROOTCERT",
    ),
    (
        (asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError),
        DatabaseUnreachable,
        "wait until the server is up",
    ),
    (
        (asyncpg.ProtocolViolationError,),  # what poolers answer with
        DatabaseUnreachable,
        "see the log of the server, or of the pooler before it",
    ),
    (
        (OSError, asyncpg.PostgresConnectionError, asyncpg.InternalClientError, asyncpg.InterfaceError),
        DatabaseUnreachable,
        "is the server running, and are host and port right (DB_HOST and DB_PORT, or DATABASE_URL)?",
    ),
)


def classify(error: BaseException, target: str) -> DatabaseError:
    """The error of this package that says what `error` means; `target` is `user@host:port/database`.

    Takes what asyncpg raises on connecting, also inside one of Tortoise's errors. What is classified already is
    returned as it is.
    """
    if isinstance(error, DatabaseError):
        return error
    if isinstance(error, BaseORMException) and error.__cause__ is not None:
        error = error.__cause__
    if type(error) is ConnectionError and "rejected SSL upgrade" in str(error):  # asyncpg has no class for it
        return BadTLS(f"{target}: the server does not speak TLS: correct DB_SSLMODE, or switch TLS on in the server")
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return NoSuitableServer(
            f"{target}: no server is what DB_TARGET_SESSION_ATTRS asks for: correct it, or name in DB_HOST one that is"
        )
    if isinstance(error, pool.errors.SchemaNotSet):
        return SchemaNotSet(f"{target}: {first_line(error)}")
    for types, kind, remedy in _REMEDIES:
        if isinstance(error, types):
            return kind(f"{target}: {first_line(error)}: {remedy}")
    return DatabaseError(f"{target}: {type(error).__name__}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """What the error says, on one line; its type's name where it says nothing, as some errors of sockets do."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def cause_of(error: BaseException) -> BaseException | None:
    """What `error` was raised from, if anything.

    Where asyncpg complains at the end of a transaction that its connection is closed, it is what had closed it.
    """
    hides = isinstance(error, asyncpg.InterfaceError) and "connection is closed" in str(error)
    return error.__cause__ or (error.__context__ if hides else None)
