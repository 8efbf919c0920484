"""How a pool behaves: its guards, each with its default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Mode = Literal["pool", "none"]
Reset = Literal["auto", "always", "never"]
DeclaredPooler = Literal["auto", "none", "transaction", "session"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """Seconds where a name ends in `_s`. How many connections there may be is asyncpg's `min_size` and `max_size`."""

    acquire_timeout_s: float = 30.0  # one checkout as a whole: waiting, checking, connecting
    max_waiting: int = 0  # callers that may wait at once; 0 = no bound
    pre_ping: bool = True  # ask an idle connection for a sign of life before it is used
    pre_ping_idle_s: float = 1.0  # … once it was idle for longer than this; 0 = before every use
    max_lifetime_s: float = 3600.0  # greatest age of a connection; 0 = no limit
    mode: Mode = "pool"  # none: a connection for each checkout, closed on return
    reset: Reset = "auto"  # auto: where the session may have changed
    pooler: DeclaredPooler = "auto"  # what stands before the server
    log: bool = False  # connect, check-out, check-in and close, at DEBUG
    read_retry: bool = True  # run an ORM read once more when its connection died under it
    leak_threshold_s: float = 0.0  # warn of a connection that is held longer; 0 = off
    elastic: bool = False  # the limit can be changed while the pool is open

    def __post_init__(self) -> None:
        for name, words in (("mode", Mode), ("reset", Reset), ("pooler", DeclaredPooler)):
            if getattr(self, name) not in get_args(words):
                raise ValueError(f"{name}={getattr(self, name)!r}: one of {', '.join(get_args(words))}")

    @classmethod
    def taken_from(cls, arguments: dict[str, Any]) -> PoolOptions:
        """The options among `arguments`, which are removed there."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: arguments.pop(name) for name in names if name in arguments})
