"""The life of one bot process."""

from __future__ import annotations

import logging
import sys

from bot.app_commands import app_commands
from bot.commands import commands
from bot.conditions import THRESHOLDS, Thresholds
from bot.outage import outage
from bot.router import Router
from bot.transport import choose_transport
from bot.watch import watching
from config import Settings
from config.exit_codes import ExitCode
from fleet.process import Process, open_process

logger = logging.getLogger(__name__)


def build_router(process: Process) -> Router:
    """The bot's own commands and the app's, for an open process. Raises AppRefused."""
    own = commands(process)
    return Router([*own, *app_commands(process, own)], told=lambda error: outage(error, process.settings))


async def run_bot(settings: Settings, thresholds: Thresholds = THRESHOLDS) -> ExitCode:
    """Answer messages, and watch the fleet, until nobody can write any more, or until cancelled; then all is closed.

    Raises TransportRefused, DatabaseError or FleetError if it cannot start, TokenRefused also later.
    """
    transport = choose_transport(settings, sys.stdin, sys.stdout)
    async with open_process(settings) as process, watching(process, thresholds):
        router = build_router(process)
        logger.info("%s uses the transport %s", process.id, transport.name)
        await transport.run(router, process)
    return ExitCode.OK
