"""`python -m bot`: the operators' chat bot. `python -m bot --health`: is it alive?"""

from __future__ import annotations

import argparse
import sys

from bot.runner import run_bot
from config.exit_codes import ExitCode
from fleet.entry import run, run_health


def main() -> ExitCode:
    """Run, or answer `--health`; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bot", description="Answers operators' commands about the fleet.")
    parser.add_argument(
        "--health",
        action="store_true",
        help="only ask whether this host's bots are alive: exit 0 yes, 1 no, 2 bad settings, 3 no Redis",
    )
    parser.add_argument("--pid", type=int, help="with --health: ask for the bot with this process id only")
    arguments = parser.parse_args()
    if arguments.pid is not None and not arguments.health:
        parser.error("--pid goes with --health")
    return run_health("bot", arguments.pid) if arguments.health else run("bot", run_bot)


if __name__ == "__main__":
    sys.exit(main())
