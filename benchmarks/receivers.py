"""Both ways for a text out of a room: as Server-Sent Events, and by the SDK alone."""

import asyncio
import time
from contextlib import aclosing, suppress

from livekit import rtc

from benchmarks.http_client import event, event_blocks
from benchmarks.senders import TOPIC
from benchmarks.texts import TEXT_BYTES, latencies


class Receiver:
    """Collects what arrives, to be taken round by round."""

    def __init__(self) -> None:
        self._arrived: dict[int, int] = {}
        self._more = asyncio.Event()

    def arrived(self, text: str, now: int) -> None:
        if len(text) % TEXT_BYTES == 0:  # anything else is a text that only looked for listeners
            self._arrived.update(latencies(text, now))
            self._more.set()

    async def take(self, count: int, within: float) -> list[int]:
        """The microseconds that each text took; fewer than `count` if that many do not come in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while len(self._arrived) < count:
                    self._more.clear()
                    await self._more.wait()
        taken, self._arrived = self._arrived, {}
        return list(taken.values())


async def subscribe(receiver: Receiver, port: int, path: str, token: str) -> "asyncio.Task[None]":
    """Follows an event stream until the task is cancelled; returns once it is open."""
    opened = asyncio.Event()

    async def follow() -> None:
        async with aclosing(event_blocks(port, path, token)) as blocks:
            async for block in blocks:
                now = time.monotonic_ns()
                name, data = event(block)
                if name == "gateway.opened":
                    opened.set()
                if name == "stream.chunk":
                    receiver.arrived(str(data["text"]), now)

    task = asyncio.create_task(follow())
    task.add_done_callback(lambda _: opened.set())
    await opened.wait()
    if task.done():
        task.result()
    return task


def listen(receiver: Receiver, room: rtc.Room) -> None:
    """Reads every text stream of the room, as the SDK's own examples do."""
    reading: set[asyncio.Task[None]] = set()

    async def read(reader: rtc.TextStreamReader) -> None:
        async for text in reader:
            receiver.arrived(text, time.monotonic_ns())

    def opened(reader: rtc.TextStreamReader, sender: str) -> None:
        task = asyncio.create_task(read(reader))
        reading.add(task)
        task.add_done_callback(reading.discard)

    room.register_text_stream_handler(TOPIC, opened)
