"""Calls of one script that come while another is under way share the next round trip."""

from __future__ import annotations

import asyncio
from typing import Any

from arq.connections import ArqRedis
from redis.exceptions import NoScriptError

from fleet.script import Argument, Script


class Batch:
    """Calls `script`; each caller gets the answer to its own call, or its error."""

    def __init__(self, redis: ArqRedis, queue: str, script: Script) -> None:
        self._redis = redis
        self._queue = queue
        self._script = script
        self._waiting: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def __call__(self, *arguments: Argument) -> Any:
        """What the script returns. Raises RedisError or OSError."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((arguments, answer))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return await answer

    async def _send(self) -> None:
        try:
            while self._waiting:
                calls, self._waiting = self._waiting, []
                try:
                    answers = await self._round_trip([arguments for arguments, _ in calls])
                except Exception as error:
                    answers = [error] * len(calls)
                for (_, answer), given in zip(calls, answers, strict=True):
                    if answer.done():  # its caller was cancelled
                        continue
                    if isinstance(given, Exception):
                        answer.set_exception(given)
                    else:
                        answer.set_result(given)
        finally:
            self._sending = None

    async def _round_trip(self, calls: list[tuple[Argument, ...]]) -> list[Any]:
        if len(calls) == 1:
            return [await self._script(self._redis, self._queue, *calls[0])]
        async with self._redis.pipeline(transaction=False) as pipe:
            for arguments in calls:
                pipe.evalsha(self._script.sha, 1, self._queue, *arguments)  # type: ignore[arg-type] # as in Script
            answers: list[Any] = await pipe.execute(raise_on_error=False)
        for number, given in enumerate(answers):
            if isinstance(given, NoScriptError):
                answers[number] = await self._script(self._redis, self._queue, *calls[number])
        return answers
