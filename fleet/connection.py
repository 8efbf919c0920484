"""Connections to Redis: they can be cancelled, and find a master that moves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import ReadOnlyError

from fleet.sentinel import Master

if TYPE_CHECKING:
    _Base = Connection
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


class _ToMaster(_Base):
    """Connects to what `master` says is the master now, where there is one to ask, and leaves one that is no more."""

    def __init__(self, *, master: Master | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._master = master

    async def connect(self) -> None:
        """Called before each use, also of a connection that is there."""
        if self._master is not None:
            if self.is_connected:
                self._master.look_again()
                if self._master.latest != (self.host, self.port):
                    await self.disconnect(nowait=True)
            if not self.is_connected:
                self.host, self.port = await self._master.address()
        await super().connect()  # type: ignore[no-untyped-call]

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except ReadOnlyError:
            if self._master is not None:
                await self.disconnect(nowait=True)  # it was demoted; the next use asks who is the master now
            raise


class PlainConnection(_Cancellable, _ToMaster, Connection):
    """Over TCP."""


class TLSConnection(_Cancellable, _ToMaster, SSLConnection):
    """Over TLS."""
