from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

import fleet
from config import Settings
from fleet.claims import LEASE_S, MOST_DEAD
from fleet.process import open_process
from worker.runner import build_loop, handler
from worker.serving import REST_S

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")


async def test_a_job_in_ten_lines(environ: dict[str, str]) -> None:
    """The job of docs/jobs.md, put together as it says there, prints what stands there."""
    contract, call = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    lines = [line for line in (contract + call).splitlines() if line.strip()]
    assert len(lines) <= 10
    said: list[str] = []
    names: dict[str, Any] = {name: getattr(fleet, name) for name in fleet.__all__}
    names |= {"print": said.append, "__name__": __name__}
    exec(contract, names)
    exec("async def ask(process):\n" + textwrap.indent(call, "    "), names)
    async with open_process(Settings.load("worker", environ)) as process:
        jobs = build_loop(process, [handler(names["GREET"], names["greet"], process)])
        running = asyncio.create_task(jobs.run())
        await names["ask"](process)
        jobs.stop()
        await running
    assert said == [printed.strip()]


def test_the_numbers_of_the_document() -> None:
    """Numbers that docs/jobs.md names are those of the code."""
    settings = Settings.load("worker", {})
    assert settings.worker.lease == LEASE_S == 20
    assert "`WORKER_LEASE` (20 s)" in TEXT
    assert f"`WORKER_SHUTDOWN_GRACE` + {REST_S:g} s" in TEXT
    assert f"the latest {MOST_DEAD:,}" in TEXT
    assert f"`WORKER_OUTAGE_TRIES` ({settings.worker.outage_tries}, about 10 minutes)" in TEXT
