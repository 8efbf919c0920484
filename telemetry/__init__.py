"""What one process shows the world. So far: its log."""

from __future__ import annotations

from telemetry.logs import configure_logging

__all__ = ["configure_logging"]
