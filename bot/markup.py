"""A reply as telegram takes it: HTML, in messages that are not too long. Pure."""

from __future__ import annotations

import html
from collections.abc import Iterator

from bot.command import Reply

# Telegram's bound is for the text without its tags, each entity being one character. Counting both, and characters
# beyond U+FFFF as two (as telegram counts elsewhere), we are on the safe side whichever way a server counts.
LONGEST = 4096
MOST_MESSAGES = 10  # so that one answer does not use up what telegram lets a chat get in a minute
EMPTY = "(nothing)"


def messages(reply: Reply) -> list[str]:
    """One text or more for a reply, each valid HTML by itself, none blank, none longer than LONGEST."""
    before, after = ("<pre>", "</pre>") if reply.monospace else ("", "")
    text = reply.text.encode("utf-8", errors="replace").decode()  # a lone surrogate cannot be sent
    pieces = [piece for piece in _pieces(text, LONGEST - len(before + after)) if piece.strip()]
    left_out = sum(map(len, pieces[MOST_MESSAGES:]))
    texts = [f"{before}{_escaped(piece)}{after}" for piece in pieces[:MOST_MESSAGES]]
    if left_out:
        texts.append(f"… and {left_out} more characters, which are not shown")
    return texts or [EMPTY]


def _pieces(text: str, room: int) -> Iterator[str]:
    """The text in pieces of which the escaped form fits, cut at line breaks where there are any."""
    start, size, cut = 0, 0, 0
    position = 0
    while position < len(text):
        if text[position] == "\n" and position > start:
            cut = position
        size += _size(text[position])
        if size <= room:
            position += 1
        else:
            yield text[start : cut or position]
            start = position = cut + 1 if cut else position  # the line break is left out
            size = cut = 0
    yield text[start:]


def _size(character: str) -> int:
    return len(_escaped(character)) + (ord(character) > 0xFFFF)


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)
