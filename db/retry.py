"""Trying again until the database answers, for a bounded time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from db.errors import DRIVER_ERRORS, DatabaseError, classify

Opened = TypeVar("Opened")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

logger = logging.getLogger(__name__)


async def open_patiently(open_once: Callable[[], Awaitable[Opened]], *, target: str, within_s: float) -> Opened:
    """The result of `open_once()`, tried again after transient errors until `within_s` seconds have passed.

    Raises the last error as a DatabaseError; at once if it is not transient. An attempt that is still running
    at the end is cancelled, so a server that never answers takes no longer than one that refuses.
    """
    last: DatabaseError | None = None
    pause_s = FIRST_PAUSE_S
    this = asyncio.current_task()
    cancellations = this.cancelling() if this else 0
    try:
        async with asyncio.timeout(within_s):
            while True:
                try:
                    return await open_once()
                except DRIVER_ERRORS as error:
                    failure = classify(error, target)
                    if not failure.transient:
                        raise failure from error
                    if last is None:
                        logger.warning("%s; trying again for %g s", failure, within_s)
                    last = failure
                    # asyncio.gather(), with which asyncpg opens a floor, lets an error replace a cancellation.
                    if this and this.cancelling() > cancellations:
                        raise asyncio.CancelledError from error
                # Jitter: processes that were started together should not knock together.
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - not for secrets
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    except TimeoutError as error:
        if last is None:
            last = classify(error, target)
        raise type(last)(f"{last} (tried for {within_s:g} s, DB_CONNECT_TIMEOUT)") from error
