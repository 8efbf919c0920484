"""What the bot is to say without having been asked, in the database until it has been said.

A job says something in the transaction in which it does its work, so that both happen or neither. Then any bot of the
chat's transport takes it, says it, and deletes it. A bot that cannot say it gives it back, and one that dies in between
leaves it to the next one after LEASE_S: everything is said once at least, and twice only where a bot died, lost the
answer, or was frozen for more than LEASE_S, just when it had said it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tortoise.backends.asyncpg.client import AsyncpgDBClient

from db.models import Outgoing

LEASE_S = 30.0
MOST_OF_A_CHAT = 5  # taken at once: a chat that much is to be said in keeps no other waiting

# The condition stands twice: a window takes no FOR UPDATE, and what it saw free may be taken by now.
_FREE = f"(taken IS NULL OR taken < now() - interval '{LEASE_S} s')"
# Of each chat what comes next, in one piece: nothing before it is another bot's, nor has just become it.
_TAKE = f"""
    WITH lines AS (
        SELECT id, row_number() OVER line AS place, bool_and({_FREE}) OVER line AS free FROM fleet_outgoing
        WHERE split_part(chat, ':', 1) = $1 AND chat <> ALL ($2::text[])
        WINDOW line AS (PARTITION BY chat ORDER BY id)
    ), locked AS (
        SELECT id, chat, place FROM fleet_outgoing JOIN lines USING (id)
        WHERE lines.free AND place <= {MOST_OF_A_CHAT} AND {_FREE}
        ORDER BY id LIMIT $3 FOR UPDATE OF fleet_outgoing SKIP LOCKED
    ), next AS (
        SELECT id, place = row_number() OVER (PARTITION BY chat ORDER BY place) AS in_turn FROM locked
    )
    UPDATE fleet_outgoing AS outgoing SET taken = now() FROM next WHERE outgoing.id = next.id AND in_turn
    RETURNING outgoing.id, outgoing.chat, text
"""  # noqa: S608 - constants
_RENEW = "UPDATE fleet_outgoing SET taken = now() WHERE id = ANY ($1::bigint[]) AND taken IS NOT NULL"
_RELEASE = "UPDATE fleet_outgoing SET taken = NULL WHERE id = ANY ($1::bigint[])"


async def say(chat: str, text: str) -> None:
    """Have the bot say `text` in `chat`, which is the `chat` of a message that the bot got.

    Inside a transaction, as it ends. Needs an open process; raises what the pool and the driver do.
    """
    await Outgoing.create(chat=chat, text=text)


@dataclass(frozen=True, slots=True)
class Said:
    """One thing to be said, taken by this process."""

    id: int
    chat: str
    text: str


class Outbox:
    """What is to be said in the chats of one transport, "telegram" or "console"."""

    def __init__(self, client: AsyncpgDBClient, transport: str) -> None:
        self._client = client
        self._transport = transport

    async def take(self, most: int, *, busy: Sequence[str] = ()) -> list[Said]:
        """Up to `most` of it, the oldest first, MOST_OF_A_CHAT for each chat, nothing for the `busy` ones.

        Nothing either for a chat of which another process has taken what comes first. To be renewed within LEASE_S.
        """
        _, rows = await self._client.execute_query(_TAKE, [self._transport, list(busy), most])
        return sorted((Said(**row) for row in rows), key=lambda said: said.id)

    async def renew(self, taken: Sequence[Said]) -> None:
        """Keep it from other processes for another LEASE_S; not what was released meanwhile."""
        await self._client.execute_query(_RENEW, [[said.id for said in taken]])

    async def release(self, taken: Sequence[Said]) -> None:
        """It was not said: any process may take it at once."""
        await self._client.execute_query(_RELEASE, [[said.id for said in taken]])

    async def remove(self, said: Said) -> None:
        """It has been said, or never can be."""
        await Outgoing.filter(id=said.id).delete()
