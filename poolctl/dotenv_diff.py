"""Two texts of a `.env` as a unified diff that a person may see: no secret, nothing that moves the cursor. Pure."""

from __future__ import annotations

import difflib
import io
import re

from dotenv.parser import Binding, parse_stream

from config.effective import MASK
from config.environment import DOTENV
from config.reference import env_example
from config.variables import known_names, secret_names

_OPEN_NAMES = (known_names() - secret_names()) | {"COMPOSE_FILE", "COMPOSE_PROJECT_NAME"}
_OPEN_COMMENTS = frozenset(env_example().splitlines())
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
_NAMED = re.compile(
    r"(?P<head>\s*\#?\s*(?:export\s+)?'?(?P<name>\w+)'?\s*[=:]\s*)(?P<value>.*?)(?P<end>[\r\n]*)", re.DOTALL
)
_URL_USER = re.compile(r"://[^/\s]*@")
_SAYS_SECRET = re.compile(r"passw|pwd|secret|token|credential|api.?key|://[^/\s]*@", re.IGNORECASE)


def unified_diff(before: str | None, after: str) -> str:
    """What changes, with three lines around it. Values are shown of settings that are no secrets; others are `***`."""
    return "\n".join(
        difflib.unified_diff(
            [] if before is None else _shown_lines(before),
            _shown_lines(after),
            "/dev/null" if before is None else DOTENV,
            DOTENV,
            lineterm="",
        )
    )


def _shown_lines(text: str) -> list[str]:
    """As many as the text has."""
    masked = "".join(_masked(binding) for binding in parse_stream(io.StringIO(text.removeprefix("\ufeff"))))
    return [_printable(line) for line in _LINE.findall(masked)]


def _masked(binding: Binding) -> str:
    statement = binding.original.string
    if binding.key is None:
        return _masked_comment(statement)
    if binding.key in _OPEN_NAMES:
        head, mark, comment = statement.partition(" #")
        head = _URL_USER.sub(f"://{MASK}@", head)
        return head + (_masked_comment(mark + comment) if mark else "")
    return _masked_value(statement)


def _masked_value(statement: str) -> str:
    """Without the value and whatever follows it; a value of several lines stays so many lines."""
    match = _NAMED.fullmatch(statement)
    if match is None:
        return "".join(f"{MASK}{_end_of(line)}" for line in _LINE.findall(statement))
    ends = "".join(f"{_end_of(line)}{MASK}" for line in _LINE.findall(match["value"]) if _end_of(line))
    return f"{match['head']}{MASK if match['value'] else ''}{ends}{match['end']}"


def _masked_comment(comment: str) -> str:
    if comment.strip() in _OPEN_COMMENTS:
        return comment
    match = _NAMED.fullmatch(comment)
    if match is not None and match["name"] not in _OPEN_NAMES and "=" in match["head"]:
        return _masked_value(comment)
    if _SAYS_SECRET.search(comment):
        return f"{comment[: comment.index('#') + 1]} {MASK}{_end_of(comment)}"
    return comment


def _end_of(line: str) -> str:
    return line[len(line.rstrip("\r\n")) :]


def _printable(line: str) -> str:
    """The line without its end, of which only a missing one is told."""
    shown = "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in line.rstrip("\r\n"))
    return shown if _end_of(line) else f"{shown}\n\\ No newline at end of file"
