"""The process's environment: variables over `.env`, a role's over everyone's, secrets also from files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from config.errors import Fault

DOTENV = ".env"
ROLES = ("worker", "bot")


@dataclass(frozen=True, slots=True)
class Value:
    """What was found for a setting: its text, the variable that held it, and where that came from."""

    text: str
    variable: str
    origin: str


@dataclass(frozen=True, slots=True)
class Environment:
    """All variables that are set to something. An empty variable counts as unset.

    `values` maps names to text, `origins` says for each name whether it came from the environment or from
    `.env`, and `faults` holds what could not be read.
    """

    values: Mapping[str, str]
    origins: Mapping[str, str]
    faults: tuple[Fault, ...] = field(default=())

    def find(self, variable: str, role: str | None = None) -> Value | None:
        """The value of `variable`; for a `DB_*` variable and a role, `WORKER_DB_*` or `BOT_DB_*` wins."""
        for name in self.names(variable, role):
            if name in self.values:
                return Value(self.values[name], name, self.origins[name])
        return None

    def find_secret(self, variable: str, role: str | None, faults: list[Fault]) -> Value | None:
        """Like `find`, but the value may also be in the file that `NAME_FILE` names (Docker secrets).

        What is wrong with the file, or with giving both, is added to `faults`.
        """
        for name in self.names(variable, role):
            file_variable = f"{name}_FILE"
            if name in self.values and file_variable in self.values:
                faults.append(
                    Fault(name, f"and {file_variable} are both set", f"unset one of {name} and {file_variable}")
                )
                return None
            if name in self.values:
                return Value(self.values[name], name, self.origins[name])
            if file_variable in self.values:
                path = self.values[file_variable]
                secret = _read_secret(file_variable, path, faults)
                return None if secret is None else Value(secret, name, f"file {path}")
        return None

    @staticmethod
    def names(variable: str, role: str | None) -> tuple[str, ...]:
        """The names under which `variable` may be given to a process of `role`, the strongest first."""
        if role in ROLES and variable.startswith("DB_"):
            return (f"{role.upper()}_{variable}", variable)
        return (variable,)


def read(environ: Mapping[str, str] | None = None) -> Environment:
    """The given variables alone; or, when None, those of this process over those of `.env` in its folder."""
    faults: list[Fault] = []
    layers: list[tuple[str, Mapping[str, str]]]
    if environ is None:
        layers = [(DOTENV, _read_dotenv(Path(DOTENV), faults)), ("environment", os.environ)]
    else:
        layers = [("environment", environ)]
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for name, text in layer.items():
            if text.strip():
                values[name] = text
                origins[name] = origin
    return Environment(values, origins, tuple(faults))


def _read_dotenv(path: Path, faults: list[Fault]) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        faults.append(Fault(DOTENV, "is not UTF-8 text", "save it as UTF-8"))
        return {}
    except OSError as error:
        faults.append(Fault(DOTENV, f"cannot be read ({error.strerror})", "make it readable, or remove it"))
        return {}
    return parse_dotenv(text, faults)


def parse_dotenv(text: str, faults: list[Fault]) -> dict[str, str]:
    """What the text of a `.env` sets. A line that is not NAME=value is a fault, by its number."""
    bindings = list(parse_stream(StringIO(text)))
    for binding in bindings:
        if binding.error or (binding.key is not None and binding.value is None):
            # By its number: the line itself may hold a secret.
            line = f"{DOTENV} line {binding.original.line}"
            faults.append(Fault(line, "is not NAME=value", "mend or remove that line"))
    return {b.key: b.value for b in bindings if b.key is not None and b.value is not None}


def _read_secret(variable: str, path: str, faults: list[Fault]) -> str | None:
    """The file's text without its last line break, or None and a fault."""

    def refuse(problem: str, remedy: str) -> None:
        faults.append(Fault(variable, problem, remedy, value=path))

    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        refuse(f"cannot be read ({error.strerror})", "name a file that this process may read")
        return None
    except ValueError:  # a NUL byte in the path
        refuse("is not a path", "name a file that this process may read")
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        refuse("is not UTF-8 text", "write the secret as UTF-8 text")
        return None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        refuse("is empty", "write the secret into it")
        return None
    if "\0" in text:
        refuse("has a NUL byte", "write the secret as text")
        return None
    return text
