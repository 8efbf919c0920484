from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import pytest

from bot.errors import TransportRefused
from bot.transport import AIOGRAM, choose_transport
from config import Settings


@pytest.fixture
def terminal() -> Iterator[TextIO]:
    """A real terminal."""
    master, slave = os.openpty()
    with open(slave, "r+b", buffering=0) as raw, io.TextIOWrapper(raw) as stream:
        yield stream
    os.close(master)


@pytest.fixture
def pipe() -> Iterator[TextIO]:
    """The reading end of a pipe."""
    with ExitStack() as stack:
        read_end, write_end = os.pipe()
        stack.enter_context(open(write_end, "wb"))
        yield stack.enter_context(open(read_end))


def settings(**variables: str) -> Settings:
    return Settings.load("bot", variables)


def test_auto_on_a_terminal_is_console(terminal: TextIO) -> None:
    """With standard input and output on a terminal, auto is the console."""
    assert choose_transport(settings(), terminal, terminal).name == "console"


def test_auto_elsewhere_is_log(terminal: TextIO, pipe: TextIO) -> None:
    """auto is headless as soon as input or output is a pipe, or closed."""
    for source, output in [(pipe, terminal), (terminal, pipe), (None, None), (terminal, None)]:
        assert choose_transport(settings(), source, output).name == "log"


def test_transport_as_asked_for(terminal: TextIO, pipe: TextIO) -> None:
    """What BOT_TRANSPORT names is taken, whatever the streams are."""
    assert choose_transport(settings(BOT_TRANSPORT="console"), pipe, pipe).name == "console"
    assert choose_transport(settings(BOT_TRANSPORT="log"), terminal, terminal).name == "log"


def test_token_makes_it_telegram(terminal: TextIO, pipe: TextIO) -> None:
    """With a token, auto is telegram, on a terminal too; BOT_TRANSPORT wins over the token."""
    for stream in (terminal, pipe):
        assert choose_transport(settings(BOT_TOKEN="1234:verysecret"), stream, stream).name == "telegram"
    asked_for = settings(BOT_TOKEN="1234:verysecret", BOT_TRANSPORT="console")
    assert choose_transport(asked_for, pipe, pipe).name == "console"


def test_telegram_without_a_token(pipe: TextIO) -> None:
    """telegram without a token is refused with what to do, exit code 2."""
    with pytest.raises(TransportRefused) as caught:
        choose_transport(settings(BOT_TRANSPORT="telegram"), pipe, pipe)
    assert str(caught.value) == "BOT_TRANSPORT=telegram needs BOT_TOKEN: set it to what @BotFather told you"
    assert caught.value.exit_code == 2


def test_the_package_to_install_is_the_extra() -> None:
    """What people are told to install is what the extra `telegram` says."""
    assert f'telegram = ["{AIOGRAM}"]' in (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_console_without_input_is_refused(pipe: TextIO) -> None:
    """A console without standard input is refused, instead of reading what happens to have its number."""
    with pytest.raises(TransportRefused, match="BOT_TRANSPORT=console needs standard input"):
        choose_transport(settings(BOT_TRANSPORT="console"), None, pipe)
