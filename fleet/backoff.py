"""How long to wait before another try."""

from __future__ import annotations

import random
from dataclasses import dataclass

JITTER = 0.25  # those that failed together should not come back together


@dataclass(frozen=True, slots=True)
class Backoff:
    """`first_s` seconds after the first try, doubled after each further one up to `longest_s`, ± JITTER of it."""

    first_s: float = 1.0
    longest_s: float = 60.0

    def pause_s(self, tries: int) -> float:
        """Seconds to wait after so many tries, one at least."""
        exponent = min(tries - 1, 63)  # beyond it every pause is the longest, and a float ends at 2 ** 1023
        pause_s = min(self.first_s * 2.0**exponent, self.longest_s)
        return pause_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - not for secrets
