"""The processes that run jobs: `python -m worker`."""

from __future__ import annotations

from worker.runner import build_loop, run_worker

__all__ = ["build_loop", "run_worker"]
