"""What the bot is to say without having been asked, in the database until it has been said.

A job says something in the transaction in which it does its work, so that both happen or neither. Then any bot of the
chat's transport takes it, says it, and deletes it. A bot that cannot say it gives it back, and one that dies in between
leaves it to the next one after LEASE_S: everything is said once at least, and twice only where a bot died, lost the
answer, or was frozen for more than LEASE_S, just when it had said it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

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
    RETURNING outgoing.id, outgoing.chat, text, outgoing.taken
"""  # noqa: S608 - constants
# By whom a line was taken is told by when: what was taken anew since is another's.
_SET_MINE = """
    WITH mine AS (SELECT * FROM unnest($1::bigint[], $2::timestamptz[]) AS mine (id, taken))
    UPDATE fleet_outgoing AS outgoing SET taken = {} FROM mine
    WHERE outgoing.id = mine.id AND outgoing.taken = mine.taken
    RETURNING outgoing.id, outgoing.chat, text, outgoing.taken
"""
_RENEW, _RELEASE = _SET_MINE.format("now()"), _SET_MINE.format("NULL")


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
    taken: datetime


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

    async def renew(self, taken: Sequence[Said]) -> list[Said]:
        """Keep it from other processes for another LEASE_S; all of it that is still this one's."""
        _, rows = await self._client.execute_query(_RENEW, _ids_and_moments(taken))
        return [Said(**row) for row in rows]

    async def release(self, taken: Sequence[Said]) -> None:
        """It was not said: any process may take it at once. What is another's by now stays so."""
        await self._client.execute_query(_RELEASE, _ids_and_moments(taken))

    async def remove(self, said: Said) -> None:
        """It has been said, or never can be."""
        await Outgoing.filter(id=said.id).delete()


def _ids_and_moments(taken: Sequence[Said]) -> list[Any]:
    return [[said.id for said in taken], [said.taken for said in taken]]
