"""A TCP proxy on loopback before a real server: faults happen on the wire, not in the code under test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

SSL_REQUEST = 80877103
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: close() sends RST where it would send FIN

Way = Literal["client", "server"]  # whom bytes are on their way to


@dataclass(eq=False)
class _Link:
    """One client's connection through the proxy."""

    flows: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def reset(self) -> None:
        """Send both sides a RST."""
        for writer in self.writers:
            if (connection := writer.get_extra_info("socket")) is not None and connection.fileno() >= 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            writer.transport.abort()


@dataclass
class Proxy:
    """Forwards to `host:port`, and misbehaves on demand."""

    host: str
    port: int
    listens_on: int = 0
    deaf: bool = False  # accepts new connections and never answers them
    greeting: bytes | None = None  # answers a new connection's first message with this, and hangs up
    tls: ssl.SSLContext | None = None  # speaks TLS to the client, as a server would, and plain text to the server
    delay_s: float = 0.0  # each chunk arrives that much later, either way: a round trip takes twice as long
    accepted: int = 0  # connections
    sent: int = 0  # bytes that clients sent, whether they arrived or not
    _server: asyncio.Server | None = None
    _cuts: dict[Way, list[int]] = field(default_factory=lambda: {"client": [], "server": []})
    _links: set[_Link] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.listens_on)
        self.listens_on = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections and cut those that there are."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def freeze(self) -> None:
        """Let nothing more through on the connections that there are, as when a cable is pulled."""
        for link in self._links:
            link.flows.clear()

    def thaw(self) -> None:
        """Put the cable back: what was held arrives now."""
        for link in self._links:
            link.flows.set()

    def cut(self) -> None:
        """Reset the connections that there are."""
        for link in self._links:
            link.reset()

    def cut_after(self, count: int, towards: Way, *, times: int = 1) -> None:
        """Let `count` more bytes through to clients or to the server, then reset the connection that carries the next.

        Bytes of all connections count together, those of new ones too. Happens so many times; replaces what an
        earlier call has left to do.
        """
        self._cuts[towards] = [count] * times

    async def close(self) -> None:
        """Stop, and end what is left."""
        await self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        link = _Link(writers=[writer])
        link.flows.set()
        self._links.add(link)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._talk(link, reader, writer)
        except asyncio.CancelledError:
            pass  # by close(); asyncio's streams would print a cancelled handler as a failed one
        finally:
            self._links.discard(link)
            for each in link.writers:
                each.transport.abort()

    async def _talk(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.deaf:
            await asyncio.Event().wait()
        if self.greeting is not None:
            await reader.read(4096)
            writer.write(self.greeting)
            await writer.drain()
            return
        if self.tls is not None:
            _, code = struct.unpack("!ii", await reader.readexactly(8))
            assert code == SSL_REQUEST
            writer.write(b"S")
            await writer.start_tls(self.tls)
        server_reader, server_writer = await asyncio.open_connection(self.host, self.port)
        link.writers.append(server_writer)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._pump(link, reader, server_writer, "server"))
            both.create_task(self._pump(link, server_reader, writer, "client"))

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, towards: Way
    ) -> None:
        # Reading does not wait for delivery: chunks follow each other on a long line.
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        clock = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._deliver(link, line, writer, towards))
            data = b"not yet its end"
            while data:
                try:
                    data = await reader.read(65_536)
                except OSError:
                    data = b""
                if towards == "server":
                    self.sent += len(data)
                line.put_nowait((clock() + self.delay_s, data))

    async def _deliver(
        self, link: _Link, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, towards: Way
    ) -> None:
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(OSError):
            while True:
                due, data = await line.get()
                if (early_s := due - clock()) > 0:
                    await asyncio.sleep(early_s)
                if not data:
                    break
                await link.flows.wait()
                cuts = self._cuts[towards]
                if cuts and cuts[0] < len(data):
                    writer.write(data[: cuts.pop(0)])
                    link.reset()
                    return
                if cuts:
                    cuts[0] -= len(data)
                writer.write(data)
                await writer.drain()
        writer.transport.abort() if not link.flows.is_set() else writer.close()


@contextlib.asynccontextmanager
async def open_proxy(host: str, port: int | str) -> AsyncIterator[Proxy]:
    """A proxy before `host:port`; its own port is `.listens_on`."""
    proxy = Proxy(host, int(port))
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()


def through(proxy: Proxy, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with the proxy before the database."""
    return {**environ, "DB_PORT": str(proxy.listens_on)}
