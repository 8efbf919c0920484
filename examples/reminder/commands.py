"""The app's two commands: /remind and /reminders."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

from tortoise.transactions import in_transaction

from bot import BadArguments, Command, Reply, Request
from fleet import Process, enqueue

from .jobs import REMIND, Remind
from .models import Reminder

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
LONGEST = timedelta(days=366)
MOST_SHOWN = 50


def commands(process: Process) -> list[Command]:
    """The commands, for an open process."""

    async def remind(request: Request) -> AsyncGenerator[Reply, None]:
        delay, text = parse(request.arguments)
        due = datetime.now(UTC) + delay
        # If the queue is away there is no row either: a reminder that is stored is one that fires.
        async with in_transaction():
            reminder = await Reminder.create(chat=request.message.chat, text=text, due=due)
            await enqueue(process.queue, REMIND, Remind(reminder.id), at=due)
        when = f"{due:%H:%M:%S}" if delay < timedelta(days=1) else f"{due:%Y-%m-%d %H:%M:%S}"
        yield Reply(f"I will remind you at {when} UTC: {text}")

    return [
        Command(
            "remind",
            "say something here later",
            remind,
            arguments="<delay> <text>",
            details="The delay is a number and s, m, h or d: /remind 10m tea",
        ),
        Command("reminders", "what this chat will be reminded of", reminders),
    ]


async def reminders(request: Request) -> AsyncGenerator[Reply, None]:
    """One line for each that has not fired, the next one first, and how many more than MOST_SHOWN there are."""
    waiting = Reminder.filter(chat=request.message.chat, fired=None)
    lines = [
        f"{reminder.due:%Y-%m-%d %H:%M:%S} UTC  {reminder.text}"
        for reminder in await waiting.order_by("due", "id").limit(MOST_SHOWN)
    ]
    if (more := await waiting.count() - MOST_SHOWN) > 0:
        lines.append(f"… and {more} more")
    yield Reply("\n".join(lines) or "Nothing.")


def parse(arguments: str) -> tuple[timedelta, str]:
    """'10m tea' → (10 minutes, 'tea'). Raises BadArguments."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])\s+(.+)", arguments, re.DOTALL)
    if found is None:
        raise BadArguments("give a delay and a text")
    delay = timedelta(**{UNITS[found[2]]: int(found[1])})
    if delay > LONGEST:
        raise BadArguments(f"the delay is more than {LONGEST.days} days")
    return delay, found[3]
