"""`python -m worker`: one worker process of the fleet. `python -m worker --health`: is it alive?"""

from __future__ import annotations

import argparse
import sys

from config.exit_codes import ExitCode
from fleet.entry import run, run_health
from worker.runner import run_worker


def main() -> ExitCode:
    """Run, or answer `--health`; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker", description="Takes jobs from the fleet's queue.")
    parser.add_argument(
        "--health",
        action="store_true",
        help="only ask whether this host's workers are alive: exit 0 yes, 1 no, 2 bad settings, 3 no Redis",
    )
    parser.add_argument("--pid", type=int, help="with --health: ask for the worker with this process id only")
    arguments = parser.parse_args()
    if arguments.pid is not None and not arguments.health:
        parser.error("--pid goes with --health")
    return run_health("worker", arguments.pid) if arguments.health else run("worker", run_worker)


if __name__ == "__main__":
    sys.exit(main())
