"""Participants that come into a room by other means than the gateway under test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from livekit import rtc

from gateway.events import (
    Happening,
    ParticipantDisconnected,
    StreamChunk,
    StreamClosed,
    StreamOpened,
)
from gateway.rooms.base import Listener, LostReason, Room
from tests.polling import poll_until
from tests.running_gateway import DEADLINE, RunningGateway


class Guest:
    """One participant, by the contract of the far side: over LiveKit, and over its twin."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Happening] = asyncio.Queue()
        self.lost: asyncio.Queue[LostReason] = asyncio.Queue()
        self.listener = Listener(self._hear, lambda: None, lambda: None, self.lost.put_nowait)
        self.room: Room
        self._told = asyncio.Event()

    def _hear(self, event: Happening) -> None:
        self.heard.put_nowait(event)
        self._told.set()

    async def text(self) -> tuple[str, str]:
        """The next text that ends whole, and whose it is."""
        text = ""
        async with asyncio.timeout(DEADLINE):
            while True:
                event = await self.heard.get()
                if isinstance(event, StreamOpened):
                    text = ""
                elif isinstance(event, StreamChunk):
                    text += event.text
                elif isinstance(event, StreamClosed) and event.complete:
                    return event.participant_identity, text

    async def closed(self) -> StreamClosed:
        """The end of the next stream."""
        async with asyncio.timeout(DEADLINE):
            while not isinstance(event := await self.heard.get(), StreamClosed):
                pass
        return event

    async def sees(self, identity: str, *, gone: bool = False) -> None:
        """LiveKit tells of participants up to 3 s late."""
        async with asyncio.timeout(DEADLINE):
            while (identity in self.room.identities) is gone:
                self._told.clear()
                await self._told.wait()

    async def reason_of_leaving(self, identity: str) -> str | None:
        """Why that participant left, once it has."""
        async with asyncio.timeout(DEADLINE):
            while True:
                event = await self.heard.get()
                if (
                    isinstance(event, ParticipantDisconnected)
                    and event.participant_identity == identity
                ):
                    return event.reason

    async def is_muted(self) -> None:
        """LiveKit has told that we may not send any more."""
        await poll_until(lambda: not self.room.local.can_publish_data)


class SdkListener:
    """A participant with LiveKit's own SDK and nothing of ours, which reads the texts on `lk.chat`."""

    def __init__(self) -> None:
        self.room = rtc.Room()
        self.ended: asyncio.Queue[tuple[str, str | None, dict[str, str]]] = asyncio.Queue()
        """Of each stream: what came of it, why it is not whole, and the attributes of its end."""
        self._reading: set[asyncio.Task[None]] = set()
        self.room.register_text_stream_handler("lk.chat", self._on_stream)

    async def end(self) -> tuple[str, str | None, dict[str, str]]:
        """Of the next stream that ends."""
        async with asyncio.timeout(DEADLINE):
            return await self.ended.get()

    def _on_stream(self, reader: rtc.TextStreamReader, sender: str) -> None:
        task = asyncio.create_task(self._read(reader))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _read(self, reader: rtc.TextStreamReader) -> None:
        text, reason = "", None
        try:
            async for piece in reader:
                text += piece
        except rtc.StreamError as error:
            reason = error.description.removeprefix("stream closed abnormally: ")
        finally:
            reader.close()
        self.ended.put_nowait((text, reason, dict(reader.info.attributes or {})))


@asynccontextmanager
async def sdk_listener(
    gateway: RunningGateway, room: str, identity: str
) -> AsyncIterator[SdkListener]:
    listener = SdkListener()
    await listener.room.connect(gateway.settings.livekit_url, gateway.token(identity, room))
    try:
        yield listener
    finally:
        await listener.room.disconnect()


async def join(gateway: RunningGateway, room: str, identity: str, **grants: object) -> Guest:
    guest = Guest()
    token = gateway.token(identity, room, **grants)
    guest.room = await gateway.rooms.join(room, identity, token, ("lk.chat",), guest.listener)
    return guest


@asynccontextmanager
async def guest(gateway: RunningGateway, room: str, identity: str) -> AsyncIterator[Guest]:
    """In the room while the context lasts, unless sent away."""
    joined = await join(gateway, room, identity)
    try:
        yield joined
    finally:
        if joined.lost.empty():
            await joined.room.leave()
