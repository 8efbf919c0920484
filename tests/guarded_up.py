"""`python -m tests.guarded_up`: a `poolctl up` of two workers and a bot whose processes a guard watches over."""

from __future__ import annotations

import sys

from poolctl.fleet_run import Order
from poolctl.up_command import MAX_CONNECTIONS, carry_out

if __name__ == "__main__":
    sys.exit(
        carry_out(
            Order(
                workers=2,
                bots=1,
                exercise=None,
                once=False,
                fresh=False,
                configured_servers=False,
                max_connections=MAX_CONNECTIONS,
            ),
            "guard",
        )
    )
