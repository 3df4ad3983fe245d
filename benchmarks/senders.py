"""Both ways for a text into a room: by POST to the gateway, and by the SDK alone."""

import asyncio
import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from livekit import rtc

from benchmarks.http_client import KeptConnection
from benchmarks.texts import LOOK, bulky, stamped
from gateway.rooms.base import Room, TextOptions

TOPIC = "bench"

POLL_SECONDS = 0.05
"""Between two looks whether the receiver is known; LiveKit tells of it up to 3 s late."""

Write = Callable[[str], Awaitable[None]]


class Sender(ABC):
    @abstractmethod
    async def open_lanes(self, count: int) -> None:
        """Makes ready to have so many texts in flight at once."""

    @abstractmethod
    async def is_heard(self) -> bool:
        """Whether a receiver is known to be there."""

    @abstractmethod
    async def send(self, text: str, lane: int) -> None:
        """One whole text; returns when it is accepted."""

    @abstractmethod
    def streaming(self, lane: int) -> AbstractAsyncContextManager[Write]:
        """One streamed text, ended with the context."""

    @abstractmethod
    async def close(self) -> None: ...


class HttpSender(Sender):
    def __init__(self, port: int, path: str, token: str) -> None:
        self._target = (port, path, token)
        self._lanes: list[KeptConnection] = []

    async def open_lanes(self, count: int) -> None:
        while len(self._lanes) < count:
            self._lanes.append(await KeptConnection.open(*self._target))

    async def is_heard(self) -> bool:
        return bool(json.loads(await self._lanes[0].post(LOOK))["listeners"])

    async def send(self, text: str, lane: int) -> None:
        await self._lanes[lane].post(text)

    @asynccontextmanager
    async def streaming(self, lane: int) -> AsyncIterator[Write]:
        connection = self._lanes[lane]
        connection.begin()
        yield connection.piece
        await connection.end()

    async def close(self) -> None:
        for lane in self._lanes:
            lane.close()


class SdkSender(Sender):
    def __init__(self, room: rtc.Room) -> None:
        self._room = room

    async def open_lanes(self, count: int) -> None:
        """Calls need no preparation."""

    async def is_heard(self) -> bool:
        return bool(self._room.remote_participants)

    async def send(self, text: str, lane: int) -> None:
        await self._room.local_participant.send_text(text, topic=TOPIC)

    @asynccontextmanager
    async def streaming(self, lane: int) -> AsyncIterator[Write]:
        writer = await self._room.local_participant.stream_text(topic=TOPIC)
        yield writer.write
        await writer.aclose()

    async def close(self) -> None:
        await self._room.disconnect()


class RoomsSender(Sender):
    """The gateway's way to LiveKit, without HTTP before it."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def open_lanes(self, count: int) -> None:
        """Calls need no preparation."""

    async def is_heard(self) -> bool:
        return bool(self._room.identities)

    async def send(self, text: str, lane: int) -> None:
        await self._room.send_text(text, TextOptions(TOPIC))

    @asynccontextmanager
    async def streaming(self, lane: int) -> AsyncIterator[Write]:
        writer = await self._room.open_text_stream(TextOptions(TOPIC))
        yield writer.write
        await writer.close()

    async def close(self) -> None:
        await self._room.leave()


async def until_heard(sender: Sender, lanes: int) -> None:
    await sender.open_lanes(lanes)
    while not await sender.is_heard():
        await asyncio.sleep(POLL_SECONDS)


async def one_by_one(sender: Sender, count: int, pause: float) -> float:
    """Sends `count` texts, each `pause` seconds after the last was accepted; how long it took."""
    started = time.monotonic()
    for number in range(count):
        await sender.send(stamped(number), 0)
        await asyncio.sleep(pause)
    return time.monotonic() - started


async def at_once(sender: Sender, count: int, lanes: int) -> float:
    """Sends `count` texts, always `lanes` of them in flight; how long it took."""
    numbers = iter(range(count))
    await sender.open_lanes(lanes)

    async def run(lane: int) -> None:
        for number in numbers:
            await sender.send(stamped(number), lane)

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for lane in range(lanes):
            group.create_task(run(lane))
    return time.monotonic() - started


async def piecewise(sender: Sender, count: int, interval: float, streams: int = 1) -> float:
    """Streams so many texts at once, each of `count` pieces, one every `interval` seconds; how long it
    took. They begin one after the other within the first interval, and are numbered through."""
    started = time.monotonic()

    async def stream(lane: int) -> None:
        begin = started + lane * interval / streams
        await _until(begin)
        async with sender.streaming(lane) as write:
            for number in range(count):
                await _until(begin + number * interval)
                await write(stamped(lane * count + number))

    async with asyncio.TaskGroup() as group:
        for lane in range(streams):
            group.create_task(stream(lane))
    return time.monotonic() - started


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


@dataclass(frozen=True, slots=True)
class BulkSent:
    """One text that was streamed as fast as it was taken."""

    size: int
    """In bytes."""
    sha256: str
    seconds: float
    """Until it was accepted as a whole."""
    waited: float
    """Seconds that its sender was not let go on."""
    longest_wait: float


async def bulk(sender: Sender, count: int) -> BulkSent:
    """Streams one text of `count` bulky pieces."""
    digest = hashlib.sha256()
    size = 0
    waits: list[float] = []
    started = time.monotonic()
    async with sender.streaming(0) as write:
        for number in range(count):
            text = bulky(number)
            body = text.encode()
            digest.update(body)
            size += len(body)
            written = time.monotonic()
            await write(text)
            waits.append(time.monotonic() - written)
    seconds = time.monotonic() - started
    return BulkSent(size, digest.hexdigest(), seconds, sum(waits), max(waits))
