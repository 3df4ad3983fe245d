"""`python -m benchmarks.memory_gateway`: the gateway over the in-process twin, for events that are appended
at the log.

The whole gateway but for LiveKit, in a process of its own, which is started, told what to do and ended as
`benchmarks/worker.py` is. Whoever publishes connects to a second port and writes texts, a line each: each
becomes a chunk of a text stream that is open, of the topic whose turn its number says.
"""

import asyncio
import contextlib
import json
import socket
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass

import uvloop
from jwt.warnings import InsecureKeyLengthWarning

from benchmarks import machine
from benchmarks.texts import TEXT_BYTES, stamped
from benchmarks.worker import DEAF, Command, answer, input_lines
from gateway.__main__ import _seldom_look_for_garbage, make_hub, make_server
from gateway.event_log import EventLog
from gateway.events import StreamChunk, StreamOpened
from gateway.rooms.memory import MemoryRooms
from gateway.server import listen
from gateway.settings import Settings
from tools.livekit_server import API_KEY, API_SECRET

ROOM = "bench"
AUTHOR = "author"

LOOPBACK = "127.0.0.1"

UNBOUNDED = 1 << 30
"""Bytes, where the number of events is what bounds the log."""

FILLED_AT_ONCE = 1_000
"""Events that are appended before anything else has a turn."""


def topic(number: int) -> str:
    return f"topic-{number}"


@dataclass(frozen=True, slots=True)
class Setup:
    """The first line; the answer to it are two ports, for HTTP and for lines."""

    topics: int = 1
    log_events: int | None = None
    """The gateway's own bound if None."""
    max_event_streams: int = 20_000


class Author:
    """Appends to the room's log, as what is received from LiveKit is."""

    def __init__(self, log: EventLog, topics: int) -> None:
        self._log = log
        self._topics = [topic(number) for number in range(topics)]
        self._chunks = [0] * topics
        for name in self._topics:
            log.append(StreamOpened(f"stream-of-{name}", name, AUTHOR, timestamp=0))

    def append(self, text: str) -> None:
        turn = int(text[:8]) % len(self._topics)
        name = self._topics[turn]
        index = self._chunks[turn]
        self._chunks[turn] += 1
        self._log.append(StreamChunk(f"stream-of-{name}", name, AUTHOR, index, text))

    async def fill(self, count: int) -> None:
        """The log has so many more events."""
        for number in range(count):
            self.append(stamped(number))
            if not number % FILLED_AT_ONCE:
                await asyncio.sleep(0)

    async def head(self) -> tuple[str, int]:
        """The newest event's epoch and sequence number."""
        return self._log.head


class Lines(asyncio.Protocol):
    """What somebody publishes."""

    def __init__(self, author: Author) -> None:
        self._author = author
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if len(line) == TEXT_BYTES:
                self._author.append(line.decode())


@contextlib.asynccontextmanager
async def serving(setup: Setup, listening: socket.socket) -> AsyncIterator[Author]:
    """The gateway, with one room that is read by its observer."""
    own = Settings("ws://unused", API_KEY, API_SECRET)
    settings = Settings(
        "ws://unused",
        API_KEY,
        API_SECRET,
        topics=tuple(topic(number) for number in range(setup.topics)),
        max_event_streams=setup.max_event_streams,
        max_event_streams_of_identity=setup.max_event_streams,
        log_events=setup.log_events or own.log_events,
        log_bytes=UNBOUNDED if setup.log_events else own.log_bytes,
    )
    rooms = MemoryRooms()
    await rooms.join(ROOM, AUTHOR, "", (), DEAF)
    hub = make_hub(rooms, settings)
    server = make_server(hub, settings)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        async with hub.observer(ROOM) as observer:
            yield Author(observer.log, setup.topics)
    finally:
        server.should_exit = True
        await running


async def work() -> None:
    orders = await input_lines()
    setup = Setup(**json.loads(await orders.readline()))
    listening = listen(LOOPBACK, 0)
    async with serving(setup, listening) as author:
        lines = await asyncio.get_running_loop().create_server(lambda: Lines(author), LOOPBACK, 0)
        answer([listening.getsockname()[1], lines.sockets[0].getsockname()[1]])
        commands: dict[str, Command] = {"fill": author.fill, "head": author.head}
        while line := await orders.readline():
            name, arguments = json.loads(line)
            answer(await commands[name](*arguments))
        lines.close()


if __name__ == "__main__":
    # LiveKit's development secret is six bytes long.
    warnings.simplefilter("ignore", InsecureKeyLengthWarning)
    machine.allow_many_files()
    _seldom_look_for_garbage()
    uvloop.run(work())
