"""How a contender reaches the server: directly, or as over a network."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from local import Tether

DIRECT = "direct"
DELAYED = "1 ms"  # in each round trip
DELAY_S = 0.001
PATHS = (DIRECT, DELAYED)


@contextmanager
def open_path(path: str, environ: Mapping[str, str], tether: Tether) -> Iterator[dict[str, str]]:
    """The environment that leads to the server on this path."""
    if path == DIRECT:
        yield dict(environ)
        return
    script = Path(__file__).with_name("delay_proxy.py")
    proxy = tether.spawn(
        [sys.executable, script, environ["DB_HOST"], environ["DB_PORT"], str(DELAY_S)],
        death_signal=signal.SIGKILL,
        environ={},
        cwd=script.parent,
    )
    try:
        port = proxy.output.readline().decode().strip()
        yield {**environ, "DB_PORT": port}
    finally:
        proxy.stop()
        proxy.output.close()
