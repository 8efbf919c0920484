"""The end that a process comes to in any case, though its event loop is blocked or a task will not end."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable

from config.exit_codes import ExitCode

logger = logging.getLogger(__name__)


class Deadline:
    """Ends the whole process, hard, with exit code FINDING, unless it has ended by itself before.

    A thread of its own watches, so no event loop takes part. `still_there` names what kept the process, for the last
    line of the log.
    """

    def __init__(self, still_there: Callable[[], list[str]]) -> None:
        self._still_there = still_there
        # The only queue that may be used in a signal handler, which may have interrupted anything.
        self._ends: queue.SimpleQueue[float] = queue.SimpleQueue()
        threading.Thread(target=self._watch, name="deadline", daemon=True).start()

    def within(self, seconds: float) -> None:
        """The end is so many seconds from now, or earlier if that was said before. For signal handlers, too."""
        self._ends.put(time.monotonic() + seconds)

    def _watch(self) -> None:
        end = self._ends.get()
        while (left_s := end - time.monotonic()) > 0:
            try:
                end = min(end, self._ends.get(timeout=left_s))
            except queue.Empty:
                break
        try:
            logger.critical(
                "did not end in time and is ended hard; its jobs are run again when their leases are over: %s",
                ", ".join(self._still_there()) or "none",
            )
            for handler in logging.getLogger().handlers:
                handler.flush()
        finally:
            os._exit(ExitCode.FINDING)
