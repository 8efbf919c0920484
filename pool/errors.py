"""What can go wrong with the pool and on its connections, all of it in Tortoise's family of exceptions."""

from __future__ import annotations

import asyncpg
from tortoise.exceptions import (
    BaseORMException,
    DBConnectionError,
    IntegrityError,
    OperationalError,
    TransactionManagementError,
)


class PoolError(OperationalError):
    """Base of the pool's own errors; itself raised for what a pool can't do."""


class PoolTimeout(PoolError):
    """The pool is full, and no connection came free within DB_POOL_TIMEOUT."""


class PoolSaturated(PoolError):
    """The pool is full, and DB_POOL_MAX_WAITING callers are waiting already."""


class PoolClosed(PoolError):
    """The pool was closed; whoever asks it for a connection outlived it."""


class SchemaNotSet(PoolError):
    """A pooler does not pass DB_SCHEMA on, and the role does not have it of its own."""


class TooManyClients(DBConnectionError):
    """The server, the database or the role has no connection slot left."""


# SQLSTATE classes and codes that end the connection, whatever the statement was.
_LOST = (
    asyncpg.PostgresConnectionError,  # 08…
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.DatabaseDroppedError,
    OSError,
)
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
_STALE = (asyncpg.InvalidCachedStatementError, asyncpg.InvalidSQLStatementNameError)
TOO_MANY_REMEDY = (
    "lower DB_POOL_MAX, run fewer processes, raise max_connections (or the CONNECTION LIMIT), or use PgBouncer;"
    " `poolctl plan --live` calculates it"
)
STALE_REMEDY = (
    "behind a pooler this stays so after a change of the schema: run RECONNECT in PgBouncer's admin console,"
    " and let migrations end with it"
)


def translate_connecting(error: Exception) -> Exception:
    """Tortoise's exception for what asyncpg or the network raised on connecting; to be raised `from error`.

    What is Tortoise's already, and what is neither asyncpg's nor the network's, is returned as it is.
    """
    if isinstance(error, BaseORMException):  # its DBConnectionError is an OSError, too
        return error
    if isinstance(error, asyncpg.TooManyConnectionsError):
        return TooManyClients(f"cannot connect: {describe(error)}: {TOO_MANY_REMEDY}")
    if isinstance(error, DRIVER_ERRORS):
        return DBConnectionError(f"cannot connect: {describe(error)}")
    return error


def translate(error: Exception, *, lost: bool, behind_pooler: bool = False) -> Exception:
    """Tortoise's exception for what a statement raised; to be raised `from error`.

    `error` is one of DRIVER_ERRORS. `lost`: the connection did not survive it.
    """
    if isinstance(error, asyncpg.IntegrityConstraintViolationError):
        return IntegrityError(error)
    if isinstance(error, TimeoutError) and not lost:
        return OperationalError("the statement took longer than DB_COMMAND_TIMEOUT, and was cancelled")
    if lost or isinstance(error, _LOST):
        return DBConnectionError(f"the connection was lost: {describe(error)}")
    if isinstance(error, _STALE) and behind_pooler:
        return OperationalError(f"{error}: {STALE_REMEDY}")
    if isinstance(error, asyncpg.InvalidTransactionStateError):
        return TransactionManagementError(error)
    return OperationalError(error)


def may_pass(error: DBConnectionError) -> bool:
    """Whether the server may be back in a moment: it restarts, or nobody answers at its address.

    `error` is one of connecting: there asyncpg's internal errors are no mistake of the program.
    """
    return not isinstance(error, TooManyClients) and isinstance(error.__cause__, (*_LOST, asyncpg.InternalClientError))


def describe(error: BaseException) -> str:
    """What the error says, on one line; its type's name where it says nothing, as some errors of sockets do."""
    text = str(error).strip() or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    return text.splitlines()[0].rstrip(".")
