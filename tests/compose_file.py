"""docker-compose.yml as its text says it, for those who compare another file with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.yml"
SETTINGS = ROOT / "docker-compose.settings.yml"


def load(path: Path) -> dict[str, Any]:
    """A compose file's own text: anchors are followed, variables and `extends` are not."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _services() -> dict[str, Any]:
    """As compose starts them: what they extend is in their environment. Without poolctl, which is for one command."""
    settings = load(SETTINGS)["services"]["settings"]["environment"]
    services = load(COMPOSE)["services"]
    for service in services.values():
        if "extends" in service:
            service["environment"] = {**settings, **service["environment"]}
    return {name: service for name, service in services.items() if name != "poolctl"}


def seconds(duration: str) -> float:
    """Compose's `1m30s`: the sum of its parts."""
    assert re.fullmatch(r"(\d+(\.\d+)?[sm])+", duration), duration
    return sum(float(number) * {"s": 1, "m": 60}[unit] for number, unit in re.findall(r"([\d.]+)([sm])", duration))


def megabytes(size: str) -> int:
    """`512M` is 512."""
    assert re.fullmatch(r"\d+(m|M|mb|MB)", size), size
    return int(re.sub(r"\D", "", size))


COMPOSED = _services()
