"""`python -m tests.hold_servers DIRECTORY TETHER SOURCE`: open servers, say so, and hold them until killed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import cast

from local import open_servers, open_tether
from local.binaries import EVERYWHERE, Source
from local.child import TetherKind


def main(directory: str, kind: str, *search: str) -> None:
    with (
        open_tether(cast("TetherKind", kind)) as tether,
        open_servers(Path(directory), tether, search=cast("tuple[Source, ...]", search) or EVERYWHERE) as servers,
    ):
        print(f"holding {servers}", flush=True)  # noqa: T201 - it is the only way to tell
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
