"""/jobs: what is on the queue, and which jobs ended without success."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence

from bot.command import Command, Reply, Request
from bot.table import table
from config.errors import shown
from fleet.dead_letters import DeadJob, read_dead
from fleet.process import Process
from fleet.queue_view import QueueView, read_queue

MOST_RUNNING = 10
MOST_DEAD = 5


def jobs_command(process: Process) -> Command:
    """The command, for a Router."""

    async def jobs(_: Request) -> AsyncGenerator[Reply, None]:
        view = await read_queue(process.queue)
        count, latest = await read_dead(process.queue, most=MOST_DEAD)
        yield Reply(queue_text(process.settings.worker.queue, view), monospace=True)
        if latest:
            yield Reply(dead_text(count, latest), monospace=True)

    return Command(
        "jobs",
        "the job queue: due, running, deferred, dead",
        jobs,
        details="Dead jobs ended without success, or could not be read. `poolctl jobs --retry ID` tries one again.",
    )


def queue_text(name: str, view: QueueView) -> str:
    """The counts, and the jobs that run with their workers."""
    due = f"{view.due}, the first one for {view.oldest_s:.0f} s" if view.due else "0"
    counts = [("queue", name), ("due", due), ("running", str(len(view.running)))]
    counts += [("deferred", str(view.deferred)), ("dead", str(view.dead))]
    running = sorted(view.running.items())
    lines = [table(counts)]
    if running:
        lines.append(table([(shown(job), worker) for job, worker in running[:MOST_RUNNING]], ("running", "worker")))
    if len(running) > MOST_RUNNING:
        lines.append(f"… and {len(running) - MOST_RUNNING} more")
    return "\n".join(lines)


def dead_text(count: int, latest: Sequence[DeadJob]) -> str:
    """The last ones first, with their arguments and the reason."""
    lines = [f"the last {len(latest)} of {count} dead jobs" if count > len(latest) else "dead jobs"]
    for job in latest:
        what = "a payload that cannot be read" if job.job is None else f"{shown(job.job)} {_arguments(job)}"
        tries = f", try {job.tries}" if job.tries else ""
        lines.append(f"{shown(job.id)}  {job.at:%m-%d %H:%M:%S} UTC{tries}  {what}")
        lines.append(f"  {shown(job.type)}: {shown(next(iter(job.message.splitlines()), ''))}")
    return "\n".join(lines)


def _arguments(job: DeadJob) -> str:
    return shown(json.dumps(job.arguments, ensure_ascii=False))
