"""A transaction on a connection of the pool, and what may go wrong around it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from asyncpg.transaction import Transaction
from tortoise.backends.asyncpg.client import TransactionWrapper
from tortoise.backends.base.client import ConnectionWrapper, TransactionalDBClient, TransactionContext
from tortoise.connection import get_connections
from tortoise.exceptions import TransactionManagementError

from pool.connection import RELEASE_TIMEOUT_S, PoolConnection
from pool.errors import DRIVER_ERRORS, PoolTimeout, describe, translate
from pool.statements import Statement, StatementMethods

if TYPE_CHECKING:
    from pool.engine import PoolClient

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class _OneAtATime:
    """A lock that the same task may take again, with a deadline: `acquire` and `release` as of asyncio.Lock.

    asyncio's own would wait for ever where a task asks for what it holds.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._lock = asyncio.Lock()
        self._holder: asyncio.Task[Any] | None = None
        self._depth = 0

    async def acquire(self) -> None:
        this = asyncio.current_task()
        if self._holder is not this:
            if self._lock.locked():
                await self._acquire_in_time()
            else:
                await self._lock.acquire()
            self._holder = this
        self._depth += 1

    async def _acquire_in_time(self) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._lock.acquire()
        except TimeoutError as error:
            holder = self._holder.get_name() if self._holder else "nobody"
            raise PoolTimeout(
                f"the transaction's connection is in use by task {holder!r}, for more than {self._patience_s:g} s"
                " (DB_POOL_TIMEOUT): one connection runs one statement at a time"
            ) from error

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = None
            self._lock.release()


