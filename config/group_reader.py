"""Groups of settings, read off one environment: which variable gives a field, where that came from, what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from config.bounds import fault_of
from config.environment import Environment, Value
from config.errors import Fault
from config.groups import Group
from config.variables import secret_names, variables_of

AnyGroup = TypeVar("AnyGroup", bound=Group)


class GroupReader:
    """Collects values, faults, warnings and origins while a role's groups are read.

    `secrets` is whatever was given as a secret, also where it is refused: no fault may show it.
    """

    def __init__(self, role: str, environment: Environment) -> None:
        self.role = role
        self.environment = environment
        self.faults: list[Fault] = list(environment.faults)
        self.warnings: list[str] = []
        self.origins: dict[str, str] = {}
        # Those of files and URLs are added when read.
        self.secrets = [text for name, text in environment.values.items() if name in secret_names()]

    def read(self, group: type[AnyGroup]) -> AnyGroup:
        """The group as it is set."""
        return self.build(group, self.values(group))[0]

    def values(self, group: type[Group]) -> dict[str, Value]:
        """What is set of a group's fields; notes where each came from."""
        values = {}
        for variable in variables_of(group):
            if variable.secret:
                found = self.secret(variable.name)
            else:
                found = self.environment.find(variable.name, self.role)
                self._note(variable.name, found)
            if found is not None:
                values[variable.field] = found
        return values

    def secret(self, variable: str) -> Value | None:
        found = self.environment.find_secret(variable, self.role, self.faults)
        if found is not None:
            self.secrets.append(found.text)
        self._note(variable, found)
        return found

    def _note(self, variable: str, found: Value | None) -> None:
        if found is None:
            self.origins[variable] = "default"
        elif found.variable == variable:
            self.origins[variable] = found.origin
        else:
            self.origins[variable] = f"{found.origin} ({found.variable})"

    def overlay(
        self,
        group: type[Group],
        values: dict[str, Value],
        url: Value,
        parts: Mapping[str, str],
        ignored: tuple[str, ...],
    ) -> None:
        """Puts a URL's parts over `values`; one warning names the variables that the URL makes void."""
        given = [
            name
            for variable in ignored
            for candidate in (variable, f"{variable}_FILE")
            for name in self.environment.names(candidate, self.role)
            if name in self.environment.values
        ]
        if given:
            self.warnings.append(f"{url.variable} is set, so these are ignored: {', '.join(given)}")
        self.secrets += [parts[part] for part in ("DB_PASSWORD", "REDIS_PASSWORD") if parts.get(part)]
        for variable in variables_of(group):
            if variable.name in ignored:  # what the URL leaves out is at its default
                values.pop(variable.field, None)
                self.origins[variable.name] = "default"
            if variable.name in parts:
                values[variable.field] = Value(parts[variable.name], url.variable, url.variable)
                self.origins[variable.name] = url.variable

    def build(self, group: type[AnyGroup], values: Mapping[str, Value]) -> tuple[AnyGroup, set[str]]:
        """The group; a faulty field is reported and left at its default, so that the others are checked too."""
        texts: dict[str, Any] = {field: value.text for field, value in values.items()}
        try:
            return group(**texts), set()
        except ValidationError as error:
            variables = {variable.field: variable for variable in variables_of(group)}
            faulty = set()
            for detail in error.errors(include_url=False, include_input=False):
                field = str(detail["loc"][0])
                if field not in faulty:
                    faulty.add(field)
                    self.faults.append(fault_of(variables[field], values[field], detail))
            return group(**{field: text for field, text in texts.items() if field not in faulty}), faulty

    @staticmethod
    def named(values: Mapping[str, Value], field: str, variable: str) -> str:
        """The variable that holds the field: perhaps one with a role's prefix."""
        return values[field].variable if field in values else variable
