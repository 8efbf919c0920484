"""The app's one job: its contract, and what a worker does for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from tortoise.exceptions import DoesNotExist
from tortoise.transactions import in_transaction

from fleet import Job, Process, say

from .models import Reminder


@dataclass(frozen=True)
class Remind:
    """Which reminder is due."""

    reminder: int


# The command enqueues before its row is committed, so a worker may come too early.
REMIND = Job("remind", Remind, bool, unique_key=lambda due: str(due.reminder), retry_on=(DoesNotExist,))


async def remind(_: Process, due: Remind) -> bool:
    """Have the bot say it, and remember that: both or neither. False where that was done before.

    A job may be run twice. The second run waits here for the first one's transaction, and then finds nothing to do.
    """
    async with in_transaction():
        reminder = await Reminder.get(id=due.reminder)
        fired = await Reminder.filter(id=due.reminder, fired=None).update(fired=datetime.now(UTC))
        if fired:
            await say(reminder.chat, f"Reminder: {reminder.text}")
    return fired > 0
