"""libpq's sslmode and sslrootcert as arguments of the drivers, which have no keyword for a root certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

from config.settings import Settings
from db.errors import BadTLS

LIBPQ_ROOT = ".postgresql/root.crt"  # in the home folder
SYSTEM = "system"  # libpq's word for the operating system's own certificate authorities


def ssl_argument(settings: Settings) -> str | ssl.SSLContext:
    """`ssl=` for asyncpg: the mode itself, or a context that checks against DB_SSLROOTCERT.

    As in libpq, `require` with a root certificate checks as `verify-ca` does, and the modes below check nothing:
    they are there to get any connection at all. Without a root certificate asyncpg looks where libpq looks,
    in ~/.postgresql/root.crt.

    Raises BadTLS if the file cannot be read or holds no certificate.
    """
    mode, root = settings.db.sslmode, settings.db.sslrootcert
    if root == SYSTEM and mode != "verify-full":
        raise BadTLS(
            f"DB_SSLROOTCERT={SYSTEM} with DB_SSLMODE={mode}: any site has a certificate of these authorities:"
            " set DB_SSLMODE=verify-full"
        )
    if root is None or mode in ("disable", "allow", "prefer"):
        return mode
    return _context(mode, root)


def socket_tls(settings: Settings) -> ssl.SSLContext | bool | None:
    """`ssl_context=` for pg8000: a context, True for TLS that checks nothing, None for TLS if there is any, or False.

    `allow` is as `prefer`: TLS first. Without a root certificate looks where libpq looks. Raises BadTLS as above.
    """
    argument = ssl_argument(settings)
    if isinstance(argument, ssl.SSLContext):
        return argument
    if argument in ("verify-ca", "verify-full"):
        return _context(argument, str(Path.home() / LIBPQ_ROOT))
    return {"disable": False, "require": True}.get(argument)


def _context(mode: str, root: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        if root == SYSTEM:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile=root)
    except OSError as error:  # SSLError is one
        reason = "holds no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise BadTLS(f"DB_SSLROOTCERT={root}: {reason}: name a readable file of certificate authorities") from error
    return context
