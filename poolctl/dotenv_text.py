"""The text of a `.env` file: what it sets, and the same text with a line changed. Pure.

python-dotenv says which statement is which. Its own `set_key` does not keep the rest as it was: it changes every line
of the name where the last one counts, drops the comment, the quotes and the `export` of that line and the blank lines
before it, and writes all line ends anew.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

from dotenv.parser import Binding, parse_stream

from config.environment import parse_dotenv
from config.errors import Fault, SettingsError

_BOM = "\ufeff"  # python-dotenv passes over it since 1.2; its statements do not have it
_LINE_END = re.compile(r"\r\n|\n|\r")
_ASSIGNMENT = re.compile(
    r"""(?P<head>\s* (?:export[^\S\r\n]+)? (?:'[^']+'|[^=\#\s]+) [^\S\r\n]*= (?:[^\S\r\n]+(?!\#|\s))? )
        (?: '(?P<single>(?:\\.|[^'\\])*)' | "(?P<double>(?:\\.|[^"\\])*)" | (?P<bare>|[^'"\s].*?) )
        (?P<tail> (?:(?(bare)\s+|\s*)\#.*)? \s* )""",
    re.VERBOSE | re.DOTALL,
)
# Read alike, with and without quotes, by python-dotenv, compose and shells.
PLAIN = re.compile(r"[\w.,:*/ -]*", re.ASCII)


def values_of(text: str) -> dict[str, str]:
    """What the text sets; of several lines of one name the last counts. Raises SettingsError for any other line."""
    faults: list[Fault] = []
    values = parse_dotenv(text.removeprefix(_BOM), faults)
    if faults:
        raise SettingsError(faults)
    return values


def with_value(text: str, name: str, value: str) -> str:
    """The text in which `name` is `value`; every other line is as it was, and of its own line all but the value is.

    Where no line sets it, the commented-out line is used, if there is one only; else a line is added at the end.
    Raises ValueError for a value that is not PLAIN.
    """
    if not PLAIN.fullmatch(value):
        raise ValueError(f"{value!r} would need quotes")
    bindings = _bindings(text)
    lines = {index: binding.original.string for index, binding in enumerate(bindings) if binding.key == name}
    if not lines:
        candidates = ((index, _uncommented(binding, name)) for index, binding in enumerate(bindings))
        lines = {index: line for index, line in candidates if line is not None}
        if len(lines) != 1:
            return _appended(text, f"{name}={value}")
    index, line = lines.popitem()  # the last
    bindings[index] = _with_statement(bindings[index], _set(line, value))
    return _joined(text, bindings)


def commented_out(text: str, name: str, reason: str) -> str:
    """The text in which no line sets `name`: each that did is a comment now, with the reason at its end."""
    bindings = _bindings(text)
    for index, binding in enumerate(bindings):
        if binding.key == name:
            bindings[index] = _with_statement(binding, _as_comment(binding.original.string, reason))
    return _joined(text, bindings)


def _bindings(text: str) -> list[Binding]:
    return list(parse_stream(io.StringIO(text.removeprefix(_BOM), newline="")))


def _joined(text: str, bindings: Iterable[Binding]) -> str:
    return (_BOM if text.startswith(_BOM) else "") + "".join(binding.original.string for binding in bindings)


def _with_statement(binding: Binding, statement: str) -> Binding:
    return binding._replace(original=binding.original._replace(string=statement))


def _as_comment(statement: str, reason: str) -> str:
    line, end = _split_end(statement)
    bare = line.lstrip()
    blank = line[: len(line) - len(bare)]
    return f"{blank}#{_LINE_END.sub(lambda line_end: line_end[0] + '#', bare)}  # {reason}{end}"


def _set(statement: str, value: str) -> str:
    """One statement with another value, its quotes and its comment kept."""
    match = _ASSIGNMENT.fullmatch(statement)
    if match is None:
        raise ValueError(f"{statement!r} assigns nothing")
    quote = "'" if match["single"] is not None else '"' if match["double"] is not None else ""
    if not value and match["tail"].strip():
        quote = quote or '"'  # without them compose would take the comment for the value
    return f"{match['head']}{quote}{value}{quote}{match['tail']}"


def _uncommented(binding: Binding, name: str) -> str | None:
    """The statement in a comment that sets `name`, as in `#WORKERS=2`; None for prose such as `# WORKERS=2 is low`."""
    if binding.key is not None or binding.error:
        return None
    match = re.fullmatch(r"(\s*)#[^\S\r\n]?([^#=]+=.*)", binding.original.string, re.DOTALL)
    if match is None:
        return None
    inside = _bindings(match[2])
    if len(inside) != 1 or inside[0].error or inside[0].key != name or re.search(r"\s", inside[0].value or ""):
        return None
    return match[1] + match[2]


def _appended(text: str, line: str) -> str:
    """With a last line more, that ends as the last line did; line ends are those of the first line."""
    first = _LINE_END.search(text)
    end = first[0] if first else "\n"
    if not text or text == _BOM or _LINE_END.fullmatch(text[-1]):
        return f"{text}{line}{end}"
    return f"{text}{end}{line}"


def _split_end(statement: str) -> tuple[str, str]:
    """The statement, and its line end, which the last one may lack."""
    end = re.search(r"(?:\r\n|\n|\r)?\Z", statement)
    return (statement[: end.start()], end[0]) if end else (statement, "")
