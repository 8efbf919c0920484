"""This process's connections to Redis: the job queue, and what the registry stands on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq.connections import ArqRedis
from redis.asyncio.connection import BlockingConnectionPool, ConnectionPool
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from config import Settings
from config.groups import RedisSettings
from fleet.connection import PlainConnection, TLSConnection
from fleet.errors import FleetError, QueueUnreachable, RefusedByRedis, WrongRedisPassword, reason
from fleet.sentinel import Master
from fleet.wire import dumps, loads

logger = logging.getLogger(__name__)

RETRY_DELAY_S = 0.1  # doubled after each failed attempt
LONGEST_RETRY_DELAY_S = 1.0
CLOSE_TIMEOUT_S = 1.0
_WHERE = {False: "REDIS_HOST and REDIS_PORT", True: "REDIS_SENTINELS and REDIS_SENTINEL_MASTER"}


class Queue(ArqRedis):
    """The job queue, and what its workers take: payloads of up to `largest_payload` bytes."""

    def __init__(self, pool: ConnectionPool, *, largest_payload: int, **options: Any) -> None:
        super().__init__(pool, **options)
        self.largest_payload = largest_payload


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[Queue]:
    """The job queue, checked with a PING at once; closed at the end, within CLOSE_TIMEOUT_S.

    A server that does not answer is tried again until REDIS_CONNECT_TIMEOUT is over. Raises QueueUnreachable,
    WrongRedisPassword or RefusedByRedis, with nothing left open.
    """
    master = Master(settings.redis) if settings.redis.sentinels else None
    queue = _client(settings, master)
    try:
        await _wait_until_ready(queue, settings.redis)
        yield queue
    finally:
        await _close(queue, master)


def address(redis: RedisSettings) -> str:
    """Who and where, for messages: `default@localhost:6379/0`. Without the password."""
    if redis.sentinels:
        return f"{redis.username or 'default'}@{redis.sentinel_master}/{redis.db} (by {','.join(redis.sentinels)})"
    return f"{redis.username or 'default'}@{redis.host}:{redis.port}/{redis.db}"


def _client(settings: Settings, master: Master | None) -> Queue:
    redis = settings.redis
    options: dict[str, Any] = {
        "host": redis.host,
        "port": redis.port,
        "db": redis.db,
        "username": redis.username,
        "password": None if redis.password is None else redis.password.get_secret_value(),
        "max_connections": redis.max_connections,
        "timeout": redis.connect_timeout + redis.socket_timeout,  # the wait for a free one of max_connections
        "socket_connect_timeout": redis.connect_timeout,
        "socket_timeout": redis.socket_timeout,
        "socket_keepalive": True,
        "health_check_interval": redis.health_check_interval,
        "connection_class": PlainConnection,
        "master": master,
    }
    if redis.tls:
        # redis-py verifies a certificate's chain by default, but not the name on it.
        options |= {"connection_class": TLSConnection, "ssl_check_hostname": True}
    return Queue(
        BlockingConnectionPool(**options),
        largest_payload=settings.worker.max_payload,
        job_serializer=dumps,
        job_deserializer=loads,
        default_queue_name=settings.worker.queue,
    )


async def _wait_until_ready(queue: ArqRedis, redis: RedisSettings) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + redis.connect_timeout
    delay = RETRY_DELAY_S
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                await queue.ping()
            return
        except (RedisError, OSError) as error:  # OSError: TimeoutError of the deadline too
            if (refusal := _refusal(error, redis)) is not None:
                raise refusal from None
            if loop.time() + delay >= deadline:
                raise QueueUnreachable(
                    f"Redis at {address(redis)} is unreachable, tried for {redis.connect_timeout:g} s "
                    f"({reason(error)}): start it, or check {_WHERE[bool(redis.sentinels)]}"
                ) from None
        await asyncio.sleep(delay)
        delay = min(delay * 2, LONGEST_RETRY_DELAY_S)


def _refusal(error: Exception, redis: RedisSettings) -> FleetError | None:
    """The error to raise at once where Redis answers and another attempt would be answered alike."""
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return WrongRedisPassword(
            f"Redis at {address(redis)} refuses this user or password ({reason(error)}): "
            "check REDIS_USERNAME and REDIS_PASSWORD"
        )
    if isinstance(error, ResponseError):
        return RefusedByRedis(f"Redis at {address(redis)} refuses ({reason(error)}): check REDIS_DB={redis.db}")
    return None


async def _close(queue: ArqRedis, master: Master | None) -> None:
    """Close what was opened; a server that is gone or frozen must not hold up the end of the process."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await queue.aclose(close_connection_pool=True)
            if master is not None:
                await master.close()
    except (RedisError, OSError) as error:
        logger.warning("closing the connections to Redis failed: %s", reason(error))
