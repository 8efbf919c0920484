"""Checked by mypy, not run: a job's contract and its code must fit each other."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from bot import Command, Reply, Request
from fleet import App, Job, JobCode, Process


@dataclass(frozen=True)
class Order:
    article: str


ORDER = Job("order", Order, int)


async def order(process: Process, arguments: Order) -> int:
    return len(arguments.article)


async def of_another(process: Process, arguments: int) -> int:
    return arguments


async def gives_text(process: Process, arguments: Order) -> str:
    return arguments.article


async def buy(request: Request) -> AsyncGenerator[Reply, None]:
    yield Reply(request.arguments)


def commands(process: Process) -> list[Command]:
    return [Command("buy", "order an article", buy)]


App("shop", jobs=[JobCode(ORDER, order)], commands=commands)
App("shop", models=["shop.models"], migrations="shop.migrations")
JobCode(ORDER, of_another)  # type: ignore[arg-type]
JobCode(ORDER, gives_text)  # type: ignore[arg-type]
App("shop", commands=commands(None))  # type: ignore[arg-type]
