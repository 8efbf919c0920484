"""Connections to Redis that can be cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import Connection, SSLConnection

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection as _Base
else:
    _Base = object


class _Cancellable(_Base):
    """Passes on the cancellation of the task that sends a command.

    redis-py sends by `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that comes in the moment in
    which the sending is done (python/cpython#86296): a process would go on after SIGTERM. On 3.12 this does nothing.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()  # not 0 where a cancelled task cleans up
        await super().send_packed_command(command, check_health)
        if task is not None and task.cancelling() > before:
            await self.disconnect(nowait=True)  # nobody will read the answer
            raise asyncio.CancelledError


class PlainConnection(_Cancellable, Connection):
    """Over TCP."""


class TLSConnection(_Cancellable, SSLConnection):
    """Over TLS."""
