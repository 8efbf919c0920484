"""How every process of the fleet begins and ends: settings, logging, signals, exit code."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from types import FrameType

from config import Settings, SettingsError
from config.exit_codes import ExitCode
from config.settings import Role
from db.errors import DatabaseError
from fleet.errors import FleetError
from fleet.health import check_health
from telemetry.logs import configure_logging

logger = logging.getLogger(__name__)

Main = Callable[[Settings], Awaitable[ExitCode]]


def run(role: Role, main: Main) -> ExitCode:
    """Run `main` with the settings of `role` until it ends; the process's exit code.

    SIGTERM and SIGINT cancel `main`, which then closes what it opened: exit 0. Another signal meanwhile cancels the
    closing, too. `main` may put handlers of its own in their place with `signal.signal`. (Before, while Python
    imports, nothing is open, and a signal ends the process as it always does.)

    What a person at the console can mend is one line without a traceback: bad settings on standard error, exit 2;
    DatabaseError and FleetError in the log, exit by their `exit_code`. Anything else is in the log with its
    traceback, exit 1.
    """
    try:
        settings = Settings.load(role)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    configure_logging(settings)
    try:
        return asyncio.run(_until_signalled(main, settings))
    except (DatabaseError, FleetError) as error:
        logger.critical("%s", error, extra={"exit_code": int(error.exit_code)})
        return error.exit_code
    except Exception:
        logger.exception("%s ends on an unexpected error", role)
        return ExitCode.FINDING


def run_health(role: Role, pid: int | None) -> ExitCode:
    """`--health`: whether this host's processes of `role`, or the one with `pid`, are alive; one line says why not.

    Exit codes: 0 alive, 1 dead, stuck or missing, 2 bad settings, 3 Redis unreachable.
    """
    try:
        code, line = asyncio.run(check_health(Settings.load(role), role, pid))
    except (SettingsError, FleetError) as error:
        code, line = error.exit_code, str(error)
    (sys.stdout if code is ExitCode.OK else sys.stderr).write(f"{line}\n")
    return code


async def _until_signalled(main: Main, settings: Settings) -> ExitCode:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main(settings))
    received: list[signal.Signals] = []

    # Not by `loop.add_signal_handler`: there a signal waits in a pipe until the loop reads it, and is lost if `main`
    # takes that handler away before. This one has acted when it returns.
    def stop(signum: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(signum))
        loop.call_soon_threadsafe(task.cancel)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        logger.info("ended by %s", received[0].name)
        return ExitCode.OK
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
