"""How what comes of a turn is answered: as an event stream while it goes on, or as one object at its end."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from starlette.requests import Request
from starlette.types import Send

from gateway.delivery import Outlet
from gateway.events import AgentTurnCompleted, AgentTurnStarted, GatewayClosing, members
from gateway.web import sse
from gateway.web.answer import Answer
from gateway.web.event_stream import HEADERS
from gateway.web.forms import EVENT_STREAM

MOST_UNSENT = 1024 * 1024
"""Bytes of an answer that its client has not taken; beyond them it is dropped, and the turn goes on."""


class TurnBody(Protocol):
    has_begun: bool
    """Whether a problem cannot be answered any more."""

    async def begin(self, started: AgentTurnStarted) -> None:
        """The agent has taken the text."""

    def write(self, data: bytes) -> None:
        """Events of its answer. Never waits."""

    async def end(self, last: AgentTurnCompleted | GatewayClosing) -> None: ...


class ObjectAnswer:
    """All of it at its end."""

    has_begun = False

    def __init__(self, request: Request, send: Send) -> None:
        self._request = request
        self._send = send

    async def begin(self, started: AgentTurnStarted) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass

    async def end(self, last: AgentTurnCompleted | GatewayClosing) -> None:
        told = members(last)
        del told["type"]
        answer = Answer(200, f"{json.dumps(told, ensure_ascii=False)}\n".encode())
        await answer(self._request.scope, self._request.receive, self._send)


class StreamedAnswer:
    """Server-Sent Events."""

    def __init__(self, request: Request, send: Send, write_timeout: float) -> None:
        """`write_timeout`: seconds after which a client is dropped that is waited for and takes nothing."""
        self.has_begun = False
        self._scope = request.scope
        self._send = send
        self._write_timeout = write_timeout
        self._outlet: Outlet | None = None

    async def begin(self, started: AgentTurnStarted) -> None:
        self.has_begun = True
        self._outlet = outlet = self._scope["state"]["open_outlet"]()
        headers = {"Content-Type": f"{EVENT_STREAM}; charset=utf-8"} | HEADERS
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        with self._dropped_if_it_stalls(outlet):  # it may have left an earlier answer unread
            await self._send({"type": "http.response.start", "status": 200, "headers": raw})
        outlet.follow(self)
        self.write(sse.encode(started))

    def write(self, data: bytes) -> None:
        if (outlet := self._outlet) is None:
            return  # the client has gone
        try:
            outlet.write(outlet.frame(data))
        except RuntimeError:  # uvloop's word for a socket that is closed already
            self._outlet = None
            return
        if outlet.unsent() > MOST_UNSENT:
            outlet.abort()
            self._outlet = None

    async def end(self, last: AgentTurnCompleted | GatewayClosing) -> None:
        self.write(sse.encode(last))
        with suppress(RuntimeError), self._dropped_if_it_stalls(self._outlet):  # likewise
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    @contextmanager
    def _dropped_if_it_stalls(self, outlet: Outlet | None) -> Iterator[None]:
        """ASGI waits for a client to take what it was written, however long it does not."""
        if outlet is None:
            yield
            return
        stall = asyncio.get_running_loop().call_later(self._write_timeout, outlet.abort)
        try:
            yield
        finally:
            stall.cancel()

    # What the outlet tells

    def blocked(self) -> None:
        pass

    def writable(self) -> None:
        pass

    def lost(self) -> None:
        self._outlet = None
