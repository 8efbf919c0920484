"""The chats that get alerts, in the database: they outlive every bot.

A chat is named as `Message.chat` names it: `telegram:42` (the number is telegram's, negative for a group), `console`.
Whoever sends alerts asks `subscribers` each time, and calls `unsubscribe` for a chat in which BotApiRefused says that
the bot is not wanted any more. All need an open database (fleet.process), and raise what the pool and the driver do.
"""

from __future__ import annotations

from db.models import Subscriber


async def subscribe(chat: str) -> bool:
    """Send alerts to the chat; False where it gets them already. Any number at once are safe."""
    _, created = await Subscriber.get_or_create(chat=chat)
    return created


async def unsubscribe(chat: str) -> bool:
    """Send no alerts to the chat; False where it got none."""
    return await Subscriber.filter(chat=chat).delete() > 0


async def subscribers() -> list[str]:
    """All chats that get alerts, in the order in which they subscribed."""
    return [subscriber.chat for subscriber in await Subscriber.all().order_by("id")]
