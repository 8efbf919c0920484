from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from config import Settings
from config.exit_codes import ExitCode
from fleet.errors import FleetError, QueueUnreachable, RefusedByRedis, WrongRedisPassword
from fleet.jobs import EXERCISE_POOL, ExercisePool, NoArguments, enqueue
from fleet.queue import CLOSE_TIMEOUT_S, open_queue
from local import LocalServers
from tests.proxy import open_proxy
from tests.waiting import until


async def test_a_job_lies_in_redis_as_json(environ: dict[str, str]) -> None:
    """An enqueued job is on the queue that WORKER_QUEUE names, and is readable as JSON."""
    async with _queue(environ, WORKER_QUEUE="other:queue") as queue:
        job = await enqueue(queue, EXERCISE_POOL, ExercisePool(queries=7))
        assert await queue.zrange("other:queue", 0, -1) == [job.job_id.encode()]
        stored = json.loads(await queue.get(f"arq:job:{job.job_id}"))
        assert (stored["f"], stored["k"]["queries"]) == ("exercise_pool", 7)


async def test_a_job_id_is_enqueued_once(environ: dict[str, str]) -> None:
    """Of two jobs with the same id one is on the queue, and both callers hold it."""
    async with _queue(environ) as queue:
        jobs = [await enqueue(queue, EXERCISE_POOL, ExercisePool(), job_id="daily") for _ in range(2)]
        assert [job.job_id for job in jobs] == ["daily", "daily"]
        assert await queue.zcard(queue.default_queue_name) == 1
        infos = [await job.info() for job in jobs]
        assert infos[0] is not None
        assert infos[0] == infos[1]


async def test_arguments_of_another_job_are_refused(environ: dict[str, str]) -> None:
    """Arguments that belong to another job raise at the caller, and nothing is enqueued."""
    async with _queue(environ) as queue:
        with pytest.raises(TypeError, match="exercise_pool takes ExercisePool, not NoArguments"):
            await enqueue(queue, EXERCISE_POOL, NoArguments())  # type: ignore[arg-type] # what the test is about
        assert await queue.zcard(queue.default_queue_name) == 0


async def test_nobody_listens(environ: dict[str, str], servers: LocalServers) -> None:
    """Where no server listens, opening fails after REDIS_CONNECT_TIMEOUT with one line and exit code 3."""
    async with open_proxy(servers.redis.host, servers.redis.port) as proxy:
        await proxy.stop()
        error, took_s = await _failure(environ, REDIS_PORT=str(proxy.listens_on), REDIS_CONNECT_TIMEOUT="0.5")
    assert isinstance(error, QueueUnreachable)
    assert error.exit_code is ExitCode.NOT_READY
    assert f"Redis at default@127.0.0.1:{proxy.listens_on}/0 is unreachable" in str(error)
    assert took_s < 3


async def test_a_server_that_says_nothing(environ: dict[str, str], servers: LocalServers) -> None:
    """A server that accepts and never answers fails alike, in the same time."""
    async with open_proxy(servers.redis.host, servers.redis.port) as proxy:
        proxy.deaf = True
        error, took_s = await _failure(environ, REDIS_PORT=str(proxy.listens_on), REDIS_CONNECT_TIMEOUT="0.5")
    assert isinstance(error, QueueUnreachable)
    assert "(no answer in time)" in str(error)
    assert took_s < 3


async def test_a_server_that_is_not_redis(environ: dict[str, str], servers: LocalServers) -> None:
    """A server that does not speak Redis' protocol is reported as unreachable, in one line."""
    async with open_proxy(servers.redis.host, servers.redis.port) as proxy:
        proxy.greeting = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        error, _ = await _failure(environ, REDIS_PORT=str(proxy.listens_on), REDIS_CONNECT_TIMEOUT="0.5")
    assert isinstance(error, QueueUnreachable)


async def test_a_server_that_comes_up_is_waited_for(environ: dict[str, str], servers: LocalServers) -> None:
    """A server that hangs up at first, as one does that starts, is tried again."""
    async with open_proxy(servers.redis.host, servers.redis.port) as proxy:
        proxy.greeting = b""

        async def open_and_ping() -> bool:
            async with _queue(environ, REDIS_PORT=str(proxy.listens_on)) as queue:
                return bool(await queue.ping())

        opening = asyncio.create_task(open_and_ping())
        await until(lambda: proxy.accepted >= 2, what="two attempts failed")
        proxy.greeting = None
        assert await opening


async def test_a_wrong_password(environ: dict[str, str]) -> None:
    """A wrong password fails at once with exit code 2, and neither password is shown."""
    error, took_s = await _failure(environ, REDIS_PASSWORD="not the password", REDIS_CONNECT_TIMEOUT="20")
    assert isinstance(error, WrongRedisPassword)
    assert error.exit_code is ExitCode.USAGE
    assert "not the password" not in str(error)
    assert environ["REDIS_PASSWORD"] not in str(error)
    assert took_s < 5


