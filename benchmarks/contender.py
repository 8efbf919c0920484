"""What is measured: a pool, by whatever library, with the work it can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from benchmarks.work import Work

POOL = 10  # connections of each contender, all open from the start

# In the order of every table.
ENGINE = "this engine"
STOCK = "stock Tortoise"
ASYNCPG = "asyncpg pool"
NO_RESET = "asyncpg pool without reset"
DEDICATED = "asyncpg without a pool"
SQLALCHEMY = "SQLAlchemy async"
SQLALCHEMY_AUTOCOMMIT = "SQLAlchemy async, AUTOCOMMIT"
PSYCOPG = "psycopg_pool"

# Does its work once. The argument is the number of the task that does it, from 0.
Operation = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Contender:
    """An open pool. Made in the context it is to run in, because Tortoise finds its connections there.

    `most_tasks`: where nothing hands connections on, a task more than there are connections could do nothing.
    """

    operations: Mapping[Work, Operation]
    most_tasks: int | None = None
    context: Context = field(default_factory=copy_context)
