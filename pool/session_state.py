"""What a statement's text says about the session: may it leave something behind, does it stand a pooler.

Only the text is read. A function, view or trigger that changes the session behind an innocent name is not seen.
"""

from __future__ import annotations

import functools
import re
from typing import Final

# Statements repeat, so a verdict is kept. Long ones are mostly scripts and hand-made lists of values: they would
# fill the memory and seldom be asked for again.
_KEPT_VERDICTS: Final = 1024
_LONGEST_KEPT: Final = 4096  # characters


def may_change_session(sql: str) -> bool:
    """Whether a connection must be reset after this statement, or script of statements.

    False is a promise that nothing is left which asyncpg's reset would undo: settings, advisory locks, cursors,
    listeners. What is not known to be harmless counts as a change.
    """
    return _kept_may_change(sql) if len(sql) <= _LONGEST_KEPT else _may_change(sql)


def session_feature(sql: str) -> str | None:
    """The first thing in this statement or script that needs a session of its own, None if there is none.

    Behind a pooler in transaction mode it is lost, or hits somebody else. Meant for a warning, not for a decision:
    what is lost at the end of a transaction anyway (SET LOCAL, a table ON COMMIT DROP) is not named, nor is
    set_config() whose third argument is a parameter.
    """
    return _kept_feature(sql) if len(sql) <= _LONGEST_KEPT else _feature(sql)


def _nested(comment: str) -> str:
    """A pattern of comments that may hold comments of the pattern `comment`."""
    return rf"/\*(?:[^*/]|\*(?!/)|/(?!\*)|{comment})*\*/"


# PostgreSQL nests comments without end, a regular expression cannot: one that is nested deeper matches nothing. Each
# text can be read in one way only, so that no backtracking finds a keyword inside a comment. (Possessive quantifiers
# would say so, but are broken before Python 3.11.5: cpython#106052.)
_COMMENT: Final = rf"(?:--[^\r\n]*(?![^\r\n])|{_nested(_nested(_nested(_nested('(?!)'))))})"

_HARMLESS: Final = re.compile(
    rf"(?:[\s(]|{_COMMENT})*"
    r"(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)(?![\w$])",
    re.IGNORECASE,
)

# Looked for everywhere, in literals and comments too: a name in a literal may be run by a function that takes SQL as
# text. U&"…" can spell any name by its code points. set_limit() is pg_trgm's; the names in the last line run SQL.
_CHANGES: Final = re.compile(
    r"set_config|setseed|set_limit|pg_advisory_(?!xact_)|pg_try_advisory_|U&\""
    r"|INTO\s+(?:(?:LOCAL|GLOBAL)\s+)?TEMP(?:ORARY)?\b|pg_temp"  # a table that stays until the session's end
    r"|dblink|query_to_xml|ts_stat|ts_rewrite|crosstab|connectby",
    re.IGNORECASE,
)
_WRITES: Final = re.compile(r"INSERT|UPDATE|DELETE|MERGE", re.IGNORECASE)
_SETTINGS: Final = re.compile(r"pg_settings", re.IGNORECASE)  # a view: UPDATE on it is SET


def _may_change(sql: str) -> bool:
    return (
        _HARMLESS.match(sql) is None
        or ";" in sql.rstrip(" \t\r\n;")
        or _CHANGES.search(sql) is not None
        or (_SETTINGS.search(sql) is not None and _WRITES.search(sql) is not None)
    )


# What a script says apart from its literals, function bodies and comments. A quoted name stays.
_ASIDE: Final = re.compile(
    rf"""{_COMMENT}|(?P<name>"[^"]*")|\bE'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$""",
    re.IGNORECASE | re.DOTALL,
)

_TEMPORARY: Final = r"(?:(?:GLOBAL|LOCAL)\s+)?TEMP(?:ORARY)?\s"
_FEATURES: Final = re.compile(
    r"^\s*(?P<keyword>LISTEN|LOAD|DEALLOCATE|PREPARE(?!\s+TRANSACTION\b)|SET(?!\s+(?:LOCAL|TRANSACTION|CONSTRAINTS)\b))\b"
    r"|^\s*(?P<cursor>DECLARE\b.*\bWITH\s+HOLD\b)"
    rf"|^\s*(?P<table>CREATE\s+(?:OR\s+REPLACE\s+)?{_TEMPORARY}(?!.*\bON\s+COMMIT\s+DROP\b))"
    rf"|^\s*(?:SELECT|WITH)\b.*\b(?P<into>INTO\s+{_TEMPORARY})"
    r"""|\bpg_(?:try_)?advisory_(?P<lock>(?:un)?lock)(?:_shared|_all)?"?\s*\("""
    r"""|\bset_config"?\s*\([^()]*,\s*(?P<config>false)\s*\)""",
    re.IGNORECASE | re.DOTALL,
)


def _feature(sql: str) -> str | None:
    plain = _ASIDE.sub(lambda aside: aside["name"] or " ", sql)
    for statement in plain.split(";"):
        if found := _FEATURES.search(statement):
            match found.lastgroup:
                case "cursor":
                    return "DECLARE … WITH HOLD"
                case "table" | "into":
                    return "temporary table"
                case "lock":
                    return "session advisory lock"
                case "config":
                    return "set_config(…, false)"
                case _:
                    return found["keyword"].upper()
    return None


_kept_may_change = functools.lru_cache(maxsize=_KEPT_VERDICTS)(_may_change)
_kept_feature = functools.lru_cache(maxsize=_KEPT_VERDICTS)(_feature)
