"""`poolctl deploy`: how many workers, which pools, through PgBouncer or not: into `.env`, and to docker compose."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from config import SettingsError
from config.environment import DOTENV
from config.errors import Fault
from config.exit_codes import ExitCode
from fleet.plan import Plan, PlanError, Verdict
from fleet.ways_out import ways_out
from poolctl import compose_run
from poolctl.compose_run import Command, Interrupted
from poolctl.deployment import Deployment
from poolctl.dotenv_changes import REASON, Change, Order, changes, overriding
from poolctl.dotenv_diff import unified_diff
from poolctl.dotenv_file import DotenvFile
from poolctl.dotenv_text import commented_out, values_of, with_value
from poolctl.plan_command import REDIS_MAXCLIENTS
from poolctl.plan_report import RedisShare, as_text

WHICH_STACK = ("COMPOSE_FILE", "COMPOSE_PATH_SEPARATOR")  # these say which stack it is, wherever they are set


def deploy(
    workers: Annotated[int | None, typer.Option(metavar="N", help="Worker processes: WORKERS.")] = None,
    pgbouncer: Annotated[
        bool,
        typer.Option(
            "--pgbouncer", help="Through PgBouncer: COMPOSE_PROFILES, and DB_POOL_MAX=5 unless a pool is chosen."
        ),
    ] = False,
    direct: Annotated[
        bool, typer.Option("--direct", help="Straight to PostgreSQL, and stop PgBouncer. DB_POOL_MAX stays.")
    ] = False,
    pool_max: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Connections of each process at most: DB_POOL_MAX, or WORKER_DB_POOL_MAX where that is set.",
        ),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Also run the compose command.")] = False,
) -> None:
    """Scale the compose stack of this folder, size its pools, put PgBouncer before the database or take it away.

    Edits the lines of .env that say so and keeps all others: .env is the state, which a later plain
    `docker compose up -d` finds there. Prints the change, the plan and the compose command. Nothing is written if the
    plan of .env is over. Settings of the shell, which compose prefers, are named; --apply refuses them. Without options
    it shows the state.

    Exit codes: 1 the plan is over, 2 bad settings or usage, 3 docker is missing or docker compose failed.
    """
    if pgbouncer and direct:
        raise SettingsError([Fault("--pgbouncer", "and --direct exclude each other", "leave out one of them")])
    order = Order(workers=workers, pgbouncer=True if pgbouncer else False if direct else None, pool_max=pool_max)
    if apply and not compose_run.is_installed():
        _fail(
            "docker is not on PATH: install Docker with its compose plugin, or leave out --apply; nothing was written"
        )
    file = DotenvFile(Path.cwd())
    if order.is_empty and not apply:
        _carry_out(order, file)
        return
    with file.held(_say_waiting) as lock:
        commands = _carry_out(order, file, apply=apply)
        if apply:
            _run(commands, lock)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What an order comes to, before anything is written."""

    text: str  # of `.env`
    changes: list[Change]
    overriding: list[str]  # of the shell
    deployment: Deployment  # of `.env` alone, which is what a later plain `up` finds
    here: Deployment  # with the shell's

    @classmethod
    def of(cls, order: Order, before: str | None) -> _Outcome:
        """Raises SettingsError or PlanError for an order that cannot be."""
        dotenv, shell = values_of(before or ""), os.environ
        text = before or ""
        changed = changes(order, dotenv, shell)
        for change in changed:
            text = _edited(text, change)
        after = values_of(text)
        alone = after | {name: shell[name] for name in WHICH_STACK if name in shell}
        return cls(text, changed, overriding(after, shell), Deployment.of(alone), Deployment.of({**after, **shell}))


def _carry_out(order: Order, file: DotenvFile, *, apply: bool = False) -> tuple[Command, ...]:
    """Everything but the commands, which are returned."""
    before = file.read()
    _check_folder(values_of(before or ""))
    outcome = _Outcome.of(order, before)
    deployment, plan = outcome.deployment, outcome.deployment.plan
    if apply and outcome.overriding:
        raise SettingsError([_overriding_fault(outcome.overriding)])
    changed = outcome.text != (before or "")
    over = plan.verdict is Verdict.OVER
    if changed and not over:
        typer.echo(f"{unified_diff(before, outcome.text)}\n")
    typer.echo(f"{'state' if order.is_empty else 'after this'}: {deployment}")
    redis = RedisShare(plan.demand.workers + 1, deployment.redis_max_connections, REDIS_MAXCLIENTS)
    typer.echo(f"{as_text(plan, redis)}\n")
    for note in _notes(order, outcome):
        typer.echo(note, err=True)
    if over:
        _refuse_over(order, before, deployment)
    if changed:
        file.write(outcome.text)
        typer.echo(f"{DOTENV} is written")
    elif not order.is_empty:
        typer.echo(f"{DOTENV} has these lines already")
    commands = compose_run.commands_for(remove_pooler=order.pgbouncer is False)
    typer.echo(f"{'runs' if apply else 'to put it in force'}: {compose_run.as_line(commands)}")
    return commands


