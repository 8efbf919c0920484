"""Redis comes and goes; a worker goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisError

from fleet.backoff import Backoff
from fleet.errors import reason

T = TypeVar("T")

logger = logging.getLogger(__name__)

BACKOFF = Backoff(first_s=0.05, longest_s=1.0)  # short: owners must renew while others hold back
TOLD_AFTER_S = 1.0  # a connection that was cut is no outage

LOST = (RedisError, OSError)


class Outage:
    """Whether the Redis at `address` answers, as all parts of a worker find it; tells of each outage once."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._since: float | None = None
        self._told = False

    def failed(self, error: Exception) -> None:
        """A call failed."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            logger.debug("a call to Redis at %s failed: %s", self._address, reason(error))
        elif not self._told and now - self._since >= TOLD_AFTER_S:
            self._told = True
            logger.warning("Redis at %s is away (%s): no new jobs; those that run go on", self._address, reason(error))

    def answered(self) -> None:
        """A call went well."""
        if self._told and self._since is not None:
            logger.warning("Redis at %s is back after %.0f s", self._address, time.monotonic() - self._since)
        self._since, self._told = None, False

    async def outlast(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` gives, called again until Redis answers. It must bear to be repeated."""
        tries = 0
        while True:
            try:
                answer = await call()
            except LOST as error:
                tries += 1
                self.failed(error)
                await asyncio.sleep(BACKOFF.pause_s(tries))
            else:
                self.answered()
                return answer
