"""What APP may name: read from modules on the path, without a server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config import Settings, SettingsError
from config.exit_codes import ExitCode
from examples.reminder.jobs import REMIND
from fleet.app import App, load_app
from fleet.errors import AppRefused
from fleet.jobs import OWN_JOBS
from worker.runner import own_handlers

Write = Callable[..., None]

DECLARED = "from fleet import App\napp = App({})\n"
JOBS = "from fleet import App, Job, JobCode, NoArguments\nasync def code(p, a): ...\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module `shop`, and others as `shop/NAME.py`, where Python finds them."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(text: str, **others: str) -> None:
        folder = tmp_path / "shop"
        folder.mkdir()
        (folder / "__init__.py").write_text(text)
        for name, content in others.items():
            (folder / f"{name}.py").write_text(content)

    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "shop":
            del sys.modules[name]


def load(name: str) -> App:
    return load_app(Settings.load("worker", {"APP": name}))


def refusal(name: str = "shop") -> str:
    """Why the app is refused: one line that names it, exit code 2."""
    with pytest.raises(AppRefused) as caught:
        load(name)
    assert caught.value.exit_code is ExitCode.USAGE
    text = str(caught.value)
    assert text.startswith(f"APP={name}: ")
    assert "\n" not in text
    return text


def test_no_app() -> None:
    """Without APP there is nothing beside the fleet's own."""
    app = load_app(Settings.load("worker", {}))
    assert (app.tables, app.jobs, app.commands) == ((), (), None)


def test_the_example() -> None:
    """The module's `app` is what is declared there, and its tables have its name."""
    app = load("examples.reminder")
    assert [each.job for each in app.jobs] == [REMIND]
    (tables,) = app.tables
    assert (tables.label, tables.models) == ("reminder", ("examples.reminder.models",))


@pytest.mark.parametrize("name", ["shop-1", "shop/jobs", "shop.py:app", ".shop", "shop.", "1shop", "a b", "shop;x"])
def test_a_name_that_no_module_has(name: str) -> None:
    """What cannot be imported is a bad setting."""
    with pytest.raises(SettingsError, match="is not the dotted name of a module: give one"):
        Settings.load("worker", {"APP": name})


@pytest.mark.parametrize(("name", "missing"), [("shap", "shap"), ("examples.reminders", "examples.reminders")])
def test_no_such_module(name: str, missing: str) -> None:
    """A name that is wrong is said, with what to do."""
    assert f"there is no module {missing}: correct the name, or add" in refusal(name)


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    """A module in the current folder is found, by a command whose own folder is elsewhere, too."""
    write(DECLARED.format("'shop'"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    assert load("shop").name == "shop"


@pytest.mark.parametrize("text", ["1 / 0", "import nowhere_to_be_found", "from fleet import Application", "app = ("])
def test_an_import_that_fails(write: Write, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """An error of the module's own is one line with the error, and the traceback is in the log."""
    write(f"{text}\n")
    assert "importing shop failed: " in refusal()
    assert "see its traceback above" in refusal()
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize(("text", "found"), [("", "no `app`"), ("app = 3", "an `app` of type int")])
def test_no_declaration(write: Write, text: str, found: str) -> None:
    """A module without a declaration is told what to write."""
    write(text)
    assert f"the module has {found}: write `app = fleet.App(…)` in it" in refusal()


def test_models_that_are_not_there(write: Write) -> None:
    """A module that the declaration names is looked for at once, not when the database is open."""
    write(DECLARED.format("'shop', models=['shop.models'], migrations='shop.migrations'"))
    assert "there is no module shop.models" in refusal()


def test_migrations_that_are_no_package(write: Write) -> None:
    """Tortoise would pass over a single file in silence."""
    write(DECLARED.format("'shop', models=['shop.models'], migrations='shop.models'"), models="")
    assert "migrations=shop.models is no package" in refusal()


@pytest.mark.parametrize("given", ["models=['shop.models']", "migrations='db.migrations'"])
def test_models_go_with_migrations(write: Write, given: str) -> None:
    """Models without migrations would have no tables; migrations without models, no use."""
    write(DECLARED.format(f"'shop', {given}"), models="")
    assert "give both, or none of them" in refusal()


@pytest.mark.parametrize("name", ["fleet", "", "my shop", "a.b"])
def test_a_label_that_is_taken_or_none(write: Write, name: str) -> None:
    """Tables have a label of their own."""
    write(DECLARED.format(f"{name!r}, models=['shop.models'], migrations='db.migrations'"), models="")
    assert f"name={name!r} cannot be a label of tables" in refusal()


@pytest.mark.parametrize("names", [["exercise_pool"], ["sell", "sell"]])
def test_a_job_name_that_is_taken(write: Write, names: list[str]) -> None:
    """Two jobs of one name, or one of the fleet's own, are refused."""
    jobs = ", ".join(f"JobCode(Job({name!r}, NoArguments, int), code)" for name in names)
    write(f"{JOBS}app = App('shop', jobs=[{jobs}])\n")
    assert f"2 jobs are called {names[0]}: rename one" in refusal()


SCHEDULED = "Scheduled(Job({!r}, NoArguments, int), {}, Times())"


@pytest.mark.parametrize(
    ("scheduled", "line"),
    [
        ([SCHEDULED.format("sweep", "NoArguments()")] * 2, "2 scheduled jobs are called sweep: give each a `name`"),
        ([SCHEDULED.format("swap", "NoArguments()")], "swap is scheduled, and no job of the app: add it to `jobs`"),
        ([SCHEDULED.format("sweep", "3")], "the scheduled sweep has wrong arguments: job sweep takes NoArguments"),
        (["'sweep'"], "a str is scheduled: write `Scheduled(job, arguments, times)`"),
    ],
)
def test_a_schedule_that_cannot_be(write: Write, scheduled: list[str], line: str) -> None:
    """What is scheduled is one of the app's jobs, with its arguments, and a name where there are several."""
    jobs = "jobs=[JobCode(Job('sweep', NoArguments, int), code)]"
    write(f"{JOBS}from fleet import Scheduled, Times\napp = App('shop', {jobs}, scheduled=[{', '.join(scheduled)}])\n")
    assert line in refusal()


def test_own_jobs_are_those_that_a_worker_has() -> None:
    """The names that are taken are those of the worker's own jobs."""
    handlers = own_handlers(None)  # type: ignore[arg-type] # only called when a job runs
    assert [each.job for each in handlers] == list(OWN_JOBS)
