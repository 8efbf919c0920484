"""DATABASE_URL, read as libpq reads it.

Tortoise's own reading is not used: it takes `ssl=false` for true, fails on `sslmode=require` at the first query,
and lets pool sizes through that contradict each other.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from config.errors import Fault, shown

VARIABLE = "DATABASE_URL"
SCHEMES = ("postgres", "postgresql", "asyncpg")

# Query parameters that work, and the variable whose bounds they share.
SESSION_PARAMETERS = {
    "sslmode": "DB_SSLMODE",
    "sslrootcert": "DB_SSLROOTCERT",
    "application_name": "DB_APPLICATION_NAME",
    "connect_timeout": "DB_CONNECT_TIMEOUT",
    "target_session_attrs": "DB_TARGET_SESSION_ATTRS",
}
_POOL_WORDS = (
    "minsize",
    "maxsize",
    "maxqueries",
    "maxinactive",
    "pool",
    "overflow",
    "initsize",
    "recycle",
    "lifetime",
)


def parse(url: str, faults: list[Fault]) -> dict[str, str]:
    """The URL's parts by the name of the variable that they stand for: `{"DB_HOST": "db", "DB_PORT": "5432", …}`.

    What is wrong is added to `faults`, by parameter name and without the URL, which holds a password.
    """

    def refuse(problem: str, remedy: str) -> None:
        faults.append(Fault(VARIABLE, problem, remedy))

    try:
        parts = urlsplit(url.strip())
    except ValueError:
        refuse("is not a URL", "write postgresql://user:password@host:5432/database")
        return {}
    if parts.scheme not in SCHEMES:
        named = f"has the scheme {shown(parts.scheme)!r}" if parts.scheme and "://" in url else "has no scheme"
        refuse(named, "write postgresql://user:password@host:5432/database")
        return {}
    if parts.fragment:
        refuse("has a '#' that is not percent-encoded", "write '#' in a password as %23")
        return {}
    if "@" in parts.path or "@" in parts.query:  # what follows may be a part of the password: show nothing of it
        refuse("has an '@' after the host", "write '@', '/' and '?' in a password as %40, %2F and %3F")
        return {}
    found = _authority(parts, refuse)
    database = unquote(parts.path.removeprefix("/"))
    if "/" in database:
        refuse("has more than one '/' after the host", "write a '/' in a password or a name as %2F")
    elif database:
        found["DB_NAME"] = database
    found.update(_query(parts.query, refuse))
    return found


def _authority(parts: SplitResult, refuse: Callable[[str, str], None]) -> dict[str, str]:
    userinfo, _, hosts = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    found = {"DB_PASSWORD": unquote(password)}
    if user:
        found["DB_USER"] = unquote(user)
    names, ports = [], []
    for host in hosts.split(",") if hosts else []:
        name, port = _host_and_port(host)
        if not name:
            refuse("has an empty host", "write postgresql://user:password@host:5432/database")
        names.append(name)
        ports.append(port or "5432")
    if names:
        found["DB_HOST"] = ",".join(names)
        found["DB_PORT"] = ",".join(ports)
    return found


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("["):  # an IPv6 address
        name, _, rest = text[1:].partition("]")
        return name, rest.removeprefix(":")
    name, _, port = text.partition(":")
    return unquote(name), port


def _query(query: str, refuse: Callable[[str, str], None]) -> dict[str, str]:
    found = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in SESSION_PARAMETERS:
            found[SESSION_PARAMETERS[name]] = value
        elif any(word in name.lower().replace("_", "") for word in _POOL_WORDS):
            refuse(
                f"has the pool parameter '{shown(name)}', and DATABASE_URL and pool settings exclude each other",
                "remove it; or replace DATABASE_URL by DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME "
                "and set DB_POOL_MIN and DB_POOL_MAX",
            )
        else:
            refuse(
                f"has the parameter '{shown(name)}', which is not known here",
                f"remove it; known are {', '.join(SESSION_PARAMETERS)}",
            )
    return found
