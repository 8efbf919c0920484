from __future__ import annotations

import socket
import ssl

import asyncpg
import pytest
from tortoise.exceptions import DBConnectionError

from config.exit_codes import ExitCode
from db.errors import (
    BadTLS,
    DatabaseError,
    DatabaseUnreachable,
    LoginRefused,
    NoSuchDatabase,
    NoSuitableServer,
    SchemaBehind,
    TooManyClients,
    WrongPassword,
    classify,
)

TARGET = "me@host:5432/data"


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (asyncpg.InvalidPasswordError('password authentication failed for user "me"'), WrongPassword),
        (asyncpg.InvalidAuthorizationSpecificationError('role "me" does not exist'), LoginRefused),
        (asyncpg.InsufficientPrivilegeError('permission denied for database "data"'), LoginRefused),
        (asyncpg.InvalidCatalogNameError('database "data" does not exist'), NoSuchDatabase),
        (asyncpg.TooManyConnectionsError("sorry, too many clients already"), TooManyClients),
        (asyncpg.CannotConnectNowError("the database system is starting up"), DatabaseUnreachable),
        (asyncpg.AdminShutdownError("terminating connection due to administrator command"), DatabaseUnreachable),
        (asyncpg.ConnectionDoesNotExistError("connection was closed in the middle"), DatabaseUnreachable),
        (asyncpg.ProtocolViolationError("server_login_retry"), DatabaseUnreachable),
        (asyncpg.TargetServerAttributeNotMatched("None of the hosts match"), NoSuitableServer),
        (asyncpg.InternalClientError("got result for unknown protocol state"), DatabaseUnreachable),
        (asyncpg.ClientConfigurationError("root certificate file does not exist"), BadTLS),
        (ConnectionError('PostgreSQL server at "host:5432" rejected SSL upgrade'), BadTLS),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), BadTLS),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), DatabaseUnreachable),
        (ConnectionRefusedError(111, "Connect call failed"), DatabaseUnreachable),
        (ConnectionResetError(), DatabaseUnreachable),
        (socket.gaierror(-2, "Name or service not known"), DatabaseUnreachable),
        (TimeoutError(), DatabaseUnreachable),
        (asyncpg.ObjectNotInPrerequisiteStateError("database is not accepting connections"), DatabaseError),
        (ValueError("a surprise"), DatabaseError),
    ],
)
def test_every_raw_error_has_its_class(raw: Exception, kind: type[DatabaseError]) -> None:
    """What asyncpg raises becomes one class of ours, in one line that names the target."""
    error = classify(raw, TARGET)
    assert type(error) is kind
    assert str(error).startswith(f"{TARGET}: ")
    assert "\n" not in str(error)


def test_detail_and_hint_of_the_server_stay_off_the_line() -> None:
    """Only the first line of a server's message is shown."""
    raw = asyncpg.InsufficientPrivilegeError("permission denied")
    raw.detail = "User does not have CONNECT privilege."
    assert "\n" not in str(classify(raw, TARGET))


def test_tortoise_s_wrapping_is_looked_through() -> None:
    """Tortoise's DBConnectionError is classified by its cause."""
    wrapped = DBConnectionError("Can't establish connection to database data")
    wrapped.__cause__ = asyncpg.InvalidCatalogNameError('database "data" does not exist')
    assert isinstance(classify(wrapped, TARGET), NoSuchDatabase)


def test_a_classified_error_stays_itself() -> None:
    """Classifying twice changes nothing."""
    error = SchemaBehind("behind")
    assert classify(error, TARGET) is error


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (DatabaseUnreachable, ExitCode.NOT_READY),
        (TooManyClients, ExitCode.NOT_READY),
        (NoSuitableServer, ExitCode.NOT_READY),
        (SchemaBehind, ExitCode.NOT_READY),
        (WrongPassword, ExitCode.USAGE),
        (LoginRefused, ExitCode.USAGE),
        (NoSuchDatabase, ExitCode.USAGE),
        (BadTLS, ExitCode.USAGE),
    ],
)
def test_exit_codes_tell_bad_settings_from_not_ready(kind: type[DatabaseError], code: ExitCode) -> None:
    """2 says that starting again does not help, 3 that it may; and exactly what may pass is tried again."""
    assert kind.exit_code is code
    assert kind.transient is (code is ExitCode.NOT_READY and kind is not SchemaBehind)
