from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.command import Reply
from bot.markup import EMPTY, LONGEST, MOST_MESSAGES, messages
from tests.bot_api import checked, plain

TEXTS = st.lists(
    st.tuples(st.text("ab<>&é😀 \n", min_size=1, max_size=12), st.integers(1, 900)).map(lambda pair: pair[0] * pair[1]),
    max_size=4,
).map("".join)


@given(TEXTS, st.booleans())
def test_every_message_is_valid(text: str, monospace: bool) -> None:
    """Whatever the text, each message is HTML that is closed and complete, not blank, and not too long."""
    found = messages(Reply(text, monospace=monospace))
    for message in found:
        assert checked({"text": message, "parse_mode": "HTML"}) == message
        assert len(message.encode("utf-16-le")) // 2 <= LONGEST
    assert found


@given(TEXTS, st.booleans())
def test_nothing_is_lost(text: str, monospace: bool) -> None:
    """All messages together are the text, but for white space where it was cut."""
    found = messages(Reply(text, monospace=monospace))
    if len(found) <= MOST_MESSAGES and found != [EMPTY]:
        assert "".join("".join(map(plain, found)).split()) == "".join(text.split())


def test_a_table_is_cut_between_lines() -> None:
    """A long table becomes several, each in a block of its own, and no line is torn."""
    lines = [f"<row {number:5}> & more" for number in range(500)]
    found = messages(Reply("\n".join(lines), monospace=True))
    assert len(found) > 1
    assert all(message.startswith("<pre>") and message.endswith("</pre>") for message in found)
    assert [line for message in found for line in plain(message).split("\n")] == lines


@pytest.mark.parametrize("character", ["&", "<", ">", "x", "😀"])
@pytest.mark.parametrize("length", [4094, 4095, 4096, 4097, 8190])
def test_a_line_without_breaks(character: str, length: int) -> None:
    """A single long line is cut between characters, never inside an entity."""
    found = messages(Reply(character * length))
    assert "".join(html.unescape(message) for message in found) == character * length
    assert not any(re.search(r"&(?!amp;|lt;|gt;)", message) for message in found)


def test_exactly_full() -> None:
    """A text of 4,096 plain characters is one message."""
    assert messages(Reply("x" * 4096)) == ["x" * 4096]
    assert len(messages(Reply("x" * 4097))) == 2
    assert messages(Reply("x" * 4096 + "\n" + "y")) == ["x" * 4096, "y"]


@pytest.mark.parametrize("text", ["", " ", "\n" * 10_000])
def test_blank_reply(text: str) -> None:
    """Telegram takes no blank message, so a blank reply says so."""
    assert messages(Reply(text, monospace=True)) == [EMPTY]


def test_endless_reply_is_cut() -> None:
    """A reply of more than ten messages is cut, and says by how much."""
    found = messages(Reply("x" * 4096 * 12))
    assert len(found) == MOST_MESSAGES + 1
    assert found[-1] == f"… and {2 * 4096} more characters, which are not shown"


def test_lone_surrogate() -> None:
    """What is no text, as JSON can hold it, becomes a question mark."""
    assert messages(Reply("a\ud800b")) == ["a?b"]
