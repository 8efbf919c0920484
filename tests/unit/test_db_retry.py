"""Trying again until the database answers, and no longer."""

from __future__ import annotations

import asyncio

import pytest

from db.errors import DatabaseUnreachable
from db.retry import open_patiently

DEADLINE_S = 5.0  # of each test; nothing here takes so long unless it never ends


async def refused_when_cancelled() -> None:
    """As asyncpg's pool does where one of its connects fails while the others are being cancelled."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ConnectionRefusedError("refused") from None


async def test_time_is_up_though_an_attempt_hides_it() -> None:
    """An attempt that ends with an error instead of its cancellation is the last one."""
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(DatabaseUnreachable, match=r"refused.*tried for 0\.1 s, DB_CONNECT_TIMEOUT"):
            await open_patiently(refused_when_cancelled, target="db", within_s=0.1)


async def test_a_cancellation_from_outside_is_one() -> None:
    """SIGTERM at start: the attempt's error does not start another one."""
    opening = asyncio.create_task(open_patiently(refused_when_cancelled, target="db", within_s=60))
    await asyncio.sleep(0)
    opening.cancel()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(asyncio.CancelledError):
            await opening


async def test_errors_are_tried_again_until_time_is_up() -> None:
    """Transient errors cost attempts, and the last one is raised."""
    attempts = 0

    async def refused() -> None:
        nonlocal attempts
        attempts += 1
        raise ConnectionRefusedError("refused")

    with pytest.raises(DatabaseUnreachable, match="refused"):
        await open_patiently(refused, target="db", within_s=0.5)
    assert attempts > 1
