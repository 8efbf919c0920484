"""The fault proxy's own faults, each on a real connection to a server that says everything back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.proxy import Proxy, open_proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SOON_S = 0.1


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says every chunk back."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, open_proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as opened:
        yield opened


@contextlib.asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Streams]:
    """A client's connection through the proxy."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.listens_on)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(streams: Streams, question: bytes) -> bytes:
    """What comes back."""
    reader, writer = streams
    writer.write(question)
    return await reader.readexactly(len(question))


async def silent(streams: Streams) -> bool:
    """Whether nothing comes for a while: no byte, no end."""
    try:
        async with asyncio.timeout(SOON_S):
            await streams[0].read(1)
    except TimeoutError:
        return True
    return False


async def test_it_forwards(proxy: Proxy) -> None:
    """Without a fault bytes arrive as they were sent, many of them too, and both kinds of counter count."""
    async with connected(proxy) as streams:
        assert await ask(streams, b"hello") == b"hello"
        much = bytes(range(256)) * 4096
        assert await ask(streams, much) == much
    assert (proxy.accepted, proxy.sent) == (1, 5 + len(much))


async def test_stop_refuses_and_start_listens_again(proxy: Proxy) -> None:
    """A stopped proxy refuses new connections, has cut the old ones, and comes back on the same port."""
    async with connected(proxy) as streams:
        await ask(streams, b"hello")
        await proxy.stop()
        with pytest.raises(ConnectionResetError):
            await streams[0].read(1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.listens_on)
    await proxy.start()
    async with connected(proxy) as streams:
        assert await ask(streams, b"hello") == b"hello"


async def test_deaf_accepts_and_never_answers(proxy: Proxy) -> None:
    """Only new connections are concerned."""
    async with connected(proxy) as old:
        await ask(old, b"hello")
        proxy.deaf = True
        async with connected(proxy) as new:
            new[1].write(b"hello")
            assert await silent(new)
        assert await ask(old, b"hello") == b"hello"


async def test_freeze_holds_and_thaw_delivers(proxy: Proxy) -> None:
    """Nothing gets through a frozen connection, and nothing is lost."""
    async with connected(proxy) as streams:
        await ask(streams, b"hello")
        proxy.freeze()
        streams[1].write(b"later")
        assert await silent(streams)
        assert proxy.sent == 10
        proxy.thaw()
        assert await streams[0].readexactly(5) == b"later"


async def test_cut_resets(proxy: Proxy) -> None:
    """The connections that there are end with a reset, not with an end of file."""
    async with connected(proxy) as streams:
        await ask(streams, b"hello")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await streams[0].read(1)


async def test_cut_after_towards_the_client(proxy: Proxy) -> None:
    """Exactly so many bytes of the answers arrive, over several messages, then the reset; the next one is whole."""
    async with connected(proxy) as streams:
        proxy.cut_after(8, "client")
        assert await ask(streams, b"hello") == b"hello"
        streams[1].write(b"hello")
        assert await streams[0].readexactly(3) == b"hel"
        with pytest.raises(ConnectionResetError):
            await streams[0].read(1)
    async with connected(proxy) as streams:
        assert await ask(streams, b"hello again") == b"hello again"


async def test_cut_after_towards_the_server(proxy: Proxy) -> None:
    """The server sees so many bytes and a reset; a message that fits exactly is whole."""
    async with connected(proxy) as streams:
        proxy.cut_after(5, "server")
        assert await ask(streams, b"hello") == b"hello"
        streams[1].write(b"!")
        with pytest.raises(ConnectionResetError):
            await streams[0].read(1)


async def test_cut_after_several_times(proxy: Proxy) -> None:
    """One connection after the other is reset, then no more."""
    async with connected(proxy) as one, connected(proxy) as other:
        proxy.cut_after(2, "server", times=2)
        for streams in (one, other):
            streams[1].write(b"hello")
            with pytest.raises(ConnectionResetError):
                await streams[0].readexactly(5)
    async with connected(proxy) as streams:
        assert await ask(streams, b"hello") == b"hello"


async def test_delay_is_each_way_and_on_a_long_line(proxy: Proxy) -> None:
    """A round trip takes twice the delay; ten messages sent one after another take no longer than one."""
    proxy.delay_s = 0.1
    clock = asyncio.get_running_loop().time
    async with connected(proxy) as streams:
        started = clock()
        await ask(streams, b"hello")
        assert 0.2 <= clock() - started < 0.4

        started = clock()
        for _ in range(10):
            streams[1].write(b"x")
            await asyncio.sleep(0.002)  # so that they are ten chunks
        assert await streams[0].readexactly(10) == b"x" * 10
        assert 0.2 <= clock() - started < 1.0

        proxy.delay_s = 0.0
        assert await ask(streams, b"hello") == b"hello"


async def test_delay_holds_back_the_end_too() -> None:
    """What a client sent before it hung up still arrives, and then the end."""
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set_result(await reader.read(-1))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server, open_proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        proxy.delay_s = SOON_S
        async with connected(proxy) as (_, writer):
            writer.write(b"hello")
        async with asyncio.timeout(5):
            assert await heard == b"hello"
