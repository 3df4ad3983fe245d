"""Both ways for a text out of a room: as Server-Sent Events, and by the SDK alone."""

import asyncio
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from livekit import rtc

from benchmarks.http_client import event, event_blocks, is_event
from benchmarks.senders import TOPIC
from benchmarks.texts import LOOK, latencies

T = TypeVar("T")


class Arrivals(ABC, Generic[T]):
    """Collects what arrives, to be taken round by round."""

    def __init__(self) -> None:
        self._arrived: dict[int | str, T] = {}
        self._more = asyncio.Event()

    @abstractmethod
    async def read(self, reader: rtc.TextStreamReader) -> None:
        """Takes one text stream, to its end."""

    async def take(self, count: int, within: float) -> list[T]:
        """What has arrived; fewer than `count` if that many do not come in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while len(self._arrived) < count:
                    self._more.clear()
                    await self._more.wait()
        taken, self._arrived = self._arrived, {}
        return list(taken.values())

    def _add(self, arrived: Iterable[tuple[int | str, T]]) -> None:
        self._arrived.update(arrived)
        self._more.set()


class Receiver(Arrivals[int]):
    """The microseconds that each text took."""

    def arrived(self, text: str, now: int) -> None:
        self._add(latencies(text, now))

    def take_block(self, block: bytes, now: int) -> None:
        name, data = event(block)
        if name == "stream.chunk":
            self.arrived(str(data["text"]), now)

    async def read(self, reader: rtc.TextStreamReader) -> None:
        async for text in reader:
            self.arrived(text, time.monotonic_ns())


@dataclass(frozen=True, slots=True)
class Streamed:
    """A stream of stamped pieces that has ended."""

    latencies: list[int]
    """Microseconds of its pieces."""
    in_order: bool
    """Whether each piece was the next one."""
    complete: bool


class StreamReceiver(Arrivals[Streamed]):
    """Streams of stamped pieces, each when it has ended."""

    async def read(self, reader: rtc.TextStreamReader) -> None:
        pieces: list[tuple[int, int]] = []
        complete = False
        with suppress(rtc.StreamError):
            async for text in reader:
                pieces += latencies(text, time.monotonic_ns())
            complete = True
        if pieces:
            first = pieces[0][0]
            in_order = all(number == first + at for at, (number, _) in enumerate(pieces))
            streamed = Streamed([taken for _, taken in pieces], in_order, complete)
            self._add([(reader.info.stream_id, streamed)])


@dataclass(frozen=True, slots=True)
class Digested:
    """A stream of any text that has ended."""

    size: int
    """In bytes."""
    sha256: str
    complete: bool


class DigestReceiver(Arrivals[Digested]):
    """Streams too large to keep, each when it has ended."""

    async def read(self, reader: rtc.TextStreamReader) -> None:
        size = 0
        digest = hashlib.sha256()
        complete = False
        with suppress(rtc.StreamError):
            async for text in reader:
                body = text.encode()
                size += len(body)
                digest.update(body)
            complete = True
        if size > len(LOOK):
            digested = Digested(size, digest.hexdigest(), complete)
            self._add([(reader.info.stream_id, digested)])


async def subscribe(
    take: Callable[[bytes, int], None], port: int, path: str, token: str
) -> "asyncio.Task[None]":
    """Follows an event stream until the task is cancelled; returns once it is open. `take` gets each block,
    and when it was there."""
    opened = asyncio.Event()

    async def follow() -> None:
        async with aclosing(event_blocks(port, path, token)) as blocks:
            async for block in blocks:
                take(block, time.monotonic_ns())
                if is_event(block, "gateway.opened"):
                    opened.set()

    task = asyncio.create_task(follow())
    task.add_done_callback(lambda _: opened.set())
    await opened.wait()
    if task.done():
        task.result()
    return task


def listen(arrivals: Arrivals[T], room: rtc.Room) -> None:
    """Reads every text stream of the room, as the SDK's own examples do."""
    reading: set[asyncio.Task[None]] = set()

    def opened(reader: rtc.TextStreamReader, sender: str) -> None:
        task = asyncio.create_task(arrivals.read(reader))
        reading.add(task)
        task.add_done_callback(reading.discard)

    room.register_text_stream_handler(TOPIC, opened)
