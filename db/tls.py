"""libpq's sslmode and sslrootcert as the `ssl` argument of asyncpg, which has no keyword for a root certificate."""

from __future__ import annotations

import ssl

from config.settings import Settings
from db.errors import BadTLS

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
