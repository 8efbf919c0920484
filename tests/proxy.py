"""A TCP proxy on loopback before a real server: faults happen on the wire, not in the code under test."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

SSL_REQUEST = 80877103


@dataclass(eq=False)
class _Link:
    """One client's connection through the proxy."""

    flows: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)


@dataclass
class Proxy:
    """Forwards to `host:port`, and misbehaves on demand."""

    host: str
    port: int
    listens_on: int = 0
    deaf: bool = False  # accepts new connections and never answers them
    greeting: bytes | None = None  # answers a new connection's first message with this, and hangs up
    tls: ssl.SSLContext | None = None  # speaks TLS to the client, as a server would, and plain text to the server
    accepted: int = 0
    _server: asyncio.Server | None = None
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

    def cut(self) -> None:
        """Reset the connections that there are."""
        for link in self._links:
            for writer in link.writers:
                writer.transport.abort()

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
            both.create_task(self._pump(link, reader, server_writer))
            both.create_task(self._pump(link, server_reader, writer))

    @staticmethod
    async def _pump(link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await link.flows.wait()
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
