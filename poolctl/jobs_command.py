"""`poolctl jobs`: what is on the queue, and the jobs that ended without success."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer
from redis.exceptions import RedisError

from config import Settings
from config.errors import shown
from config.exit_codes import ExitCode
from fleet.dead_letters import DeadJob, read_dead, retry_dead
from fleet.errors import QueueLost, reason
from fleet.job_id import id_bytes, id_text
from fleet.queue import address, open_queue
from fleet.queue_view import QueueView, read_queue

MOST_SHOWN = 100
LONGEST_SHOWN = 300  # characters of arguments


def jobs(
    dead: Annotated[
        bool, typer.Option("--dead", help=f"List the dead jobs, the last one first, {MOST_SHOWN} at most.")
    ] = False,
    retry: Annotated[
        list[str] | None,
        typer.Option("--retry", metavar="ID", help="Put a dead job back on the queue; may be given several times."),
    ] = None,
    traceback: Annotated[bool, typer.Option("--traceback", help="With --dead: where each job failed.")] = False,
) -> None:
    """Show the job queue; list and retry the jobs that ended without success.

    Exit code 1 where a job to be retried is not among the dead. What cannot be printed is escaped, as \\x1b.
    """
    wanted = [_checked(job_id) for job_id in retry or []]
    settings = Settings.load("poolctl")
    code = asyncio.run(_run(settings, dead=dead, retry=wanted, traceback=traceback))
    raise typer.Exit(code)


def _checked(job_id: str) -> str:
    """As `id_text` writes it, however it was typed."""
    try:
        return id_text(id_bytes(job_id))
    except ValueError as error:
        raise typer.BadParameter(f"--retry {shown(job_id)}: {error}; copy the id from poolctl jobs --dead") from None


async def _run(settings: Settings, *, dead: bool, retry: list[str], traceback: bool) -> ExitCode:
    code = ExitCode.OK
    async with open_queue(settings) as queue:
        try:
            for job_id in retry:
                if (refusal := await retry_dead(queue, job_id)) is None:
                    typer.echo(f"{job_id}: back on the queue")
                else:
                    typer.echo(f"{job_id}: {refusal}", err=True)
                    code = ExitCode.FINDING
            if dead:
                count, listed = await read_dead(queue, most=MOST_SHOWN)
                for job in listed:
                    typer.echo(dead_lines(job, traceback=traceback))
                typer.echo(f"{count} dead" + (f", of which {len(listed)} are shown" if count > len(listed) else ""))
            elif not retry:
                typer.echo(queue_lines(settings.worker.queue, await read_queue(queue)))
        except (RedisError, OSError) as error:
            raise QueueLost(f"Redis at {address(settings.redis)} was lost ({reason(error)}): is it up?") from None
    return code


def queue_lines(name: str, view: QueueView) -> str:
    """The queue in a few lines."""
    lines = [f"queue {name}"]
    lines.append(f"due       {view.due}" + (f", the first one for {view.oldest_s:.1f} s" if view.due else ""))
    lines.append(f"deferred  {view.deferred}")
    lines.append(f"running   {len(view.running)}")
    lines += [f"  {job_id}  {worker}" for job_id, worker in sorted(view.running.items())[:MOST_SHOWN]]
    lines.append(f"dead      {view.dead}" + (": poolctl jobs --dead" if view.dead else ""))
    return "\n".join(lines)


def dead_lines(job: DeadJob, *, traceback: bool = False) -> str:
    """A dead job in two lines, and its traceback."""
    what = "payload that cannot be read"
    if job.job is not None:
        arguments = json.dumps(job.arguments, ensure_ascii=False)
        what = f"{job.job} {arguments[:LONGEST_SHOWN]}{'…' * (len(arguments) > LONGEST_SHOWN)}"
    message = job.message.splitlines()[0] if job.message else ""
    tries = f", try {job.tries}" if job.tries else ""
    lines = [f"{job.id}  {job.at:%Y-%m-%d %H:%M:%S} UTC{tries}  {what}", f"    {job.type}: {message}"]
    if traceback and job.traceback:
        lines += job.traceback.expandtabs().split("\n")
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """What jobs say must not reach the terminal as its control sequences."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
