"""What the bot raises: to the user of a command, and to the person who runs the bot."""

from __future__ import annotations

from config.exit_codes import ExitCode
from fleet.errors import FleetError


class BadArguments(Exception):
    """A command was given arguments that it cannot take; the user is shown this text and the command's usage."""


class TransportRefused(FleetError):
    """BOT_TRANSPORT asks for a transport that this bot cannot have."""

    exit_code = ExitCode.USAGE
