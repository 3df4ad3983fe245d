"""Requests whose connections break: to a gateway's application itself, in uvicorn's place, or on real sockets."""

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any
from urllib.parse import unquote

from starlette.types import Message

from tests.running_gateway import DEADLINE, RunningGateway

logger = logging.getLogger("uvicorn.error")


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the bytes of a request's body come, and how many of them."""

    borders: tuple[float, ...] = ()
    """Where it is cut into pieces; 0 is its beginning, 1 its end."""
    pauses: tuple[int, ...] = (0,)
    """Turns of the event loop before each piece and before the cut, in a circle."""
    cut: float | None = None
    """Where the connection breaks: below 0 in the head, at 1 behind the last byte: then no answer is read."""
    stands: bool = False
    """It does not break there, but nothing more comes."""


PLAIN = Delivery()
"""All at once, and to the end."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as it can be sent again."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    chunked: bool = False
    query: str = ""

    @property
    def framed(self) -> tuple[tuple[str, str], ...]:
        """All its headers."""
        if self.chunked:
            return (*self.headers, ("transfer-encoding", "chunked"))
        if self.body or self.method not in ("HEAD", "DELETE"):
            return (*self.headers, ("content-length", str(len(self.body))))
        return self.headers

    def pieces(self, delivery: Delivery) -> Iterator[bytes]:
        """Of the body, up to where it is cut."""
        size = len(self.body)
        end = size if delivery.cut is None else int(max(0.0, min(delivery.cut, 1.0)) * size)
        borders = sorted({0, end, *(min(int(each * size), end) for each in delivery.borders)})
        for begin, until in pairwise(borders):
            yield self.body[begin:until]

    def is_cut(self, delivery: Delivery) -> bool:
        """Whether some of it never comes; of no body, nothing can be lacking but its end."""
        if delivery.cut is None or delivery.cut >= 1:
            return False
        return delivery.cut < 0 or self.chunked or bool(self.body)


@dataclass(frozen=True, slots=True)
class Told:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def offset(self) -> int | None:
        value = self.headers.get("upload-offset")
        return None if value is None else int(value)

    @property
    def complete(self) -> bool:
        return self.headers.get("upload-complete") == "?1"

    @property
    def code(self) -> str:
        """Of a problem; empty for what is none, and for an answer to HEAD, which has no body."""
        if self.headers.get("content-type") != "application/problem+json" or not self.body:
            return ""
        code = json.loads(self.body)["code"]
        assert isinstance(code, str)
        return code


Answering = Callable[[Mapping[str, str]], None]
"""Called with an answer's headers as it is given, before anything else can happen; over sockets never."""


def unseen(headers: Mapping[str, str]) -> None:
    """An `Answering` for who does not look."""


