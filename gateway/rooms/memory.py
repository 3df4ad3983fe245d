"""The in-process twin of LiveKit: rooms of one process, for tests at speed and property tests.

It keeps the promises that the contract makes, not LiveKit's timing: who is in the room is known at
once, and a text is at its receivers when the send returns.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from gateway.errors import LiveKitUnavailable, NotPermitted
from gateway.events import StreamChunk, StreamClosed, StreamOpened
from gateway.rooms.base import (
    MAX_OPEN_INCOMING,
    MAX_OPEN_OF_SENDER,
    NOT_PERMITTED,
    TOO_MANY_OPEN,
    Listener,
    LostReason,
    Room,
    Rooms,
    StreamHeader,
    TextOptions,
    TextStreamWriter,
)


class MemoryRooms(Rooms):
    def __init__(self) -> None:
        self._rooms: dict[str, dict[str, MemoryRoom]] = defaultdict(dict)

    async def join(
        self, room: str, identity: str, token: str, topics: Collection[str], listener: Listener
    ) -> "MemoryRoom":
        present = self._rooms[room]
        if earlier := present.get(identity):
            earlier.lose(LostReason.DUPLICATE_IDENTITY)
        present[identity] = joined = MemoryRoom(identity, listener, present)
        for topic in topics:
            joined.register_topic(topic)
        return joined

    def identities(self, room: str) -> set[str]:
        """Who is in the room, as LiveKit's ListParticipants tells it."""
        return set(self._rooms[room])

    def delete_room(self, room: str) -> None:
        """What LiveKit's DeleteRoom does: everybody is sent away."""
        for joined in list(self._rooms.pop(room, {}).values()):
            joined.lose(LostReason.ROOM_CLOSED)

    def remove_participant(self, room: str, identity: str) -> None:
        """What LiveKit's RemoveParticipant does."""
        self._rooms[room][identity].lose(LostReason.REMOVED)

    def set_can_publish_data(self, room: str, identity: str, allowed: bool) -> None:
        """What LiveKit's UpdateParticipant does to the permission of somebody who is there."""
        self._rooms[room][identity].publish_allowed = allowed

    async def aclose(self) -> None:
        self._rooms.clear()


@dataclass(slots=True)
class _Incoming:
    info: StreamOpened
    index: int = 0
    size: int = 0


@dataclass(slots=True)
class MemoryRoom(Room):
    identity: str
    listener: Listener
    present: dict[str, "MemoryRoom"]
    publish_allowed: bool = True
    connected: bool = True
    topics: set[str] = field(default_factory=set)
    incoming: dict[tuple[str, str], _Incoming] = field(default_factory=dict)

    @property
    def can_publish_data(self) -> bool:
        return self.publish_allowed

    @property
    def hidden(self) -> bool:
        return False

    @property
    def participants(self) -> Collection[str]:
        return self.present.keys() - {self.identity}

    def register_topic(self, topic: str) -> None:
        self.topics.add(topic)

    async def send_text(self, text: str, options: TextOptions) -> StreamHeader:
        writer = self._open(options, len(text.encode()))
        if text:
            await writer.write(text)
        await writer.close()
        return writer.header

    async def open_text_stream(self, options: TextOptions) -> TextStreamWriter:
        return self._open(options, None)

    async def leave(self) -> None:
        self._go()
        for stream_id, sender in list(self.incoming):
            self.close(sender, stream_id, "disconnected")

    def require_sending(self) -> None:
        if not self.connected:
            raise LiveKitUnavailable("The connection to LiveKit is lost; nothing was sent.")
        if not self.publish_allowed:
            raise NotPermitted(NOT_PERMITTED)

    def lose(self, reason: LostReason) -> None:
        self._go()
        for stream_id, sender in list(self.incoming):
            self.close(sender, stream_id, "disconnected")
        self.listener.lost(reason)

    def open(self, info: StreamOpened) -> None:
        if info.topic not in self.topics:
            return
        self.listener.emit(info)
        self.incoming[(info.stream_id, info.participant_identity)] = _Incoming(info)
        of_sender = sum(sender == info.participant_identity for _, sender in self.incoming)
        if of_sender > MAX_OPEN_OF_SENDER or len(self.incoming) > MAX_OPEN_INCOMING:
            self.close(info.participant_identity, info.stream_id, TOO_MANY_OPEN)

    def take(self, sender: str, stream_id: str, text: str) -> None:
        if stream := self.incoming.get((stream_id, sender)):
            self.listener.emit(
                StreamChunk(stream_id, stream.info.topic, sender, stream.index, text)
            )
            stream.index += 1
            stream.size += len(text.encode())

    def close(self, sender: str, stream_id: str, reason: str | None) -> None:
        if stream := self.incoming.pop((stream_id, sender), None):
            self.listener.emit(
                StreamClosed(
                    stream_id=stream_id,
                    topic=stream.info.topic,
                    participant_identity=sender,
                    complete=reason is None,
                    reason=reason,
                    attributes=stream.info.attributes or {},
                    size=stream.size,
                    chunks=stream.index,
                )
            )

    def _open(self, options: TextOptions, size: int | None) -> "_MemoryWriter":
        self.require_sending()
        header = StreamHeader(str(uuid.uuid4()), time.time_ns() // 1_000_000)
        info = StreamOpened(
            stream_id=header.stream_id,
            topic=options.topic,
            participant_identity=self.identity,
            timestamp=header.timestamp,
            size=size,
            attributes=dict(options.attributes),
            reply_to_stream_id=options.reply_to_stream_id,
        )
        receivers = [
            room
            for identity, room in self.present.items()
            if room is not self
            and (not options.destination_identities or identity in options.destination_identities)
        ]
        for room in receivers:
            room.open(info)
        return _MemoryWriter(self, header, receivers)

    def _go(self) -> None:
        self.connected = False
        if self.present.get(self.identity) is self:
            del self.present[self.identity]
        for room in self.present.values():
            for stream_id, sender in list(room.incoming):
                if sender == self.identity:
                    room.close(sender, stream_id, "sender_disconnected")


@dataclass(slots=True)
class _MemoryWriter(TextStreamWriter):
    room: MemoryRoom
    header: StreamHeader
    receivers: list[MemoryRoom]

    async def write(self, text: str) -> None:
        self.room.require_sending()
        for receiver in self.receivers:
            receiver.take(self.room.identity, self.header.stream_id, text)

    async def close(self) -> None:
        self.room.require_sending()
        await self._end(None)

    async def abort(self, reason: str) -> None:
        await self._end(reason)

    async def _end(self, reason: str | None) -> None:
        for receiver in self.receivers:
            receiver.close(self.room.identity, self.header.stream_id, reason)
