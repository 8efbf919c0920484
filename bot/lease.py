"""What only one process of the fleet may do at a time: a lease in Redis that its holder renews."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from arq.connections import ArqRedis
from redis.exceptions import RedisError

from bot.errors import LeaseLost
from fleet.errors import reason

logger = logging.getLogger(__name__)

# The next holder begins LEASE_S + ASK_EVERY_S after the last renewal at the latest. Our own clock ends the lease
# MARGIN_S earlier, counted from before the renewal was sent, so that nobody else has it while we still act.
LEASE_S = 10.0
MARGIN_S = 2.0
RENEW_EVERY_S = 2.5
RENEW_TIMEOUT_S = 2.0
ASK_EVERY_S = 1.0
RELEASE_TIMEOUT_S = 1.0

# Takes the lease where nobody has it, renews one's own; answers who has it.
_ASK = """
local holder = redis.call('GET', KEYS[1])
if holder == false or holder == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return ARGV[1]
end
return holder
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Lease:
    """The lease `key`, for the process that others know as `name`. Only Redis' clock decides when it is free."""

    def __init__(self, queue: ArqRedis, key: str, name: str) -> None:
        self.key = key
        # Told apart from an earlier process of the same name: in a container, each has pid 1.
        self.holder = f"{name} {secrets.token_hex(8)}"
        self._ask_script = queue.register_script(_ASK)
        self._release_script = queue.register_script(_RELEASE)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Wait until the lease is ours, and hold it while inside; released at the end, at once.

        Raises LeaseLost, having cancelled what is inside, when it could not be renewed, before another process can
        have it; a process that was frozen finds out when it goes on.
        """
        limit = asyncio.timeout(None)
        loss = ["it was not renewed in time"]
        try:
            taken_until = await self._taken()
            async with limit:
                limit.reschedule(taken_until)
                renewing = asyncio.create_task(self._renew(limit, loss), name=f"lease {self.key}")
                try:
                    yield
                finally:
                    renewing.cancel()
        except TimeoutError:
            if not limit.expired():
                raise
            raise LeaseLost(loss[0]) from None
        finally:
            # In a task of its own, as in fleet/registry.py: in Python 3.11.2 a timeout inside a cancelled task ends
            # as another cancellation.
            await asyncio.wait({asyncio.create_task(self._release())}, timeout=2 * RELEASE_TIMEOUT_S)

    async def _taken(self) -> float:
        """Ask until it is ours; until when it is, by the event loop's clock."""
        clock = asyncio.get_running_loop().time
        said = None
        while True:
            asked = clock()
            try:
                holder = await self._ask()
            except (RedisError, OSError) as error:
                state = f"cannot ask for {self.key}, trying again: {reason(error)}"
            else:
                if holder == self.holder:
                    return asked + LEASE_S - MARGIN_S
                state = f"stands by: {holder.partition(' ')[0]} holds {self.key}"
            if state != said:
                logger.info("%s", state)
                said = state
            await asyncio.sleep(ASK_EVERY_S)

    async def _renew(self, limit: asyncio.Timeout, loss: list[str]) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            asked = clock()
            try:
                holder = await self._ask()
            except (RedisError, OSError) as error:
                loss[0] = f"Redis does not answer ({reason(error)})"
                continue
            if limit.expired():
                return
            if holder != self.holder:
                loss[0] = f"{holder.partition(' ')[0]} holds it"
                limit.reschedule(asked)
                return
            limit.reschedule(asked + LEASE_S - MARGIN_S)

    async def _ask(self) -> str:
        async with asyncio.timeout(RENEW_TIMEOUT_S):
            answer: bytes = await self._ask_script(keys=[self.key], args=[self.holder, int(LEASE_S * 1000)])
        return answer.decode(errors="replace")

    async def _release(self) -> None:
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._release_script(keys=[self.key], args=[self.holder])
        except (RedisError, OSError) as error:
            logger.warning("%s could not be released, it ends by itself: %s", self.key, reason(error))
