"""Where the master is, by what Redis Sentinel says.

After a failover the old master may go on for ten seconds as if nothing had happened, and what it is told then is lost.
So connections are not only made to the master: they follow it. redis-py's own client does so only once one of its
connections breaks, and believes the first sentinel that answers, though it may not have heard yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from config.groups import RedisSettings
from fleet.errors import reason

logger = logging.getLogger(__name__)

ASK_EVERY_S = 0.5
OTHERS_S = 0.3  # after the first answer, for the other sentinels: one that is frozen must not hold up the living

Address = tuple[str, int]


class Master:
    """The master that REDIS_SENTINELS watch under the name REDIS_SENTINEL_MASTER."""

    def __init__(self, redis: RedisSettings) -> None:
        self.latest: Address | None = None
        self._name = redis.sentinel_master
        self._sentinels = [
            Redis(
                host=host.strip("[]"),
                port=int(port),
                socket_timeout=redis.socket_timeout,
                socket_connect_timeout=redis.connect_timeout,
            )
            for host, _, port in (each.rpartition(":") for each in redis.sentinels)
        ]
        self._asked_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def address(self) -> Address:
        """Ask, and wait for the answers that come within OTHERS_S of the first.

        Raises redis' ConnectionError if none of them knows a master that lives.
        """
        self._asked_at = time.monotonic()
        answers = await self._answers()
        states = [answer[self._name] for answer in answers if isinstance(answer, dict) and self._name in answer]
        living = [state for state in states if self._lives(state)]
        if not living:
            errors = "; ".join(sorted({reason(answer) for answer in answers if isinstance(answer, Exception)}))
            known = "no sentinel sees it alive" if states else "no sentinel knows it"
            raise RedisConnectionError(f"no master {self._name!r}: {errors or known}")
        newest = max(living, key=lambda state: int(state["config-epoch"]))  # counts failovers
        self.latest = newest["ip"], newest["port"]
        return self.latest

    def look_again(self) -> None:
        """Ask in the background, if that was not done for a while; `latest` is then the answer."""
        if self._asking is None and time.monotonic() - self._asked_at > ASK_EVERY_S:
            self._asking = asyncio.create_task(self._ask())

    async def close(self) -> None:
        """Close the connections to the sentinels."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
        for client in self._sentinels:
            await client.aclose()

    async def _answers(self) -> list[Any]:
        """Each a dict, name of a master → its state, or an exception."""
        asked = {asyncio.ensure_future(each.sentinel_masters()) for each in self._sentinels}  # type: ignore[no-untyped-call]
        pending = set(asked)
        try:
            while pending and not any(task.exception() is None for task in asked - pending):
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                await asyncio.wait(pending, timeout=OTHERS_S)
        finally:
            for task in asked:
                task.cancel()
            answers = await asyncio.gather(*asked, return_exceptions=True)
        return answers

    async def _ask(self) -> None:
        before = self.latest
        try:
            if await self.address() != before:
                logger.warning("the master %s of Redis is now at %s:%d", self._name, *self.latest or ("?", 0))
        except (RedisError, OSError) as error:  # the connection that there is may be good all the same
            logger.debug("the sentinels do not say where the master is: %s", reason(error))
        finally:
            self._asking = None

    @staticmethod
    def _lives(state: dict[str, Any]) -> bool:
        return bool(state["is_master"]) and not state["is_sdown"] and not state["is_odown"]
