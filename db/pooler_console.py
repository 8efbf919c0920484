"""PgBouncer's admin console: what it answers, and who listens where.

It speaks the simple query protocol alone, in which asyncpg reads no rows; pg8000 does. Everything here blocks, but
`in_thread`, which bounds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pg8000.native

from db.errors import first_line

ADMIN_DATABASE = "pgbouncer"
SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # a greeting that every PostgreSQL server answers with one letter

Rows = list[dict[str, Any]]
Address = tuple[str, int]
Result = TypeVar("Result")


class ConsoleRefused(Exception):
    """PgBouncer does not let us in, or does not obey; its own words, on one line."""


class ConsoleLost(Exception):
    """There is no connection, or it broke; why, on one line."""


class NotPgBouncer(Exception):
    """What answers is something else."""


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in; `tls` as pg8000 takes it."""

    user: str
    password: Callable[[], str]  # so that no repr shows it
    tls: ssl.SSLContext | bool | None
    application_name: str


def ask(connected: socket.socket, host: str, login: Login, *commands: str) -> list[Rows]:
    """The rows that the console answers with to each command; none where it has none to give.

    `host` is the name that a certificate must have. Closes the socket. Raises one of the errors above.
    """
    try:
        with connected:
            console = pg8000.native.Connection(
                login.user,
                host=host,
                password=login.password(),
                database=ADMIN_DATABASE,
                application_name=login.application_name,
                ssl_context=False if connected.family == socket.AF_UNIX else login.tls,
                sock=connected,
            )
            with console:
                return [_rows(console, command) for command in commands]
    except pg8000.native.DatabaseError as error:
        raise ConsoleRefused(first_line(Exception(str(error.args[0].get("M"))))) from error
    except (OSError, pg8000.native.InterfaceError) as error:
        raise ConsoleLost(first_line(error)) from error
    except Exception as error:
        # Whatever else listens there: pg8000 lets a KeyError, a struct.error or scramp's own errors through. Their
        # texts may quote what was sent, so only the type is told.
        raise NotPgBouncer(type(error).__name__) from error


def _rows(console: pg8000.native.Connection, command: str) -> Rows:
    rows = console.run(command)
    names = [column["name"] for column in console.columns or ()]
    return [dict(zip(names, row, strict=True)) for row in rows or ()]


def connect_socket(host: str, port: int, timeout_s: float) -> socket.socket:
    """A socket of our own, so that its errors are the system's; `host` may be a folder with a Unix socket."""
    if not host.startswith("/"):
        return socket.create_connection((host, port), timeout_s)
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(timeout_s)
        connected.connect(f"{host}/.s.PGSQL.{port}")
    except OSError:
        connected.close()
        raise
    return connected


def addresses_of(host: str, port: int) -> set[Address]:
    """All that a name stands for, as (IP address, port); a Unix socket's folder is itself; nothing if unknown."""
    if host.startswith("/"):
        return {(host, port)}
    try:
        return {(str(found[4][0]), port) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def speaks_postgres(address: Address, timeout_s: float) -> bool:
    """Whether a server of PostgreSQL's protocol, as PgBouncer is one, listens at an address of `addresses_of`."""
    try:
        with connect_socket(*address, timeout_s) as connected:
            connected.sendall(SSL_REQUEST)
            return connected.recv(1) in (b"S", b"N")
    except OSError:
        return False


async def in_thread(function: Callable[[], Result], *, within_s: float) -> Result:
    """The result of a function that blocks. Raises what it raises, or TimeoutError.

    Unlike that of asyncio.to_thread nothing waits for the thread, neither here nor at the end of the program: a name
    server that does not answer can keep one for minutes.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        set_outcome: Callable[[Any], None] = future.set_result
        outcome: object
        try:
            outcome = function()
        except Exception as error:  # whatever it is, it belongs to the one who waits
            set_outcome, outcome = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, set_outcome, outcome)

    threading.Thread(target=run, name="pooler", daemon=True).start()
    async with asyncio.timeout(within_s):
        return await future
