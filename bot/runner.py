"""The life of one bot process."""

from __future__ import annotations

import logging
import sys

from bot.commands import commands
from bot.router import Router
from bot.transport import choose_transport
from config import Settings
from config.exit_codes import ExitCode
from db.errors import DatabaseError
from fleet.errors import FleetError
from fleet.process import open_process
from pool import PoolError

logger = logging.getLogger(__name__)

TOLD = (DatabaseError, FleetError, PoolError)  # their texts are lines for people, without secrets


async def run_bot(settings: Settings) -> ExitCode:
    """Answer messages until nobody can write any more, or until cancelled; everything is closed then.

    Raises TransportRefused, DatabaseError or FleetError if it cannot start.
    """
    transport = choose_transport(settings, sys.stdin, sys.stdout)
    async with open_process(settings) as process:
        logger.info("%s answers on the transport %s", process.id, transport.name)
        await transport.run(Router(commands(process), told=TOLD))
    return ExitCode.OK
