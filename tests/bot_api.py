"""A Bot API server on loopback, as far as the bot uses it: real HTTP, strict on what it is sent, faulty on demand."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from aiohttp import web

BOT_ID = 4242
USERNAME = "fleet_test_bot"
TOKEN = f"{BOT_ID}:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"
OPERATOR = 1001
STRANGER = 6006
_ENTITY = re.compile(r"&(?!(lt|gt|amp|quot|#\d+|#x[0-9a-fA-F]+);)")


class Bad(Exception):
    """What telegram answers with status 400."""


@dataclass(frozen=True)
class Call:
    """One request that arrived: `at_s` by the monotonic clock; `status` is that of the answer, 0 for none."""

    method: str
    fields: dict[str, str]
    at_s: float
    status: int


@dataclass
class Fault:
    """What happens to the next `times` calls of a method instead of an answer, or before it."""

    times: int
    status: int = 0  # 0: the connection is cut
    retry_after_s: int = 0
    delay_s: float = 0.0  # an ordinary answer, late
    after: bool = False  # the call takes effect, and only its answer is lost
    page: bool = False  # an HTML page that shows the request's URL, as a proxy might


@dataclass(frozen=True)
class Refusal:
    """What a chat answers to all that is sent to it."""

    status: int
    description: str
    parameters: dict[str, int]


@dataclass
class Sent:
    """A message that the bot sent: its texts, the latest last."""

    chat: int
    id: int
    texts: list[str]

    @property
    def text(self) -> str:
        """As people see it, without tags."""
        return plain(self.texts[-1])


@dataclass
class FakeBotApi:
    """The server; `url` is for BOT_API_URL."""

    url: str = ""
    updates: list[dict[str, Any]] = field(default_factory=list)  # not confirmed yet
    calls: list[Call] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    commands: list[dict[str, str]] = field(default_factory=list)
    again: int = 0  # so many further polls get what was delivered already, confirmed or not
    refusals: dict[str, Refusal] = field(default_factory=dict)  # by chat
    violations: list[str] = field(default_factory=list)  # calls for a chat before its flood was over
    _faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    _delivered: list[dict[str, Any]] = field(default_factory=list)
    _quiet_until: dict[str, float] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _poll: asyncio.Event | None = None  # of the poll that waits; set when another takes its place
    _next: int = 700_000_000

    def write(self, text: str | None, *, sender: int = OPERATOR, chat: int | None = None, kind: str = "private") -> int:
        """Somebody writes to the bot; the update's number. Without a chat: to the bot alone."""
        self._next += 1
        message: dict[str, Any] = {
            "message_id": self._next,
            "date": 1_700_000_000,
            "chat": {"id": sender if chat is None else chat, "type": kind},
            "from": {"id": sender, "is_bot": False, "first_name": "Ada"},
        }
        if text is not None:
            message["text"] = text
        self.updates.append({"update_id": self._next, "message": message})
        self._wake()
        return self._next

    def write_unreadable(self) -> int:
        """An update that is not as the documentation says; its number."""
        self._next += 1
        self.updates.append({"update_id": self._next, "message": {"message_id": "none", "chat": 5}})
        self._wake()
        return self._next

    def fail(self, method: str, **fault: Any) -> None:
        """Let the next calls of `method` go wrong; the fields are those of Fault, `times=1` unless given."""
        self._faults[method].append(Fault(**{"times": 1, **fault}))

    def refuse(self, chat: int, status: int, description: str, **parameters: int) -> None:
        """Let all that is sent to a chat from now on be answered so."""
        self.refusals[str(chat)] = Refusal(status, description, parameters)

    def mend(self) -> None:
        """Forget the faults that did not happen yet."""
        self._faults.clear()

    def texts(self, chat: int = OPERATOR) -> list[str]:
        """What a chat shows now."""
        return [sent.text for sent in self.sent if sent.chat == chat]

    def called(self, method: str) -> list[Call]:
        """The calls of one method."""
        return [call for call in self.calls if call.method == method]

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One call."""
        token, method = request.match_info["token"], request.match_info["method"]
        fields = {name: str(value) for name, value in (await request.post()).items()}
        at_s = time.monotonic()

        def answered(status: int, body: dict[str, Any]) -> web.Response:
            self.calls.append(Call(method, fields, at_s, status))
            return web.json_response(body, status=status)

        if token != TOKEN:
            return answered(401, {"ok": False, "error_code": 401, "description": "Unauthorized"})
        chat = fields.get("chat_id", "")
        if time.monotonic() < self._quiet_until.get(chat, 0.0):
            self.violations.append(f"{method} in chat {chat}")
        if refusal := self.refusals.get(chat):
            body = {"ok": False, "error_code": refusal.status, "description": refusal.description}
            return answered(refusal.status, body | {"parameters": refusal.parameters})
        fault = self._fault(method)
        if fault is not None and not fault.after and not fault.delay_s:
            return await self._misbehave(request, fault, method, fields, at_s)
        if fault is not None and fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        try:
            result = await getattr(self, f"_{method}")(fields)
        except Bad as error:
            return answered(400, {"ok": False, "error_code": 400, "description": f"Bad Request: {error}"})
        except _Conflict:
            description = "Conflict: terminated by other getUpdates request"
            return answered(409, {"ok": False, "error_code": 409, "description": description})
        if fault is not None and fault.after:
            return await self._misbehave(request, fault, method, fields, at_s)
        return answered(200, {"ok": True, "result": result})

    def _fault(self, method: str) -> Fault | None:
        for fault in self._faults[method]:
            if fault.times > 0:
                fault.times -= 1
                return fault
        return None

    async def _misbehave(
        self, request: web.Request, fault: Fault, method: str, fields: dict[str, str], at_s: float
    ) -> web.StreamResponse:
        self.calls.append(Call(method, fields, at_s, fault.status))
        if fault.page:
            return web.Response(text=f"<html>cannot proxy {request.url}</html>", status=fault.status)
        if fault.status == 307:
            raise web.HTTPTemporaryRedirect(request.url)  # to itself, so the client gives up in the end, and says where
        if fault.status == 0:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        body: dict[str, Any] = {"ok": False, "error_code": fault.status, "description": f"Fault {fault.status}"}
        if fault.retry_after_s:
            body["parameters"] = {"retry_after": fault.retry_after_s}
            if "chat_id" in fields:
                self._quiet_until[fields["chat_id"]] = time.monotonic() + fault.retry_after_s
        return web.json_response(body, status=fault.status)

    # The methods

    async def _getMe(self, fields: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        return {"id": BOT_ID, "is_bot": True, "first_name": "Fleet", "username": USERNAME}

    async def _setMyCommands(self, fields: dict[str, str]) -> bool:  # noqa: N802
        commands: list[dict[str, str]] = json.loads(fields["commands"])
        for command in commands:
            if not re.fullmatch(r"[a-z0-9_]{1,32}", command["command"]) or not 1 <= len(command["description"]) <= 256:
                raise Bad("BOT_COMMAND_INVALID")
        self.commands = commands
        return True

    async def _getUpdates(self, fields: dict[str, str]) -> list[dict[str, Any]]:  # noqa: N802
        if self._poll is not None:
            self._poll.set()
        self._poll = replaced = asyncio.Event()
        offset = int(fields.get("offset", "0"))
        self.updates = [update for update in self.updates if update["update_id"] >= offset]
        try:
            async with asyncio.timeout(float(fields.get("timeout", "0"))):
                while not self.updates and not (self.again and self._delivered):
                    waiting = [asyncio.create_task(each.wait()) for each in (self._news, replaced)]
                    try:
                        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for task in waiting:
                            task.cancel()
                    if replaced.is_set():
                        raise _Conflict
        except TimeoutError:
            return []
        finally:
            if self._poll is replaced:
                self._poll = None
        batch = self.updates[: int(fields.get("limit", "100"))]
        if self.again:
            self.again -= 1
            batch = [*self._delivered, *batch, *batch]
        self._delivered += [update for update in batch if update not in self._delivered]
        return batch

    async def _sendMessage(self, fields: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        sent = Sent(int(fields["chat_id"]), len(self.sent) + 1, [checked(fields)])
        self.sent.append(sent)
        return _message(sent)

    async def _editMessageText(self, fields: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        text = checked(fields)
        for sent in self.sent:
            if (sent.chat, sent.id) == (int(fields["chat_id"]), int(fields["message_id"])):
                if sent.texts[-1] == text:
                    raise Bad("message is not modified: specified new message content is exactly the same")
                sent.texts.append(text)
                return _message(sent)
        raise Bad("message to edit not found")


class _Conflict(Exception):
    pass


def _message(sent: Sent) -> dict[str, Any]:
    chat = {"id": sent.chat, "type": "private"}
    return {"message_id": sent.id, "date": 1_700_000_000, "chat": chat, "text": sent.text}


def checked(fields: dict[str, str]) -> str:
    """The text of a message, if telegram would take it; Bad otherwise."""
    text = fields.get("text", "")
    if fields.get("parse_mode") == "HTML":
        _Tags().check(text)
    shown = plain(text)
    if not shown.strip():
        raise Bad("message text is empty")
    if len(shown.encode("utf-16-le")) // 2 > 4096:
        raise Bad("message is too long")
    return text


def plain(text: str) -> str:
    """HTML as people see it."""
    return html.unescape(re.sub(r"<[^>]*>", "", text))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self._open: list[str] = []

    def check(self, text: str) -> None:
        if _ENTITY.search(text):
            raise Bad("can't parse entities: & is no entity")
        self.feed(text)
        self.close()
        if self._open:
            raise Bad(f"can't parse entities: <{self._open[-1]}> is not closed")
        if re.search(r"[<>]", re.sub(r"</?(pre|b|code)>", "", text)):
            raise Bad("can't parse entities: unsupported tag")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            raise Bad(f"can't parse entities: unexpected </{tag}>")


@contextlib.asynccontextmanager
async def open_bot_api() -> AsyncIterator[FakeBotApi]:
    """A server of one's own on a free port."""
    api = FakeBotApi()
    app = web.Application()
    app.router.add_post("/bot{token}/{method}", api.handle)
    # As telegram does, it notices when a poller goes away.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield api
    finally:
        await runner.cleanup()
