"""Each bot looks at the fleet again and again, and alerts the subscribers of what it sees."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from redis.exceptions import RedisError

from bot.alerts import Alerts
from bot.conditions import LARGEST_GAP, THRESHOLDS, Look, Observed, Thresholds, findings
from bot.sessions import read_idle_in_transaction
from db.models import ConnectionSample
from db.server import read_server
from fleet.errors import reason
from fleet.process import Process
from fleet.queue_view import QueueView, read_queue
from fleet.registry import HEARTBEAT_S, ProcessEntry, read_registry

logger = logging.getLogger(__name__)

LOOK_EVERY_S = HEARTBEAT_S  # an outage of Redis in between is too short to make anybody seem missing
REDIS_TIMEOUT_S = 5.0
ENDING_S = 3.0

_OWN_SILENCE_S = 2 * HEARTBEAT_S  # of this bot's own heartbeat in Redis


@asynccontextmanager
async def watching(
    process: Process, thresholds: Thresholds = THRESHOLDS, *, look_every_s: float = LOOK_EVERY_S
) -> AsyncIterator[None]:
    """While inside, the fleet is looked at every `look_every_s`, and whoever subscribed is alerted."""
    watch = asyncio.create_task(Watch(process, thresholds).look_forever(look_every_s), name="watch")
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.wait({watch}, timeout=ENDING_S)


class Watch:
    """One bot's view. Any number of bots may watch the same fleet: the database decides who alerts."""

    def __init__(self, process: Process, thresholds: Thresholds = THRESHOLDS) -> None:
        self._process = process
        self._thresholds = thresholds
        self._alerts = Alerts(process.database.client)
        self._seen: deque[Observed] = deque()
        self._heard_since_s: float | None = None
        self._failing = False
        self._redis_failing = False

    async def look_forever(self, every_s: float) -> None:
        """Until it is cancelled; whatever goes wrong, the next look comes."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look_once()
            except Exception as error:  # the database is away, or the pool is full: nothing is known now
                if not self._failing:
                    logger.warning("cannot look at the fleet for alerts, trying again: %s", reason(error))
                    logger.debug("the look failed", exc_info=error)
                self._failing = True
            else:
                if self._failing:
                    logger.info("the fleet is watched again")
                self._failing = False

    async def look_once(self) -> None:
        """Look, and open and close what follows. Raises what the pool and the driver do."""
        look = await self._look()
        open_alerts = await self._alerts.open_ones()
        for finding in findings(look, open_alerts, self._thresholds):
            if finding.holds == ((finding.kind, finding.subject) in open_alerts):
                continue
            if await self._alerts.store(finding, look.at):
                logger.log(
                    logging.WARNING if finding.holds else logging.INFO,
                    "alert %s: %s: %s",
                    "opened" if finding.holds else "closed",
                    finding.kind,
                    finding.text,
                    extra={"alert": finding.kind.value, "subject": finding.subject, "value": finding.value},
                )

    async def _look(self) -> Look:
        period = timedelta(seconds=self._thresholds.crowded_s) + LARGEST_GAP
        async with self._process.database.client.acquire_connection() as connection:
            at: datetime = await connection.fetchval("SELECT now()")  # first, so that all that follows is newer
            server = await read_server(connection)
            idle = await read_idle_in_transaction(connection, self._thresholds.idle_s)
        samples: list[Any] = await ConnectionSample.filter(at__gt=at - period).values_list("at", "total")
        registry, queue = await self._look_at_redis()
        look = Look(at, server, [*self._seen, *(Observed(*sample) for sample in samples)], idle, registry, queue)
        self._seen.append(Observed(at, server.total))
        while self._seen[0].at < at - period:
            self._seen.popleft()
        return look

    async def _look_at_redis(self) -> tuple[list[ProcessEntry] | None, QueueView | None]:
        clock = asyncio.get_running_loop().time
        redis = self._process.queue
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                registry, queue = await read_registry(redis), await read_queue(redis)
        except (RedisError, OSError) as error:
            if not self._redis_failing:
                logger.warning("cannot look at processes and jobs for alerts, trying again: %s", reason(error))
            self._redis_failing = True
            self._heard_since_s = None
            return None, None
        self._redis_failing = False
        own = next((entry for entry in registry if entry.id == self._process.id), None)
        if own is None or own.silent_s > _OWN_SILENCE_S:
            self._heard_since_s = None
            return None, None
        if self._heard_since_s is None:
            self._heard_since_s = clock()
        if clock() - self._heard_since_s < self._thresholds.trust_s:
            return None, None
        return registry, queue
