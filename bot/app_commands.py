"""The commands of the app that APP names."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bot.command import Command
from db.errors import first_line
from fleet.errors import AppRefused
from fleet.process import Process

logger = logging.getLogger(__name__)

HELP = "help"  # the router's own


def app_commands(process: Process, own: Sequence[Command]) -> list[Command]:
    """The app's commands for a Router, beside the bot's `own`.

    Raises AppRefused where a name is taken, where it gives something else, or where it fails: then the log has the
    traceback.
    """
    if process.app.commands is None:
        return []
    app = process.settings.fleet.app
    try:
        made = list(process.app.commands(process))
    except Exception as error:
        logger.exception("making the commands of %s failed", app)
        raise AppRefused(
            f"APP={app}: making its commands failed: {type(error).__name__}: {first_line(error)}: see its"
            " traceback above"
        ) from error
    taken = {HELP, *(command.name for command in own)}
    commands = []
    for command in made:
        if not isinstance(command, Command):
            raise AppRefused(f"APP={app}: a command is of type {type(command).__name__}: make it a bot.Command")
        if command.name in taken:
            raise AppRefused(f"APP={app}: a command is called /{command.name}, and so is another one: rename it")
        taken.add(command.name)
        commands.append(command)
    return commands