class PoolTransaction(StatementMethods, TransactionWrapper):
    """Tortoise's client inside of `in_transaction()`: a transaction, or a savepoint within one.

    All of one transaction share its connection. Statements of several tasks run one after the other; savepoint
    blocks of several tasks would undo each other's work, and are refused.
    """

    def __init__(self, parent: PoolClient | PoolTransaction) -> None:
        super().__init__(parent)
        self.outermost: PoolTransaction = parent.outermost if isinstance(parent, PoolTransaction) else self
        self.left = False  # its block was left: whatever still uses it outlived it
        self.behind_pooler = False
        if isinstance(parent, PoolTransaction):
            self.raw = parent.raw
            self._lock = parent._lock
            self._connection = parent._connection
        # Of the outermost only.
        self.innermost: PoolTransaction = self  # the block that was entered last and is still open
        self.broken = False  # a block inside could not be ended as it should: what it did may still be there
        self.lent = False  # its connection was given to the user, who may still hold it afterwards

    raw: PoolConnection

    def join(self, connection: PoolConnection, patience_s: float, *, behind_pooler: bool) -> None:
        """Takes its place on a connection; only for the outermost."""
        self.raw = connection
        self._connection = connection.proxy
        self._lock = _OneAtATime(patience_s)  # type: ignore[assignment]  # ConnectionWrapper needs no more
        self.behind_pooler = behind_pooler

    async def close(self) -> None:
        """Closes the pool: Tortoise asks whichever client the calling task has to do so."""
        await self._parent.close()

    def acquire_connection(self) -> ConnectionWrapper[Any]:
        self._refuse_if_over()
        self.outermost.lent = True
        return super().acquire_connection()

    def _in_transaction(self) -> TransactionContext:
        return SavepointContext(PoolTransaction(self), self)

    async def begin(self) -> None:
        self.transaction = self.raw.transaction()
        await self._locked(self.transaction.start)

    async def commit(self) -> None:
        await self._locked(self._unfinished().commit)
        self._finalized = True
        if self.outermost is self and self.raw.last_status == "ROLLBACK":
            raise TransactionManagementError("a statement inside had failed, so the server rolled back instead")

    async def rollback(self) -> None:
        await self._locked(self._unfinished().rollback)
        self._finalized = True

    async def _run(self, statement: Statement[Result], query: str, values: Sequence[Any] | None) -> Result:
        self.log.debug("%s: %s", query, values)
        return await self._locked(statement, self.raw, query, values or ())

    async def _locked(self, act: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
        self._refuse_if_over()
        await self._lock.acquire()
        try:
            self._refuse_if_over()  # it may have ended while this task waited
            return await act(*arguments)
        except DRIVER_ERRORS as error:
            raise translate(error, lost=self.raw.is_closed(), behind_pooler=self.outermost.behind_pooler) from error
        finally:
            self._lock.release()

    def _refuse_if_over(self) -> None:
        if self.left or self.outermost.left:
            raise TransactionManagementError(
                "the transaction has ended, and its connection went back to the pool, but"
                f" {_task_name()} still uses it: await what was started inside before the block ends"
            )

    def _unfinished(self) -> Transaction:
        if self.transaction is None:
            raise TransactionManagementError("the transaction has not begun")
        if self._finalized:
            raise TransactionManagementError("the transaction was committed or rolled back already")
        return self.transaction


async def end(client: PoolTransaction, error: BaseException | None) -> bool:
    """Commits a block, or rolls it back because of `error`, which is the caller's to raise.

    A rollback that fails is logged and not raised: it would hide what led to it, and the connection is lost anyhow.
    """
    if client._finalized:
        return True
    if error is None:
        await client.commit()
        return True
    try:
        async with asyncio.timeout(RELEASE_TIMEOUT_S):
            await client.rollback()
    except Exception as failure:
        logger.info("rollback after %s failed: %s", type(error).__name__, describe(failure))
        return False
    return True


class OutermostContext(TransactionContext):
    """Checks a connection out, begins, and ends; the connection goes back whatever happens, and at any moment."""

    def __init__(self, client: PoolTransaction, parent: PoolClient) -> None:
        self.client: PoolTransaction = client
        self.connection_name = client.connection_name
        self._parent = parent

    async def __aenter__(self) -> TransactionalDBClient:
        self._pool = await self._parent.open_pool()
        connection = await self._pool.checkout()
        self.client.join(connection, self._pool.options.acquire_timeout_s, behind_pooler=self._parent.behind_pooler)
        try:
            await self.client.begin()
            self._token = get_connections().set(self.connection_name, self.client)
        except BaseException as error:
            self.client.left = True
            if not isinstance(error, Exception):
                connection.terminate()  # whether it is in a transaction now, nobody knows
            await self._pool.checkin(connection)
            raise
        return self.client

    async def __aexit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        client = self.client
        try:
            misuse = _still_open_inside(client) or _broken_inside(client)
            if not await end(client, exc_val or misuse):
                client.raw.terminate()
        except BaseException:
            client.raw.changed = True
            raise
        finally:
            client.left = True
            try:
                # Who got the connection itself may still hold it: only asyncpg's release cuts it off.
                if client.lent or exc_val is not None or not self._pool.try_checkin(client.raw):
                    await self._pool.checkin(client.raw)
            finally:
                _restore(self._token)
        if misuse is not None and exc_val is None:
            raise misuse


class SavepointContext(TransactionContext):
    """A block within a transaction."""

    def __init__(self, client: PoolTransaction, parent: PoolTransaction) -> None:
        self.client: PoolTransaction = client
        self.connection_name = client.connection_name
        self._parent = parent

    async def __aenter__(self) -> TransactionalDBClient:
        outermost = self.client.outermost
        outermost._refuse_if_over()
        if outermost.innermost is not self._parent:
            raise TransactionManagementError(
                f"{_task_name()} wants a nested transaction on a connection on which another task has one open:"
                " open them one after the other, or in transactions of their own"
            )
        outermost.innermost = self.client
        try:
            await self.client.savepoint()
            # So that a block opened inside, by whichever task, knows that it is inside.
            self._token = get_connections().set(self.connection_name, self.client)
        except BaseException:
            self.client.left = True
            outermost.innermost = self._parent
            raise
        return self.client

    async def __aexit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        misuse = _still_open_inside(self.client)
        ended = False
        try:
            ended = await end(self.client, exc_val or misuse)
        finally:
            self.client.left = True
            if not ended:
                self.client.outermost.broken = True
            self.client.outermost.innermost = self._parent
            _restore(self._token)
        if misuse is not None and exc_val is None:
            raise misuse


def _restore(token: Any) -> None:
    """Tortoise's connection of this task again. Where the block ends in another context than it began, nothing can."""
    try:
        get_connections().reset(token)
    except (ValueError, RuntimeError) as error:
        logger.warning("a transaction was ended in another context than its own: %s", type(error).__name__)


def _broken_inside(client: PoolTransaction) -> TransactionManagementError | None:
    if not client.broken:
        return None
    return TransactionManagementError("a nested transaction could not be ended: the transaction was rolled back")


def _still_open_inside(client: PoolTransaction) -> TransactionManagementError | None:
    if client.outermost.innermost is client:
        return None
    return TransactionManagementError(
        "the transaction ends while another task still has a nested one open inside: it was rolled back;"
        " await what was started inside before the block ends"
    )


def _task_name() -> str:
    task = asyncio.current_task()
    return f"task {task.get_name()!r}" if task else "a callback"
