"""People who may not give commands: whom we have answered lately."""

from __future__ import annotations

SILENCE_S = 60 * 60.0
MOST = 1000


class Strangers:
    """Remembers for SILENCE_S who was answered, MOST people at most; while it is full, no others are answered."""

    def __init__(self) -> None:
        self._answered: dict[str, float] = {}  # in the order of the times, since each is put at the end

    def meet(self, stranger: str, now_s: float) -> bool:
        """Whether to answer and to log: the first time, and after SILENCE_S again. `now_s`: any monotonic clock."""
        while self._answered and next(iter(self._answered.values())) <= now_s - SILENCE_S:
            del self._answered[next(iter(self._answered))]
        if stranger in self._answered or len(self._answered) >= MOST:
            return False
        self._answered[stranger] = now_s
        return True
