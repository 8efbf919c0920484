"""The operating-system account that servers run under: PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine, by name and number."""

    name: str
    uid: int
    gid: int


def server_account(*names: str) -> Account | None:
    """None (stay who we are) for an ordinary user; as root the first of `names` that exists."""
    if os.geteuid() != 0:
        return None
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise LookupError(f"running as root, and none of the users {', '.join(names)} exists to run servers under")
