"""Connections that break: a TCP proxy which cuts them where a test says, or where chance does."""

import asyncio
import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto

from tests.running_gateway import DEADLINE

PIECE_BYTES = 64 * 1024

MOST_OF_REQUESTS = 20_000
"""Bytes until chance cuts: about three requests of 7 KB."""

MOST_OF_ANSWERS = 2_000
"""Likewise; five answers or so."""


class Way(Enum):
    REQUESTS = auto()
    ANSWERS = auto()


class How(Enum):
    RESET = auto()
    CLOSE = auto()
    UNNOTICED = auto()
    """By the server: a reset reaches the client alone."""
    STALL = auto()
    """Nobody is told: what comes after is just not passed on."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The end of one connection: after so many bytes, instead of the next one."""

    way: Way
    after: int
    how: How
    once: bytes = b""
    """Bytes are counted from the piece of the requests on that has this in it."""


def random_cuts(seed: int, count: int) -> list[Cut]:
    """The same ones for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - to be the same again is what it is for
    most = {Way.REQUESTS: MOST_OF_REQUESTS, Way.ANSWERS: MOST_OF_ANSWERS}
    hows = (How.RESET, How.CLOSE, How.UNNOTICED)
    ways = [chance.choice(tuple(Way)) for _ in range(count)]
    return [Cut(way, chance.randrange(most[way]), chance.choice(hows)) for way in ways]


class CuttingProxy:
    """Passes everything on, but for what it is told to cut."""

    def __init__(self, url: str, upstream: str) -> None:
        self.url = url
        self._host, self._port = upstream.removeprefix("http://").split(":")
        self._cuts: deque[Cut] = deque()
        self._carrying: set[asyncio.Task[None]] = set()

    def cut(self, cuts: Iterable[Cut]) -> None:
        """One for each connection that something comes over from now on; those after them are let be."""
        self._cuts.extend(cuts)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(_End(reader, writer)))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def aclose(self) -> None:
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _carry(self, client: "_End") -> None:
        async with AsyncExitStack() as holding:
            holding.push_async_callback(client.aclose)
            server = _End(*await asyncio.open_connection(self._host, int(self._port)))
            holding.push_async_callback(server.aclose)
            with suppress(ConnectionError):
                await _Connection(client, server, self._cuts).carry()


class _Connection:
    def __init__(self, client: "_End", server: "_End", cuts: deque[Cut]) -> None:
        self._client = client
        self._server = server
        self._cuts = cuts
        self._cut: Cut | None = None
        self._counting = False
        self._left = 0

    async def carry(self) -> None:
        """Until one side ends it, or the cut is made."""
        passing = [
            asyncio.create_task(self._pass_on(Way.REQUESTS, self._client, self._server)),
            asyncio.create_task(self._pass_on(Way.ANSWERS, self._server, self._client)),
        ]
        try:
            done, _ = await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in passing:
                each.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
        for each in done:
            if (cut := each.result()) is not None:
                print(cut)
                await self._make(cut)

    async def _pass_on(self, way: Way, source: "_End", target: "_End") -> Cut | None:
        while data := await source.read():
            most = self._most(way, data)
            await target.write(data[:most])
            if most < len(data):
                return self._cut
        return None

    def _most(self, way: Way, data: bytes) -> int:
        """How much of it is passed on."""
        if self._cut is None:
            if not self._cuts:
                return len(data)
            self._cut = self._cuts.popleft()
            self._left = self._cut.after
        if way is Way.REQUESTS and self._cut.once in data:
            self._counting = True
        if way is not self._cut.way or not self._counting:
            return len(data)
        most = min(self._left, len(data))
        self._left -= most
        return most

    async def _make(self, cut: Cut) -> None:
        match cut.how:
            case How.RESET:
                self._client.reset()
                self._server.reset()
            case How.CLOSE:
                await asyncio.gather(self._client.finish(), self._server.finish())
            case How.UNNOTICED:
                self._client.reset()
                await self._server.until_closed()
            case How.STALL:
                await self._client.until_closed()


class _End:
    """One side of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(PIECE_BYTES)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def reset(self) -> None:
        # Closed with nothing to linger for, a socket is reset.
        self._writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self._writer.transport.abort()

    async def finish(self) -> None:
        """An orderly end: were bytes left unread, the other side would see a reset."""
        with suppress(ConnectionError):
            self._writer.write_eof()
        await self.until_closed()

    async def until_closed(self) -> None:
        """By the other side; what still comes from there is dropped."""
        with suppress(ConnectionError):
            while await self.read():
                pass

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def cutting_proxy(upstream: str) -> AsyncIterator[CuttingProxy]:
    """In front of that address, on a free port of the loopback interface."""
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    proxy = CuttingProxy(url, upstream)
    server = await asyncio.start_server(proxy.accept, sock=listening)
    try:
        yield proxy
    finally:
        server.close()
        async with asyncio.timeout(DEADLINE):
            await proxy.aclose()
