"""The Tortoise engine of this project: `"engine": "pool.engine"` in a Tortoise configuration."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.backends.base.client import PoolConnectionWrapper, TransactionContext
from tortoise.exceptions import DBConnectionError

from pool.connection import PoolConnection
from pool.errors import DRIVER_ERRORS, PoolClosed, PoolError, may_pass, translate
from pool.options import PoolOptions
from pool.orm_query import OrmQuery, is_repeatable
from pool.pool import Pool
from pool.statements import Statement, StatementMethods
from pool.transaction import OutermostContext, PoolTransaction

Result = TypeVar("Result")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.5


class PoolClient(StatementMethods, AsyncpgDBClient):
    """Tortoise's asyncpg client on a `Pool`.

    Credentials are those of the asyncpg engine, several hosts and ports among them, and the fields of PoolOptions.
    """

    query_class = OrmQuery

    def __init__(
        self,
        *,
        host: str | Sequence[str] | None = None,
        port: int | Sequence[int] = 5432,
        **credentials: Any,
    ) -> None:
        self.options = PoolOptions.taken_from(credentials)
        super().__init__(**credentials)
        # Tortoise knows one host and one port only, and hands on to asyncpg whatever these attributes hold.
        self.host: Any = host
        self.port: Any = port
        self._opening: asyncio.Task[None] | None = None
        self._shut = False

    @property
    def pool(self) -> Pool:
        """The pool. Raises PoolError where it was never opened."""
        if not isinstance(self._pool, Pool):
            raise PoolError(f"connection {self.connection_name!r} has no pool yet: create_connection() opens it")
        return self._pool

    @property
    def behind_pooler(self) -> bool:
        """Whether a pooler in transaction mode stands between the pool and the server."""
        return isinstance(self._pool, Pool) and self._pool.pooler == "transaction"

    async def open_pool(self) -> Pool:
        """The pool, opened now if nobody did. Those who ask meanwhile share the attempt, and its failure.

        Raises PoolClosed after `close`, and what `create_connection` raises.
        """
        if self._pool is None:
            if self._shut:
                raise PoolClosed(f"connection {self.connection_name!r} was closed: create_connection() opens it again")
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
                self._opening.add_done_callback(self._opened)
            await asyncio.shield(self._opening)
        return self.pool

    async def _open(self) -> None:
        async with self._pool_init_lock:
            if self._pool is None:
                await super().create_connection(with_db=True)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # seen, also where everybody who waited was cancelled

    async def create_connection(self, with_db: bool) -> None:
        """Opens a pool, in place of the one before. Raises DBConnectionError, or a PoolError."""
        async with self._pool_init_lock:
            if self._pool is not None:
                await self._pool.close()
            self._shut = False
            await super().create_connection(with_db)

    async def create_pool(self, **kwargs: Any) -> Pool:
        """Tortoise's hook; called by `create_connection`, with the arguments of `asyncpg.create_pool`."""
        pool = Pool(self.application_name or self.connection_name, self.options, **kwargs)
        await pool.open()
        return pool

    async def close(self) -> None:
        """Closes the pool and keeps it: whoever asks it later is told. One that is just being opened, too.

        Tortoise forgets it instead: then a late release fails on None, and a late query opens a new pool.
        """
        self._shut = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        async with self._pool_init_lock:
            if self._pool is not None:
                await self._pool.close()

    def acquire_connection(self) -> PoolConnectionWrapper[Any]:
        return _Checkout(self, self._pool_init_lock)

    def _in_transaction(self) -> TransactionContext:
        return OutermostContext(PoolTransaction(self), self)

    async def _run(self, statement: Statement[Result], query: str, values: Sequence[Any] | None) -> Result:
        self.log.debug("%s: %s", query, values)
        if is_repeatable(query):
            return await self._read(statement, query, values or ())
        pool = await self.open_pool()
        return await self._once(pool, await pool.checkout(), statement, query, values or ())

    async def _read(self, statement: Statement[Result], query: str, values: Sequence[Any]) -> Result:
        """A query that the ORM built: run once more if its connection died under it.

        While the server restarts it waits for it, up to the connect timeout: that costs readers time, not errors.
        """
        pool = await self.open_pool()
        deadline = time.monotonic() + float(self.extra.get("timeout", 60.0))
        connection = await self._patient_checkout(pool, deadline, doubtful=False)
        try:
            return await self._once(pool, connection, statement, query, values)
        except DBConnectionError:
            if not self.options.read_retry:
                raise
            pool.statistics.retries += 1
        connection = await self._patient_checkout(pool, deadline, doubtful=True)
        return await self._once(pool, connection, statement, query, values)

    async def _patient_checkout(self, pool: Pool, deadline: float, *, doubtful: bool) -> PoolConnection:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await pool.checkout(doubtful=doubtful)
            except DBConnectionError as error:
                if not (self.options.read_retry and may_pass(error) and time.monotonic() + pause_s < deadline):
                    raise
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - not for secrets
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _once(
        self, pool: Pool, connection: PoolConnection, statement: Statement[Result], query: str, values: Sequence[Any]
    ) -> Result:
        try:
            result = await statement(connection, query, values)
        except BaseException as error:
            lost = connection.is_closed()
            await pool.checkin(connection)
            if not isinstance(error, DRIVER_ERRORS):
                raise
            raise translate(error, lost=lost, behind_pooler=self.behind_pooler) from error
        if not pool.try_checkin(connection):
            await pool.checkin(connection)
        return result


class _Checkout(PoolConnectionWrapper[Any]):
    """`async with client.acquire_connection()`."""

    client: PoolClient

    async def __aenter__(self) -> Any:
        self._acquired_from: Pool = self.client._pool or await self.client.open_pool()
        self.connection = await self._acquired_from.acquire()
        return self.connection

    def __aexit__(self, exc_type: object, *_: object) -> Coroutine[Any, Any, None]:
        return self._acquired_from.release(self.connection, failed=exc_type is not None)


client_class = PoolClient
