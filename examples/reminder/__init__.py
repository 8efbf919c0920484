"""Reminders in a chat: `/remind 10m tea`, and ten minutes later the bot says so. APP names this package."""

from __future__ import annotations

from fleet import App, JobCode

from .commands import commands
from .jobs import REMIND, remind

app = App(
    "reminder",
    models=[f"{__name__}.models"],
    migrations=f"{__name__}.migrations",
    jobs=[JobCode(REMIND, remind)],
    commands=commands,
)
