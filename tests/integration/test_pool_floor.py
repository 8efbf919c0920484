"""The floor under a pool's connections: opened at the start, refilled after losses and outages, never overfilled."""

from __future__ import annotations

import asyncio

import pytest
from tortoise.exceptions import DBConnectionError

from pool import Pool
from tests.observer import NAME, Observer, observed_pool, open_observer, proxied_pool, warm
from tests.pools import acquired, open_pool, released
from tests.waiting import until

Environ = dict[str, str]


async def floor(pool: Pool, observer: Observer, count: int) -> None:
    """Returns when the pool has so many connections, by its own account and the server's."""
    await until(lambda: pool.snapshot().size == count, timeout_s=5, what=f"{count} connections")
    await observer.count(count)


@pytest.mark.parametrize("elastic", [False, True])
async def test_the_floor_is_opened_and_refilled(environ: Environ, elastic: bool) -> None:
    """DB_POOL_MIN connections from the start, and again after the server ended them."""
    async with observed_pool(environ, max_size=4, min_size=3, elastic=elastic) as (pool, observer):
        assert pool.snapshot().size == pool.snapshot().floor == 3
        await observer.kill(*await observer.pids())
        await floor(pool, observer, 3)
        assert (pool.snapshot().in_use, pool.snapshot().acquires) == (0, 0)


async def test_the_floor_is_not_overfilled(environ: Environ) -> None:
    """However many connections end at once, only as many are opened as the floor asks for."""
    async with observed_pool(environ, max_size=6, min_size=1, elastic=True) as (pool, observer):
        await observer.kill(*await warm(pool, 6))
        await until(lambda: sum(pool.snapshot().closed.values()) == 6, timeout_s=5)
        await floor(pool, observer, 1)
        assert pool.snapshot().created == 7


async def test_the_floor_is_refilled_after_all_that_was_held_died(environ: Environ) -> None:
    """While they were out there was no place to refill through: it happens when there is."""
    async with observed_pool(environ, max_size=2, min_size=2, elastic=True) as (pool, observer):
        held = await acquired(pool, 2)
        await observer.kill(*await observer.pids())
        await until(lambda: pool.snapshot().size == 0, timeout_s=5)
        await released(pool, *held)
        await floor(pool, observer, 2)


async def test_the_floor_yields_to_the_limit(environ: Environ) -> None:
    """Below the floor the limit wins; when it grows again so does the pool, to its floor and no further."""
    async with observed_pool(environ, max_size=4, min_size=3, elastic=True) as (pool, observer):
        await pool.resize(1)
        await floor(pool, observer, 1)
        await observer.kill(*await observer.pids())
        await floor(pool, observer, 1)
        await pool.resize(4)
        await floor(pool, observer, 3)


async def test_the_floor_takes_no_connection_from_anybody(environ: Environ) -> None:
    """While a new one is being opened, and the server does not answer, those that are idle can be had."""
    async with proxied_pool(environ, max_size=3, min_size=3, elastic=True, acquire_timeout_s=1.0, timeout=3.0) as (
        pool,
        observer,
        proxy,
    ):
        proxy.deaf = True
        before = proxy.accepted
        await observer.kill(min(await observer.pids()))
        await until(lambda: proxy.accepted > before, timeout_s=5, what="a new one is being opened")
        held = [await asyncio.wait_for(pool.acquire(), 0.5) for _ in range(2)]
        proxy.deaf = False
        await released(pool, *held)


async def test_the_floor_comes_back_after_an_outage(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried again, with one warning for each try, however many connections ended."""
    async with proxied_pool(environ, max_size=4, min_size=3, elastic=True) as (pool, observer, proxy):
        await proxy.stop()
        await until(lambda: "below its floor of 3" in caplog.text, timeout_s=5)
        tries = pool.snapshot().connect_failures
        assert caplog.text.count("below its floor") == tries == 1
        await proxy.start()
        await floor(pool, observer, 3)


async def test_an_elastic_pool_opens_as_a_whole_or_not_at_all(environ: Environ) -> None:
    """A floor that cannot be opened is an error, and nothing is left open."""
    async with open_observer(environ) as observer:
        role = "three_at_most"
        await observer.value(f"DROP ROLE IF EXISTS {role}")
        await observer.value(f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 2")
        try:
            with pytest.raises(DBConnectionError, match="too many connections for role"):
                async with open_pool(
                    environ,
                    user=role,
                    password="x",
                    min_size=3,
                    max_size=3,
                    elastic=True,
                    server_settings={"application_name": NAME},
                ):
                    pass
            await observer.count(0)
        finally:
            await observer.value(f"DROP ROLE {role}")
