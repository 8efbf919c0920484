"""The Tortoise engine of this project: `"engine": "pool.engine"` in a Tortoise configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tortoise.backends.asyncpg.client import AsyncpgDBClient, TransactionWrapper
from tortoise.backends.base.client import TransactionalDBClient, TransactionContext, TransactionContextPooled
from tortoise.connection import get_connections

from pool.errors import PoolError
from pool.pool import Pool


class PoolClient(AsyncpgDBClient):
    """Tortoise's asyncpg client on a `Pool`.

    Credentials are those of the asyncpg engine, several hosts and ports among them, and the pool's guards.
    """

    def __init__(
        self,
        *,
        host: str | Sequence[str] | None = None,
        port: int | Sequence[int] = 5432,
        acquire_timeout_s: float = 30.0,
        pre_ping: bool = True,
        max_lifetime_s: float = 3600.0,
        **credentials: Any,
    ) -> None:
        super().__init__(**credentials)
        # Tortoise knows one host and one port only, and hands on to asyncpg whatever these attributes hold.
        self.host: Any = host
        self.port: Any = port
        self._guards: dict[str, Any] = {
            "acquire_timeout_s": acquire_timeout_s,
            "pre_ping": pre_ping,
            "max_lifetime_s": max_lifetime_s,
        }

    @property
    def pool(self) -> Pool:
        """The pool. Raises PoolError where it was never opened."""
        if not isinstance(self._pool, Pool):
            raise PoolError(f"connection {self.connection_name!r} has no pool yet: create_connection() opens it")
        return self._pool

    async def create_pool(self, **kwargs: Any) -> Pool:
        """Tortoise's hook; called by `create_connection`, with the arguments of `asyncpg.create_pool`."""
        pool = Pool(self.application_name or self.connection_name, **self._guards, **kwargs)
        await pool.open()
        return pool

    async def close(self) -> None:
        """Closes the pool and keeps it.

        Tortoise forgets it instead: then a late release fails on None, and a late query opens a new pool.
        """
        if self._pool is not None:
            await self._pool.close()

    def _in_transaction(self) -> TransactionContext:
        return _TransactionContext(TransactionWrapper(self), self._pool_init_lock)


class _TransactionContext(TransactionContextPooled):
    """Gives the connection back where BEGIN fails or is cancelled; Tortoise loses it, and its place in the pool.

    `client._connection`, `client._parent` and `token` are Tortoise's own between entering and leaving. Should
    they change, tests/integration/test_pool_transaction.py fails.
    """

    async def __aenter__(self) -> TransactionalDBClient:
        try:
            return await super().__aenter__()
        except BaseException:
            if self.client._connection is not None:
                await self.client._parent._pool.release(self.client._connection)
                get_connections().reset(getattr(self, "token", None))
            raise


client_class = PoolClient