class Network(ABC):
    """The way to one gateway."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.gateway = gateway

    @abstractmethod
    async def ask(
        self, asked: Asked, delivery: Delivery, released: asyncio.Event, answering: Answering
    ) -> Told | None:
        """Sends a request that way. None: its connection broke before its answer was read.

        `released` is set when connections that stand still are to break.
        """

    @abstractmethod
    async def over(self) -> None:
        """Returns when the gateway has done with all that was asked."""


class Direct(Network):
    """To the application itself, without sockets: some thousand requests a second."""

    def __init__(self, gateway: RunningGateway) -> None:
        super().__init__(gateway)
        self._app: Any = gateway.server.config.app
        self._running: set[asyncio.Task[None]] = set()

    async def ask(
        self, asked: Asked, delivery: Delivery, released: asyncio.Event, answering: Answering
    ) -> Told | None:
        turns = cycle(delivery.pauses)
        if delivery.cut is not None and delivery.cut < 0:
            await _pause(next(turns))
            return None
        line = Line(answering)
        running = asyncio.create_task(self._run(asked, line))
        self._running.add(running)
        for piece in asked.pieces(delivery):
            await _pause(next(turns))
            line.deliver(piece)
        if not asked.is_cut(delivery):
            line.finish()
        if delivery.cut is None or delivery.stands:
            await _either(line.answered, released if delivery.stands else None)
        else:
            await _pause(next(turns))
        line.break_off()
        return line.told if delivery.cut is None or delivery.stands else None

    async def over(self) -> None:
        while self._running:
            _, self._running = await asyncio.wait(self._running)

    async def _run(self, asked: Asked, line: "Line") -> None:
        try:
            await self._app(_scope(asked, line.is_ready), line.receive, line.send)
        except Exception:
            logger.exception("Exception in ASGI application")


class Line:
    """What our server keeps of one request: its `receive` and `send`, to the letter."""

    def __init__(self, answering: Answering) -> None:
        self.told: Told | None = None
        self.answered = asyncio.Event()
        self._answering = answering
        self._arrived = asyncio.Event()
        self._body = b""
        self._more = True
        self._broken = False
        self._status = 0
        self._headers: dict[str, str] = {}
        self._sent = b""

    @property
    def is_ready(self) -> Callable[[], bool]:
        return self._arrived.is_set

    def deliver(self, data: bytes) -> None:
        if self.told is None:
            self._body += data
            self._arrived.set()

    def finish(self) -> None:
        if self.told is None:
            self._more = False
            self._arrived.set()

    def break_off(self) -> None:
        if self.told is None:
            self._broken = True
            self._arrived.set()

    async def receive(self) -> Message:
        if not self._broken and self.told is None:
            await self._arrived.wait()
            self._arrived.clear()
        if self._broken or self.told is not None:
            # Also where there is some of the body that nobody has asked for yet.
            return {"type": "http.disconnect"}
        body, self._body = self._body, b""
        return {"type": "http.request", "body": body, "more_body": self._more}

    async def send(self, message: Message) -> None:
        if self._broken:
            return
        assert self.told is None
        if message["type"] == "http.response.start":
            assert not self._status
            self._status = message["status"]
            self._headers = {
                name.decode().lower(): value.decode() for name, value in message["headers"]
            }
            self._answering(self._headers)
            return
        self._sent += message.get("body", b"")
        if not message.get("more_body", False):
            self.told = Told(self._status, self._headers, self._sent)
            self._arrived.set()
            self.answered.set()


class Sockets(Network):
    """Each request on a connection of its own, over uvicorn."""

    async def ask(
        self, asked: Asked, delivery: Delivery, released: asyncio.Event, answering: Answering
    ) -> Told | None:
        turns = cycle(delivery.pauses)
        host, port = self.gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = _head(asked, host)
        reading = asyncio.create_task(_answer(reader, asked))
        try:
            if delivery.cut is not None and delivery.cut < 0:
                writer.write(head[: len(head) // 2])
                await _pause(next(turns))
                return None
            writer.write(head)
            for piece in asked.pieces(delivery):
                await _pause(next(turns))
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if asked.chunked else piece)
            if asked.chunked and not asked.is_cut(delivery):
                writer.write(b"0\r\n\r\n")
            if delivery.stands:
                releasing = asyncio.create_task(released.wait())
                await asyncio.wait({reading, releasing}, return_when=asyncio.FIRST_COMPLETED)
                releasing.cancel()
                return reading.result() if reading.done() else None
            if delivery.cut is None:
                return await reading
            await _pause(next(turns))
            return None
        finally:
            reading.cancel()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def over(self) -> None:
        state = self.gateway.server.server_state
        async with asyncio.timeout(DEADLINE):
            while state.connections or state.tasks:
                await asyncio.sleep(0.01)


async def _pause(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def _either(one: asyncio.Event, other: asyncio.Event | None) -> None:
    """Until one of them is set."""
    if other is None:
        await one.wait()
        return
    waiting = [asyncio.create_task(each.wait()) for each in (one, other)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def _scope(asked: Asked, is_ready: Callable[[], bool]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": asked.method,
        "root_path": "",
        "path": unquote(asked.path),
        "raw_path": asked.path.encode(),
        "query_string": asked.query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in asked.framed],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {"ready": is_ready},
    }


def _head(asked: Asked, host: str) -> bytes:
    target = f"{asked.path}?{asked.query}" if asked.query else asked.path
    fields = [("Host", host), *asked.framed]
    lines = [f"{asked.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _answer(reader: asyncio.StreamReader, asked: Asked) -> Told:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    pairs = (line.partition(": ") for line in lines[1:])
    headers = {name.lower(): value for name, _, value in pairs if name != "date"}
    size = 0 if asked.method == "HEAD" else int(headers.get("content-length", 0))
    return Told(int(lines[0].split(" ")[1]), headers, await reader.readexactly(size))
