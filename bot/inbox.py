"""Which of the messages that a transport delivers were handled already, in Redis, by whichever bot it was."""

from __future__ import annotations

import time

from arq.connections import ArqRedis

from bot.errors import LeaseLost
from bot.lease import Lease

# Telegram keeps what was not fetched for a day, so nothing older is delivered again; and it starts its numbers
# anew, perhaps lower, after a week without messages, so an old mark must not be kept for that long.
REMEMBERED_S = 2 * 86_400.0

# The mark is "NUMBER HOLDER". A number that this holder marked itself is its own still: the answer was lost then.
_CLAIM = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local number, mark = tonumber(ARGV[2]), redis.call('GET', KEYS[2])
if mark then
  local last, by = string.match(mark, '^(%d+) (.*)$')
  last = tonumber(last)
  if last and (last > number or (last == number and by ~= ARGV[1])) then return 0 end
end
redis.call('SET', KEYS[2], ARGV[2] .. ' ' .. ARGV[1], 'PX', ARGV[3])
return 1
"""


class Inbox:
    """Messages have rising numbers. Each is claimed before it is handled, in one step with a look at the lease.

    So a message is handled once at most: a bot that dies between its claim and its answer does not answer, and no
    other does. That holds while Redis keeps its data; where it loses them, the transport's own memory is what is left.
    """

    def __init__(self, queue: ArqRedis, key: str, lease: Lease, *, remembered_s: float = REMEMBERED_S) -> None:
        self._queue = queue
        self._key = key
        self._lease = lease
        self._claim_script = queue.register_script(_CLAIM)
        self._remembered_s = remembered_s
        self._number: int | None = None
        self._heard_at = 0.0

    @property
    def following(self) -> int | None:
        """The number from which on messages are not known to be handled; None: nothing is known, or no longer."""
        if self._number is None or time.monotonic() - self._heard_at > self._remembered_s:
            return None
        return self._number + 1

    async def refresh(self) -> None:
        """Learn what other bots have claimed. Raises RedisError."""
        mark: bytes | None = await self._queue.get(self._key)
        number = (mark or b"").partition(b" ")[0]
        self._remember(int(number) if number.isdigit() else None)

    async def claim(self, number: int) -> bool:
        """Whether this bot is to handle it. Raises LeaseLost; RedisError: nobody knows, so ask again later."""
        if (following := self.following) is not None and number < following:
            return False
        answer = await self._claim_script(
            keys=[self._lease.key, self._key], args=[self._lease.holder, number, int(self._remembered_s * 1000)]
        )
        if answer < 0:
            raise LeaseLost("another bot may have it")
        self._remember(number)
        return bool(answer)

    def _remember(self, number: int | None) -> None:
        self._number, self._heard_at = number, time.monotonic()
