"""A TCP proxy that makes every round trip longer, in a process of its own so that it takes no time from the client's.

Run as a script: `delay_proxy.py HOST PORT SECONDS` listens on a free port of loopback, prints its number, and serves
until it is ended. What the server says reaches the client that much later; what the client says goes on at once.
Standard library only.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections import deque

CHUNK = 65536


class DelayProxy:
    """Forwards each connection to `server`. `select` waits by the microsecond; epoll would by the millisecond."""

    def __init__(self, listener: socket.socket, server: tuple[str, int], delay_s: float) -> None:
        self._listener = listener
        self._server = server
        self._delay_s = delay_s
        self._peers: dict[socket.socket, socket.socket] = {}  # of both ends of each connection
        self._clients: set[socket.socket] = set()
        self._readers = {listener}
        self._due: deque[tuple[float, socket.socket, bytes]] = deque()  # in order: the delay is the same for all

    def serve(self) -> None:
        """Forward without end."""
        while True:
            wait_s = max(0.0, self._due[0][0] - time.perf_counter()) if self._due else None
            for reader in select.select(self._readers, [], [], wait_s)[0]:
                if reader is self._listener:
                    self._accept()
                elif reader in self._peers:  # or it was closed in this very turn
                    self._read(reader)
            while self._due and self._due[0][0] <= time.perf_counter():
                _, client, data = self._due.popleft()
                self._forward(client, data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._server)
        for end, peer in ((client, server), (server, client)):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[end] = peer
            self._readers.add(end)
        self._clients.add(client)

    def _read(self, reader: socket.socket) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            data = reader.recv(CHUNK)
        if not data:
            self._readers.discard(reader)
        if reader in self._clients:
            self._forward(self._peers[reader], data)
        else:
            self._due.append((time.perf_counter() + self._delay_s, self._peers[reader], data))

    def _forward(self, end: socket.socket, data: bytes) -> None:
        """Say to one end what the other said; nothing, when the other hung up: then both are closed."""
        if data:
            with contextlib.suppress(OSError):  # it has gone
                end.sendall(data)
        elif peer := self._peers.get(end):
            for closed in (end, peer):
                del self._peers[closed]
                self._readers.discard(closed)
                self._clients.discard(closed)
                closed.close()


def main() -> None:
    host, port, delay_s = sys.argv[1:]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201 - its parent reads the port
        DelayProxy(listener, (host, int(port)), float(delay_s)).serve()


if __name__ == "__main__":
    main()
