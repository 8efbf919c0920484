"""The chats that get alerts, in the database: they outlive every bot.

A chat is named as `Message.chat` names it: `telegram:42` (the number is telegram's, negative for a group), `console`.
Whoever sends alerts asks `subscribers` each time, calls `unsubscribe` for a chat that is gone (ChatGone), and `move`
for one that has another name now. All need an open database (fleet.process), and raise what the pool and the driver do.
"""

from __future__ import annotations

from tortoise.transactions import in_transaction

from db.models import Subscriber


async def subscribe(chat: str) -> bool:
    """Send alerts to the chat; False where it gets them already. Any number at once are safe."""
    _, created = await Subscriber.get_or_create(chat=chat)
    return created


async def unsubscribe(chat: str) -> bool:
    """Send no alerts to the chat; False where it got none."""
    return await Subscriber.filter(chat=chat).delete() > 0


async def move(chat: str, to: str) -> bool:
    """Send to the chat `to` the alerts that `chat` got; False where it got none."""
    async with in_transaction():
        moved = await unsubscribe(chat)
        if moved:
            await subscribe(to)
    return moved


async def subscribers() -> list[str]:
    """All chats that get alerts, in the order in which they subscribed."""
    return [subscriber.chat for subscriber in await Subscriber.all().order_by("id")]
