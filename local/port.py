"""Free TCP ports of the loopback interface."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"
PORT_TAKEN = "Address already in use"  # strerror(EADDRINUSE), as both servers log it in the C locale
PORT_TRIES = 5
ANSWER_TIMEOUT_S = 2.0  # whoever took the port may be silent


def free_port() -> int:
    """A port nobody listens on now. Somebody else may take it first: whoever uses it tries again then."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
