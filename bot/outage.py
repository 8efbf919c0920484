"""What a command says when Redis or the database does not answer: one line that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from config import Settings
from db.errors import DRIVER_ERRORS, classify
from db.server import target
from fleet.errors import QueueLost
from fleet.queue import address
from pool import PoolError


@contextmanager
def asking_database(settings: Settings) -> Iterator[None]:
    """What the driver raises inside becomes a DatabaseError; what the pool raises stays."""
    try:
        yield
    except PoolError:  # some are driver errors, too, and say more by themselves
        raise
    except DRIVER_ERRORS as error:
        raise classify(error, target(settings)) from error


@contextmanager
def asking_redis(settings: Settings) -> Iterator[None]:
    """What redis-py raises inside becomes QueueLost."""
    try:
        yield
    except (RedisError, OSError) as error:
        redis = address(settings.redis)
        raise QueueLost(f"Redis at {redis} does not answer ({str(error) or type(error).__name__})") from error