async def test_no_password(environ: dict[str, str]) -> None:
    """No password where one is needed is told as the password's fault."""
    del environ["REDIS_PASSWORD"]
    error, _ = await _failure(environ, REDIS_CONNECT_TIMEOUT="20")
    assert isinstance(error, WrongRedisPassword)


async def test_a_database_that_redis_does_not_have(environ: dict[str, str]) -> None:
    """A REDIS_DB beyond the server's is a bad setting, named with its value."""
    error, _ = await _failure(environ, REDIS_DB="12345", REDIS_CONNECT_TIMEOUT="20")
    assert isinstance(error, RefusedByRedis)
    assert error.exit_code is ExitCode.USAGE
    assert "check REDIS_DB=12345" in str(error)


async def test_more_callers_than_connections_wait(environ: dict[str, str]) -> None:
    """REDIS_MAX_CONNECTIONS is how many there are; whoever finds none waits and is not refused."""
    async with _queue(environ, REDIS_MAX_CONNECTIONS="2") as queue:
        await asyncio.gather(*(queue.blpop(["nothing"], timeout=0.05) for _ in range(10)))
        assert len(await queue.client_list()) == 2


async def test_closing_leaves_no_connection(environ: dict[str, str]) -> None:
    """After the queue is closed the server has none of its connections."""
    async with _queue(environ) as queue:
        await asyncio.gather(*(queue.ping() for _ in range(5)))
        assert len(await queue.client_list()) > 1
    async with _observer(environ) as observer:

        async def alone() -> bool:
            return len(await observer.client_list()) == 1

        await until(alone, what="all connections but the observer's are gone")


async def test_a_frozen_server(environ: dict[str, str], servers: LocalServers) -> None:
    """A server that froze costs a command REDIS_SOCKET_TIMEOUT and closing CLOSE_TIMEOUT_S, not more."""
    with _frozen(servers) as freeze:
        async with asyncio.timeout(10), _queue(environ, REDIS_SOCKET_TIMEOUT="0.5") as queue:
            freeze()
            started = time.monotonic()
            with pytest.raises(RedisTimeoutError):
                await queue.get("x")
            assert time.monotonic() - started < 3
            closing = time.monotonic()
        assert time.monotonic() - closing < CLOSE_TIMEOUT_S + 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate: openssl is not on PATH")
async def test_tls_verifies_the_servers_name(
    environ: dict[str, str], servers: LocalServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rediss://` accepts a trusted certificate of the server's name, and refuses one of another name."""
    url = f"rediss://:{environ['REDIS_PASSWORD']}@localhost:"
    for name in [name for name in environ if name.startswith("REDIS_")]:
        del environ[name]

    for name in ("localhost", "elsewhere.example"):
        certificate, key = _certificate(tmp_path, name)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        async with _tls_proxy(servers, context) as port:
            redis = {"REDIS_URL": f"{url}{port}/0", "REDIS_CONNECT_TIMEOUT": "0.5"}
            if name == "localhost":
                async with _queue(environ, **redis) as queue:
                    assert await queue.ping()
            else:
                error, _ = await _failure(environ, **redis)
                assert isinstance(error, QueueUnreachable)
                assert "Hostname mismatch" in str(error)


@asynccontextmanager
async def _queue(environ: dict[str, str], **changes: str) -> AsyncIterator[ArqRedis]:
    async with open_queue(Settings.load("worker", environ | changes)) as queue:
        yield queue


async def _failure(environ: dict[str, str], **changes: str) -> tuple[FleetError, float]:
    """The error of opening, which must be one line, and how long it took in seconds."""
    started = time.monotonic()
    with pytest.raises(FleetError) as caught:
        async with _queue(environ, **changes):
            pass
    assert "\n" not in str(caught.value)
    return caught.value, time.monotonic() - started


@asynccontextmanager
async def _observer(environ: dict[str, str]) -> AsyncIterator[Redis]:
    client = Redis(host=environ["REDIS_HOST"], port=int(environ["REDIS_PORT"]), password=environ["REDIS_PASSWORD"])
    async with client:
        yield client


@asynccontextmanager
async def _tls_proxy(servers: LocalServers, context: ssl.SSLContext) -> AsyncIterator[int]:
    """TLS on a free port before the real Redis, which need not know TLS; the port is yielded."""
    handling: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handling.add(task)
        redis_reader, redis_writer = await asyncio.open_connection(servers.redis.host, servers.redis.port)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, redis_writer))
                both.create_task(_pump(redis_reader, writer))
        finally:
            handling.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await until(lambda: not handling, what="all connections of the TLS proxy are closed")
        await server.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def _frozen(servers: LocalServers) -> Iterator[Callable[[], None]]:
    """Yields what freezes Redis; it goes on at the end."""
    try:
        yield lambda: os.kill(servers.redis.child.pid, signal.SIGSTOP)
    finally:
        os.kill(servers.redis.child.pid, signal.SIGCONT)


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for `name`, and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key
