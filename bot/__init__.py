"""An operators' chat bot for the fleet: `python -m bot`; a template for anyone's own."""

from __future__ import annotations

from bot.command import Command, Message, Reply, Request
from bot.commands import commands
from bot.errors import BadArguments
from bot.router import Router
from bot.runner import run_bot
from bot.transport import Transport, choose_transport

__all__ = [
    "BadArguments",
    "Command",
    "Message",
    "Reply",
    "Request",
    "Router",
    "Transport",
    "choose_transport",
    "commands",
    "run_bot",
]
