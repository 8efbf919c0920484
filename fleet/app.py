"""Somebody's own jobs, commands and tables: what the module that APP names declares."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import ValidationError

from config import Settings
from config.tortoise import FLEET, Tables
from db.errors import first_line
from fleet.errors import AppRefused, first_fault, reason
from fleet.hooks import Hooks
from fleet.jobs import OWN_JOBS, Job
from fleet.scheduled import Scheduled

if TYPE_CHECKING:
    from fleet.process import Process  # which holds an App

logger = logging.getLogger(__name__)

A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class JobCode(Generic[A, R]):
    """A job's contract, and the code that a worker runs for it in its process."""

    job: Job[A, R]
    code: Callable[[Process, A], Awaitable[R]]


@dataclass(frozen=True, slots=True)
class App:
    """What the processes do beside their own work. The module that APP names has one, called `app`.

    `name` is the label of its tables: Tortoise's `models.ForeignKeyField("NAME.Model")`. `models` are the modules with
    its models, and `migrations` is the package with their migrations. `scheduled` are some of its jobs, `hooks` are
    called around all jobs. `commands` is called by a bot once it is open; it gives `bot.Command`s, as objects to this
    layer, which lies below the bot.
    """

    name: str
    models: Sequence[str] = ()
    migrations: str | None = None
    jobs: Sequence[JobCode[Any, Any]] = ()
    scheduled: Sequence[Scheduled[Any]] = ()
    hooks: Hooks = Hooks()  # noqa: RUF009 - it is frozen
    commands: Callable[[Process], Iterable[object]] | None = None

    @property
    def tables(self) -> tuple[Tables, ...]:
        """For `open_database` and `migrate`; empty without models."""
        if self.migrations is None:
            return ()
        return (Tables(self.name, tuple(self.models), self.migrations),)


def load_app(settings: Settings) -> App:
    """The app that APP names, with all that it names imported; one without anything where APP is not set.

    Connects nothing. Raises AppRefused; the log has the traceback where an import fails.
    """
    if settings.fleet.app is None:
        return App(name="")
    _search_current_folder()
    module = _import(settings.fleet.app, settings.fleet.app)
    app = getattr(module, "app", None)
    if not isinstance(app, App):
        found = "no `app`" if app is None else f"an `app` of type {type(app).__name__}"
        raise AppRefused(f"APP={settings.fleet.app}: the module has {found}: write `app = fleet.App(…)` in it")
    for name in (*app.models, *filter(None, (app.migrations,))):
        _import(name, settings.fleet.app)
    if app.migrations is not None and not hasattr(sys.modules[app.migrations], "__path__"):
        raise AppRefused(
            f"APP={settings.fleet.app}: migrations={app.migrations} is no package: name the folder of them"
        )
    _check(app, settings.fleet.app)
    return app


def _search_current_folder() -> None:
    """As `python -m` does it: so that a command that was installed finds the same module. Last, to hide nothing."""
    folder = os.getcwd()
    if "" not in sys.path and folder not in sys.path:
        sys.path.append(folder)


def _import(name: str, app: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise AppRefused(
                f"APP={app}: there is no module {missing}: correct the name, or add the folder that it is in to"
                " PYTHONPATH"
            ) from None
        logger.exception("importing %s failed", name)
        raise AppRefused(
            f"APP={app}: importing {name} failed: {type(error).__name__}: {first_line(error)}: see its traceback above"
        ) from error


def _check(app: App, name: str) -> None:
    if bool(app.models) != (app.migrations is not None):
        raise AppRefused(
            f"APP={name}: models={list(app.models)} with migrations={app.migrations}: give both, or none of them"
        )
    if app.models and (not app.name.isidentifier() or app.name == FLEET.label):
        raise AppRefused(
            f"APP={name}: name={app.name!r} cannot be a label of tables: give an identifier other than {FLEET.label!r}"
        )
    for job, times in Counter(each.name for each in (*OWN_JOBS, *(each.job for each in app.jobs))).items():
        if times > 1:
            raise AppRefused(f"APP={name}: {times} jobs are called {job}: rename one")
    if not isinstance(app.hooks, Hooks):
        raise AppRefused(f"APP={name}: `hooks` is of type {type(app.hooks).__name__}: write `Hooks(before=…, after=…)`")
    for scheduled in app.scheduled:
        _check_scheduled(scheduled, app, name)
    for key, times in Counter(each.key for each in app.scheduled).items():
        if times > 1:
            raise AppRefused(f"APP={name}: {times} scheduled jobs are called {key}: give each a `name`, all but one")


def _check_scheduled(scheduled: Scheduled[Any], app: App, name: str) -> None:
    if not isinstance(scheduled, Scheduled):
        raise AppRefused(
            f"APP={name}: a {type(scheduled).__name__} is scheduled: write `Scheduled(job, arguments, times)`"
        )
    if scheduled.job not in (each.job for each in app.jobs):
        raise AppRefused(f"APP={name}: {scheduled.job.name} is scheduled, and no job of the app: add it to `jobs`")
    try:
        scheduled.job.write_arguments(scheduled.arguments)
    except Exception as error:  # pydantic's, or one of the contract's own checks
        why = first_fault(error) if isinstance(error, ValidationError) else reason(error)
        raise AppRefused(
            f"APP={name}: the scheduled {scheduled.key} has wrong arguments: {why}: correct them"
        ) from None
