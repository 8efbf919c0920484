"""What is wrong with an environment: one fault a line, all faults at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from config.exit_codes import ExitCode

LONGEST_SHOWN_VALUE = 80

# The password of a URL that was put where no URL belongs, as in DB_HOST=postgres://user:secret@host/db.
_URL_PASSWORD = re.compile(r"(://[^:/?#@]*:).*(?=@)", re.DOTALL)


def shown(value: str) -> str:
    """`value` as it may be printed: on one line, not too long, without the password of a URL."""
    masked = _URL_PASSWORD.sub(r"\1***", value)
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in masked)
    if len(printable) > LONGEST_SHOWN_VALUE:
        return printable[: LONGEST_SHOWN_VALUE - 1] + "…"
    return printable


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with the environment: which variable, which value, which bound, what to do."""

    variable: str
    problem: str
    remedy: str
    value: str | None = None  # None for a secret

    def __str__(self) -> str:
        subject = self.variable if self.value is None else f"{self.variable}={shown(self.value)}"
        return f"{subject} {self.problem}: {self.remedy}"


class SettingsError(Exception):
    """The environment cannot be turned into settings. Its text has one line for each of `faults`."""

    exit_code = ExitCode.USAGE

    def __init__(self, faults: Iterable[Fault], secrets: Iterable[str] = ()) -> None:
        self.faults = tuple(_without(fault, secrets) for fault in faults)
        super().__init__("\n".join(map(str, self.faults)))


def _without(fault: Fault, secrets: Iterable[str]) -> Fault:
    """The fault; its value hidden where a secret was put into the wrong variable, too."""
    if fault.value is not None and any(len(secret) >= 4 and secret in fault.value for secret in secrets):
        return replace(fault, value="***")
    return fault
