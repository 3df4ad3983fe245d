"""Rooms of the twin that take what is sent only when they are told to."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import fields

from gateway.rooms.base import Listener, StreamHeader, TextOptions, TextStreamWriter
from gateway.rooms.memory import MemoryRoom, MemoryRooms


class GatedRoom(MemoryRoom):
    """A room of the twin that takes a text only when it is told to."""

    gate: asyncio.Event
    taking: asyncio.Event

    async def send_text(
        self, text: str, options: TextOptions, sender: str | None = None
    ) -> StreamHeader:
        self.taking.set()
        await self.gate.wait()
        return await super().send_text(text, options, sender)

    async def open_text_stream(
        self, options: TextOptions, sender: str | None = None
    ) -> TextStreamWriter:
        return GatedWriter(self, await super().open_text_stream(options, sender))


class GatedWriter(TextStreamWriter):
    def __init__(self, room: GatedRoom, writer: TextStreamWriter) -> None:
        self.header = writer.header
        self._room = room
        self._writer = writer

    async def write(self, text: str) -> None:
        self._room.taking.set()
        await self._room.gate.wait()
        await self._writer.write(text)

    async def close(self, attributes: Mapping[str, str] | None = None) -> None:
        self._room.taking.set()
        await self._room.gate.wait()
        await self._writer.close(attributes)

    async def abort(self, reason: str) -> None:
        await self._room.gate.wait()
        await self._writer.abort(reason)


class GatedRooms(MemoryRooms):
    """`taking` is set when something is about to be sent, which waits for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.taking = asyncio.Event()

    async def join(
        self, room: str, identity: str, token: str, topics: Collection[str], listener: Listener
    ) -> MemoryRoom:
        return self._gated(await super().join(room, identity, token, topics, listener))

    async def observe(self, room: str, topics: Collection[str], listener: Listener) -> MemoryRoom:
        return self._gated(await super().observe(room, topics, listener))

    def _gated(self, joined: MemoryRoom) -> GatedRoom:
        made_of = (field.name for field in fields(joined) if field.init)
        gated = GatedRoom(*(getattr(joined, name) for name in made_of))
        gated.agents = joined.agents
        gated.gate, gated.taking = self.gate, self.taking
        joined.present[joined.identity] = gated
        return gated
