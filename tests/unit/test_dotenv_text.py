"""The text of a `.env`, edited: the wanted values, and every other byte as it was."""

from __future__ import annotations

import io
import re

import pytest
from dotenv import dotenv_values
from hypothesis import example, given
from hypothesis import strategies as st

from config import SettingsError
from poolctl.dotenv_text import commented_out, values_of, with_value

NAMES = ("WORKERS", "COMPOSE_PROFILES", "DB_HOST", "WORKER_DB_HOST", "OTHER")
WANTED = st.sampled_from(["10", "pgbouncer", "monitoring, pgbouncer", ""])


def parsed(text: str) -> dict[str, str | None]:
    """By python-dotenv itself, names without a value too."""
    return dict(dotenv_values(stream=io.StringIO(text), interpolate=False))


def lines(text: str) -> list[str]:
    return re.findall(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+", text)


blanks = st.sampled_from(["", " ", "  ", "\t"])
names = st.sampled_from(NAMES)
plain = st.text(st.sampled_from("ab9 #'\"$\\=é,"), max_size=8)
bare = plain.map(str.strip).filter(lambda text: not text.startswith(("'", '"')))
quoted = st.text(st.sampled_from("ab9 #$=é,\n"), max_size=8)
comments = st.one_of(st.just(""), plain.map(lambda text: f" # {text}"), st.just("  #"))


@st.composite
def assignments(draw: st.DrawFn) -> str:
    export = draw(st.sampled_from(["", "export ", "export\t"]))
    mark = draw(st.sampled_from(["", "'", '"']))
    value = draw(quoted) if mark else draw(bare)
    return f"{draw(blanks)}{export}{draw(names)}{draw(blanks)}={draw(blanks)}{mark}{value}{mark}{draw(comments)}"


comment_lines = st.one_of(
    plain.map(lambda text: f"# {text}"),
    st.builds(lambda mark, name, value: f"{mark}{name}={value}", st.sampled_from(["#", "# ", "  #"]), names, bare),
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    parts = draw(st.lists(st.one_of(assignments(), comment_lines, blanks), max_size=8))
    ends = draw(st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=len(parts), max_size=len(parts)))
    text = "".join(part + end for part, end in zip(parts, ends, strict=True))
    if draw(st.booleans()):
        text = text.rstrip("\r\n")
    return draw(st.sampled_from(["", "\ufeff"])) + text


@given(texts(), names, WANTED)
@example("\n \nexport WORKERS = '2'#two\r\nA=1", "WORKERS", "10")
@example("WORKERS=  # two", "WORKERS", "10")
def test_only_the_value_changes(text: str, name: str, value: str) -> None:
    """The name has the value, all other names have theirs, and every other line is the same to the byte."""
    edited = with_value(text, name, value)
    assert parsed(edited) == {**parsed(text), name: value}
    before, after = lines(text), lines(edited)
    changed = [index for index, (old, new) in enumerate(zip(before, after, strict=False)) if old != new]
    if name in parsed(text):
        # Its own lines: several, where its value was of several lines.
        assert len(after) <= len(before)
        tail = len(after) - changed[0] - 1 if changed else len(after)
        assert after[len(after) - tail :] == before[len(before) - tail :]
    else:
        assert len(after) - len(before) + len(changed) <= 2  # in a comment; or at the end, after a line without end


@given(texts(), names, WANTED)
def test_an_edit_is_made_once(text: str, name: str, value: str) -> None:
    """The same edit again changes nothing."""
    edited = with_value(text, name, value)
    assert with_value(edited, name, value) == edited


@given(texts(), names, WANTED, WANTED)
def test_a_line_that_is_there_comes_back(text: str, name: str, value: str, other: str) -> None:
    """What stands around a value does not wear off."""
    edited = with_value(text, name, value)
    assert parsed(with_value(with_value(edited, name, other), name, value)) == parsed(edited)


@given(texts(), names)
def test_commented_out(text: str, name: str) -> None:
    """The name is not set any more, the others are, and nothing but `#` and the reason came in."""
    edited = commented_out(text, name, "why")
    rest = parsed(text)
    rest.pop(name, None)
    assert parsed(edited) == rest
    if name not in parsed(text):
        assert edited == text
    assert re.sub("#|  # why", "", edited) == re.sub("#", "", text)


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("", "WORKERS=10\n"),
        ("A=1\n", "A=1\nWORKERS=10\n"),
        ("A=1\r\n", "A=1\r\nWORKERS=10\r\n"),
        ("A=1", "A=1\nWORKERS=10"),
        ("A=1\r\nB=2", "A=1\r\nB=2\r\nWORKERS=10"),
        ("\ufeffWORKERS=2\n", "\ufeffWORKERS=10\n"),
        ("WORKERS=2", "WORKERS=10"),
        ("\n\n  export WORKERS = '2'  # two\r\n\r\nA=1\n", "\n\n  export WORKERS = '10'  # two\r\n\r\nA=1\n"),
        ('WORKERS="2"#two\n', 'WORKERS="10"#two\n'),
        ("WORKERS= # two\n", "WORKERS=10 # two\n"),
        ("WORKERS=#two\n", "WORKERS=10\n"),
        ("WORKERS=2\nA=1\nWORKERS=3\nB=1\n", "WORKERS=2\nA=1\nWORKERS=10\nB=1\n"),
        ("a\n#WORKERS=\nb", "a\nWORKERS=10\nb"),
        ("# WORKERS=2\n", "WORKERS=10\n"),
        ("#WORKERS=2 # a few\n", "WORKERS=10 # a few\n"),
        ("#WORKERS=2\n#WORKERS=3\n", "#WORKERS=2\n#WORKERS=3\nWORKERS=10\n"),
        ("#WORKERS=2\nWORKERS=3\n", "#WORKERS=2\nWORKERS=10\n"),
        ("# WORKERS=2 is the default\n", "# WORKERS=2 is the default\nWORKERS=10\n"),
        ("# see WORKERS=2\n", "# see WORKERS=2\nWORKERS=10\n"),
        ("#WORKERS_MAX=2\n#NOWORKERS=1\n", "#WORKERS_MAX=2\n#NOWORKERS=1\nWORKERS=10\n"),
        ("A='\n#WORKERS=2\n'\n", "A='\n#WORKERS=2\n'\nWORKERS=10\n"),
    ],
)
def test_where_a_value_goes(text: str, edited: str) -> None:
    """Into the last line that sets it, else into the only comment that would, else to the end."""
    assert with_value(text, "WORKERS", "10") == edited


