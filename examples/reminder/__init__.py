"""Reminders in a chat: `/remind 10m tea`, and ten minutes later the bot says so. Started by APP=examples.reminder."""

from __future__ import annotations

from examples.reminder.commands import commands
from examples.reminder.jobs import REMIND, remind
from fleet import App, JobCode

app = App(
    "reminder",
    models=["examples.reminder.models"],
    migrations="examples.reminder.migrations",
    jobs=[JobCode(REMIND, remind)],
    commands=commands,
)
