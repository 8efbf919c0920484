"""Alerts in the database: each is opened once and closed once, by however many bots, and told to the subscribers.

One statement opens or closes an alert and puts a line for each subscriber into the outbox (fleet/outbox.py): so all of
it happens or nothing, also where a bot dies at that moment. The lines are then said once at least, as the outbox
promises. What decides between two bots is the partial unique index of db.models.Alert.
"""

from __future__ import annotations

from datetime import datetime

from tortoise.backends.asyncpg.client import AsyncpgDBClient

from bot.conditions import Finding, Kind, Open

STALE_S = 15.0  # a bot that was stopped for so long between looking and storing has nothing to say any more
MOST_UNSAID = 100  # of a chat that no bot reaches

_TELL = f"""
    told AS (
        INSERT INTO fleet_outgoing (chat, text, created)
        SELECT chat, $3::text, now() FROM fleet_subscriber AS subscriber, changed
        WHERE (SELECT count(*) FROM fleet_outgoing AS unsaid WHERE unsaid.chat = subscriber.chat) < {MOST_UNSAID}
        ORDER BY subscriber.id
    )
    SELECT count(*) AS changed FROM changed
"""  # noqa: S608 - a constant
# What was seen at $4 may be news of yesterday: this bot was stopped since, or another has stored something newer.
_OPEN = f"""
    WITH changed AS (
        INSERT INTO fleet_alert (kind, subject, value, opened)
        SELECT $1::text, $2::text, $5::float8, now()
        WHERE $4::timestamptz > now() - interval '{STALE_S} s'
          AND NOT EXISTS (SELECT FROM fleet_alert WHERE kind = $1::text AND subject = $2::text AND closed >= $4)
        ON CONFLICT (kind, subject) WHERE closed IS NULL DO NOTHING
        RETURNING id
    ), {_TELL}
"""  # noqa: S608 - a constant
_CLOSE = f"""
    WITH changed AS (
        UPDATE fleet_alert SET closed = now()
        WHERE kind = $1::text AND subject = $2::text AND closed IS NULL
          AND opened < $4::timestamptz AND $4 > now() - interval '{STALE_S} s'
        RETURNING id
    ), {_TELL}
"""  # noqa: S608 - a constant


class Alerts:
    """All raise what the pool and the driver do."""

    def __init__(self, client: AsyncpgDBClient) -> None:
        self._client = client

    async def open_ones(self) -> Open:
        """Those of our kinds that are open, and since when."""
        _, rows = await self._client.execute_query(
            "SELECT kind, subject, opened FROM fleet_alert WHERE closed IS NULL AND kind = ANY ($1::text[])",
            [[kind.value for kind in Kind]],
        )
        return {(Kind(row["kind"]), row["subject"]): row["opened"] for row in rows if row["subject"] is not None}

    async def store(self, finding: Finding, seen: datetime) -> bool:
        """Open or close the alert of what was `seen` at that time, by the database's clock.

        False where it was so already, or another bot has seen something newer.
        """
        text = f"{'Alert' if finding.holds else 'Over'} at {seen:%H:%M} UTC: {finding.text}."
        arguments = [finding.kind.value, finding.subject, text, seen]
        if finding.holds:
            _, rows = await self._client.execute_query(_OPEN, [*arguments, finding.value])
        else:
            _, rows = await self._client.execute_query(_CLOSE, arguments)
        return bool(rows[0]["changed"])