def test_nothing_before_a_comment_is_quoted() -> None:
    """compose takes `NAME= # comment` for the value `# comment`; python-dotenv does not."""
    assert with_value("A=pgbouncer # why\n", "A", "") == 'A="" # why\n'
    assert with_value("A='pgbouncer' # why\n", "A", "") == "A='' # why\n"
    assert with_value("A=pgbouncer\n", "A", "") == "A=\n"


@pytest.mark.parametrize("value", ["a$b", "a b#c", "'", "a\nb", "é", "a\\"])
def test_only_plain_values(value: str) -> None:
    """What compose and python-dotenv would read differently is not written."""
    with pytest.raises(ValueError, match="quotes"):
        with_value("", "A", value)


def test_commented_out_everywhere() -> None:
    """Each line of the name, or an earlier one would count; a value of several lines too."""
    text = "DB_HOST=a\n\n export DB_HOST='b\nc' # x\r\nA=1\nDB_HOST=postgres"
    assert commented_out(text, "DB_HOST", "why") == (
        "#DB_HOST=a  # why\n\n #export DB_HOST='b\n#c' # x  # why\r\nA=1\n#DB_HOST=postgres  # why"
    )


def test_the_last_line_counts() -> None:
    """As for python-dotenv and compose."""
    assert values_of("\ufeffA=1\nB=\nA='2'\n#C=3\n") == {"A": "2", "B": ""}


def test_a_bad_line_is_told_by_its_number() -> None:
    """The line itself may hold a secret."""
    with pytest.raises(SettingsError) as error:
        values_of("A=1\nhunter2\nB='x\n")
    assert "hunter2" not in str(error.value)
    assert str(error.value).splitlines() == [
        ".env line 2 is not NAME=value: mend or remove that line",
        ".env line 3 is not NAME=value: mend or remove that line",
    ]
