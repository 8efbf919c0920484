"""`poolctl`, and `python -m poolctl`."""

from __future__ import annotations

import sys

from config import SettingsError
from db.errors import DatabaseError
from fleet.errors import FleetError
from poolctl.app import build_app


def main() -> None:
    """Run the command line. What a person can mend is told in one line on standard error, without a traceback."""
    try:
        build_app()(prog_name="poolctl")
    except (SettingsError, DatabaseError, FleetError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
