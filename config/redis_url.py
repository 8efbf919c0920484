"""REDIS_URL: `redis://[user[:password]@]host[:port][/db]`, or `rediss://` for TLS."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from config.errors import Fault, shown

VARIABLE = "REDIS_URL"


def parse(url: str, faults: list[Fault]) -> dict[str, str]:
    """The URL's parts by the name of the variable that they stand for: `{"REDIS_HOST": "cache", …}`.

    What is wrong is added to `faults`, without the URL, which may hold a password.
    """

    def refuse(problem: str, remedy: str = "write redis://:password@host:6379/0, or rediss:// for TLS") -> None:
        faults.append(Fault(VARIABLE, problem, remedy))

    try:
        parts = urlsplit(url.strip())
    except ValueError:
        refuse("is not a URL")
        return {}
    if parts.scheme not in ("redis", "rediss"):
        named = f"has the scheme {shown(parts.scheme)!r}" if parts.scheme and "://" in url else "has no scheme"
        refuse(named)
        return {}
    if parts.fragment:
        refuse("has a '#' that is not percent-encoded", "write '#' in a password as %23")
        return {}
    if "@" in parts.path or "@" in parts.query:  # what follows may be a part of the password: show nothing of it
        refuse("has an '@' after the host", "write '@', '/' and '?' in a password as %40, %2F and %3F")
        return {}
    try:
        port = parts.port
    except ValueError:
        refuse("has a port that is not a whole number from 0 to 65535")
        return {}
    found = {}
    if parts.hostname:
        found["REDIS_HOST"] = unquote(parts.hostname)
    if port is not None:
        found["REDIS_PORT"] = str(port)
    if parts.username:
        found["REDIS_USERNAME"] = unquote(parts.username)
    if parts.password:
        found["REDIS_PASSWORD"] = unquote(parts.password)
    if database := parts.path.removeprefix("/"):
        found["REDIS_DB"] = database
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "db":
            found["REDIS_DB"] = value
        else:
            refuse(f"has the parameter '{shown(name)}', which is not known here", "remove it; known is db")
    return found


def is_tls(url: str) -> bool:
    """Whether the URL asks for TLS, by the scheme `rediss`."""
    return url.strip().lower().startswith("rediss:")
