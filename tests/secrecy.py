"""No output of a whole test run may show a password: not a process's, not a test's, not a failure's."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest


class Secrecy:
    """A pytest plugin that keeps all output, and at the end fails the run when a secret is in it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="poolctl-tests-output-"))
        self.secrets: set[str] = set()
        self._reports: list[tuple[str, str]] = []
        self._leaks: list[str] = []

    def leaks(self) -> list[str]:
        """The names of the files and tests whose output shows a secret."""
        outputs = [(str(path), path.read_text(errors="replace")) for path in sorted(self.folder.glob("*.log"))]
        return [name for name, text in (*outputs, *self._reports) if any(secret in text for secret in self.secrets)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test printed and logged in this process, and how it failed."""
        texts = [text for _, text in report.sections] + [report.longreprtext]
        self._reports += [(f"{report.nodeid} ({report.when})", text) for text in texts if text]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Search everything, after the last fixture is gone."""
        self._leaks = self.leaks()
        if self._leaks:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where, and never what."""
        if self._leaks:
            terminalreporter.section("a password was printed", red=True)
            for name in self._leaks:
                terminalreporter.line(name)

    def pytest_unconfigure(self) -> None:
        """Leave the output for inspection only when it shows something that it must not."""
        if not self._leaks:
            shutil.rmtree(self.folder, ignore_errors=True)