def _edited(text: str, change: Change) -> str:
    if change.value is None:
        return commented_out(text, change.name, REASON)
    return with_value(text, change.name, change.value)


def _check_folder(dotenv: dict[str, str]) -> None:
    if not (os.environ.get("COMPOSE_FILE") or dotenv.get("COMPOSE_FILE") or compose_run.is_stack_folder(Path.cwd())):
        raise SettingsError([Fault(str(Path.cwd()), "has no docker-compose.yml", "run this in the stack's folder")])


def _overriding_fault(names: list[str]) -> Fault:
    verb = "wins" if len(names) == 1 else "win"
    return Fault(", ".join(names), f"of the shell {verb} over {DOTENV}", f"unset {' '.join(names)} in the shell")


def _notes(order: Order, outcome: _Outcome) -> Iterator[str]:
    """What may surprise, a line each."""
    plan, values = outcome.deployment.plan, values_of(outcome.text)
    if outcome.overriding:
        yield str(_overriding_fault(outcome.overriding))
        if outcome.here != outcome.deployment:
            yield f"in this shell docker compose would make it {outcome.here}: {outcome.here.plan.verdict}"
    yield from (f"warning: {warning}" for warning in outcome.deployment.warnings)
    for change in outcome.changes:
        if change.name.endswith("DB_POOL_MIN"):
            yield f"{change.name} was greater than the pools are now: lowered to {change.value}"
    if order.pool_max is None and order.pgbouncer is True and (own := values.get("WORKER_DB_POOL_MAX", "").strip()):
        yield f"WORKER_DB_POOL_MAX={own} stays as it is: --pool-max N changes it"
    if order.pool_max is None and order.pgbouncer is False and plan.demand.pool_max < plan.max_pool:
        yield f"the pools stay at {plan.demand.pool_max}, and {plan.max_pool} would fit: --pool-max N changes them"
    if order.workers is None and compose_run.is_installed():
        running, wanted = compose_run.running_workers(), plan.demand.workers
        if running and running != wanted:
            yield (
                f"workers that run now: {running}, and the command makes them {wanted}: WORKERS in {DOTENV} counts,"
                " not a --scale by hand"
            )


def _refuse_over(order: Order, before: str | None, deployment: Deployment) -> NoReturn:
    """Raises Exit, after a line with the orders that would do."""
    fitting = [str(each) for each in deployment.orders_out(order) if _fits(each, before)]
    typer.echo(
        f"the plan is over, {DOTENV} is not changed: "
        + (f"try {', or '.join(fitting)}" if fitting else _without_an_order(deployment.plan)),
        err=True,
    )
    raise typer.Exit(ExitCode.FINDING)


def _without_an_order(plan: Plan) -> str:
    """What is left to do; nothing that would not help."""
    remedies = []
    if ways_out(plan):
        remedies.append("take a way out")
    if plan.max_workers:
        remedies.append(f"order fewer workers, at most {plan.max_workers}")
    return ", or ".join(remedies) or "no single change is enough, begin with a larger POSTGRES_MAX_CONNECTIONS"


def _fits(order: Order, before: str | None) -> bool:
    try:
        return _Outcome.of(order, before).deployment.plan.verdict is not Verdict.OVER
    except (SettingsError, PlanError):
        return False


def _run(commands: tuple[Command, ...], lock: int) -> None:
    """Raises Exit for the first that fails."""
    line = compose_run.as_line(commands)
    for command in commands:
        try:
            code = compose_run.run(command, lock)
        except Interrupted:
            _fail(f"interrupted: {DOTENV} has the new state, `{line}` puts it in force")
        except OSError as error:
            _fail(f"docker cannot be started ({error.strerror}): {DOTENV} has the new state, `{line}` puts it in force")
        if code != 0:
            ended = f"exit code {code}" if code > 0 else f"signal {-code}"
            failed = compose_run.as_line([command])
            _fail(f"`{failed}` ended with {ended}: see above; {DOTENV} has the new state, `{line}` puts it in force")


def _fail(line: str) -> NoReturn:
    typer.echo(line, err=True)
    raise typer.Exit(ExitCode.NOT_READY)


def _say_waiting() -> None:
    typer.echo("another poolctl deploy, or its docker compose, is at work here: waiting for its end", err=True)
