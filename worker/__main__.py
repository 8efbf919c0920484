"""`python -m worker`: one worker process of the fleet; `--burst`: until no job is due; `--health`: is it alive?"""

from __future__ import annotations

import argparse
import sys
from functools import partial

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
    parser.add_argument("--burst", action="store_true", help="run the jobs that are due, and end; deferred ones stay")
    arguments = parser.parse_args()
    if arguments.pid is not None and not arguments.health:
        parser.error("--pid goes with --health")
    if arguments.health and arguments.burst:
        parser.error("--burst does not go with --health")
    if arguments.health:
        return run_health("worker", arguments.pid)
    return run("worker", partial(run_worker, burst=arguments.burst))


if __name__ == "__main__":
    sys.exit(main())
