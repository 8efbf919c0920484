"""A job's id as people read and type it: whoever writes to Redis may have put any bytes into one."""

from __future__ import annotations

import re

_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|\\|)")


def id_text(raw: bytes) -> str:
    r"""`raw` for a terminal: a byte that is no UTF-8 or cannot be printed as `\xe9`, a backslash as `\\`."""
    text = raw.replace(b"\\", b"\\\\").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in text)


def id_bytes(text: str) -> bytes:
    """The id that `id_text` shows as `text`. Raises ValueError for a backslash that begins no escape."""
    return _ESCAPE.sub(_unescaped, text.encode(errors="surrogateescape"))  # as Python has bytes of a command line


def _unescaped(escape: re.Match[bytes]) -> bytes:
    what = escape[1]
    if not what:
        raise ValueError(r"a \ begins \\ or, as in \xe9, a byte in two hex digits")
    return what if what == b"\\" else bytes.fromhex(what[1:].decode())
