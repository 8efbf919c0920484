"""`python -m tests.alert_bot`: a real bot that is alarmed sooner."""

from __future__ import annotations

import sys
from functools import partial

from bot.conditions import Thresholds
from bot.runner import run_bot
from fleet.entry import run

SOONER = Thresholds(crowded_s=2.0, idle_s=0.5, queue_s=1.0)

if __name__ == "__main__":
    sys.exit(run("bot", partial(run_bot, thresholds=SOONER)))
