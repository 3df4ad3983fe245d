"""The in-process twin of LiveKit: rooms of one process, for tests at speed and property tests.

It keeps the promises that the contract makes, not LiveKit's timing: who is in the room is known at
once, and a text is at its receivers when the send returns. What is sent waits for its turn all the same.
"""

import asyncio
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.agent_session import Agents, Ignored
from gateway.errors import LiveKitUnavailable, NotPermitted
from gateway.events import (
    ParticipantAttributesChanged,
    ParticipantConnected,
    ParticipantDisconnected,
    StreamOpened,
)
from gateway.rooms.base import (
    AGENT,
    MAX_OPEN_INCOMING,
    MAX_OPEN_OF_SENDER,
    NOT_PERMITTED,
    TOO_MANY_OPEN,
    Listener,
    LostReason,
    Participant,
    Room,
    Rooms,
    StreamHeader,
    TextOptions,
    TextStreamWriter,
    stream_opened,
)
from gateway.tally import StreamTally

OBSERVER = "gateway-observer"


async def _turn() -> None:
    """Lets others go first, as whoever asks a server does: what may come in between comes."""
    await asyncio.sleep(0)


class MemoryRooms(Rooms):
    def __init__(self) -> None:
        super().__init__()
        self._rooms: dict[str, dict[str, MemoryRoom]] = defaultdict(dict)

    async def join(
        self, room: str, identity: str, token: str, topics: Collection[str], listener: Listener
    ) -> "MemoryRoom":
        await _turn()
        return self._join(room, self._new(room, identity, listener), topics)

    async def observe(self, room: str, topics: Collection[str], listener: Listener) -> "MemoryRoom":
        await _turn()
        joined = self._new(room, OBSERVER, listener, kind=AGENT, unseen=True)
        return self._join(room, joined, topics)

    async def room_exists(self, room: str) -> bool:
        await _turn()
        return bool(self._rooms.get(room))

    async def find_participant(self, room: str, identity: str) -> Participant | None:
        await _turn()
        found = self._rooms.get(room, {}).get(identity)
        return None if found is None else found.local

    def join_as_agent(
        self, room: str, identity: str, listener: Listener, topics: Collection[str] = ()
    ) -> "MemoryRoom":
        """As with a token of kind agent."""
        return self._join(room, self._new(room, identity, listener, kind=AGENT), topics)

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

    def change_attributes(self, room: str, identity: str, changed: Mapping[str, str]) -> None:
        """Likewise to his attributes; an empty one is removed."""
        self._rooms[room][identity].change_attributes(changed)

    async def aclose(self) -> None:
        self._rooms.clear()

    def _new(self, room: str, identity: str, listener: Listener, **more: Any) -> "MemoryRoom":
        return MemoryRoom(identity, listener, self._rooms[room], self.ignored_messages, **more)

    def _join(self, room: str, joined: "MemoryRoom", topics: Collection[str]) -> "MemoryRoom":
        present = joined.present
        joined.closed = lambda: self._close(room, present)
        earlier = present.get(joined.identity)
        present[joined.identity] = joined
        if earlier is not None:
            earlier.lose(LostReason.DUPLICATE_IDENTITY)
        joined.come(topics)
        return joined

    def _close(self, room: str, present: dict[str, "MemoryRoom"]) -> None:
        """The last one that was seen has left; who observes does not keep a room open."""
        if self._rooms.get(room) is present:
            self.delete_room(room)


@dataclass(slots=True)
class MemoryRoom(Room):
    identity: str
    listener: Listener
    present: dict[str, "MemoryRoom"]
    ignored: Counter[str]
    kind: str = "standard"
    unseen: bool = False
    publish_allowed: bool = True
    attributes: Mapping[str, str] = field(default_factory=dict)
    connected: bool = True
    sid: str = field(default_factory=lambda: f"PA_{uuid.uuid4().hex[:12]}")
    closed: Callable[[], None] = lambda: None
    topics: set[str] = field(default_factory=set)
    incoming: dict[tuple[str, str], StreamTally] = field(default_factory=dict)
    agents: Agents = field(init=False)

    def __post_init__(self) -> None:
        self.agents = Agents(self.listener.emit, self.ignored)

    @property
    def local(self) -> Participant:
        return Participant(
            identity=self.identity,
            sid=self.sid,
            name="",
            kind=self.kind,
            state="active",
            attributes=self.attributes,
            can_publish_data=self.publish_allowed,
            hidden=self.unseen,
        )

    @property
    def hidden(self) -> bool:
        return self.unseen

    @property
    def identities(self) -> Collection[str]:
        return [room.identity for room in self._others() if not room.unseen]

    def participant(self, identity: str) -> Participant | None:
        return self.present[identity].local if identity in self.identities else None

    def register_topic(self, topic: str) -> None:
        self.topics.add(topic)

    def unregister_topic(self, topic: str) -> None:
        self.topics.discard(topic)

    async def send_text(
        self, text: str, options: TextOptions, sender: str | None = None
    ) -> StreamHeader:
        await _turn()
        writer = self._open(options, len(text.encode()), sender)
        if text:
            await writer.write(text)
        await writer.close()
        return writer.header

    async def open_text_stream(
        self, options: TextOptions, sender: str | None = None
    ) -> TextStreamWriter:
        await _turn()
        return self._open(options, None, sender)

    async def abort_text_stream(
        self, stream_id: str, options: TextOptions, sender: str, reason: str
    ) -> None:
        await _turn()
        for room in self._addressed(options):
            room.close(sender, stream_id, reason)

    async def leave(self, *, for_good: bool = False) -> None:
        await _turn()
        self._go("client_initiated" if for_good else "user_unavailable")
        self._end_incoming()

    def require_sending(self, sender: str | None) -> None:
        if not self.connected:
            raise LiveKitUnavailable("The connection to LiveKit is lost; nothing was sent.")
        author = self if sender is None else self.present.get(sender)
        if author is not None and not author.publish_allowed:
            raise NotPermitted(NOT_PERMITTED)

    def come(self, topics: Collection[str]) -> None:
        """Into the room: from here on it is heard and seen."""
        self.topics.update(topics)
        for other in self._others():
            if other.kind == AGENT and not other.unseen:
                self.agents.present(other.identity, other.local.agent_state)
            if not self.unseen:
                other.listener.emit(ParticipantConnected(self.identity, self.kind, "", {}))
                if self.kind == AGENT:
                    other.agents.changed(self.identity, None)

    def change_attributes(self, changed: Mapping[str, str]) -> None:
        after = {**self.attributes, **changed}
        self.attributes = {name: value for name, value in after.items() if value}
        event = ParticipantAttributesChanged(self.identity, changed, self.attributes)
        for other in self._others():
            other.listener.emit(event)
            if self.kind == AGENT:
                other.agents.changed(self.identity, self.local.agent_state)

    def tell_of_session(self, message: bytes) -> None:
        """What an agent broadcasts on `lk.agent.session`."""
        for other in self._others():
            if self.kind == AGENT:
                other.agents.told(self.identity, message)
            else:
                other.ignored[Ignored.NOT_AN_AGENT] += 1

    def lose(self, reason: LostReason) -> None:
        self._go(_LOST.get(reason))
        self._end_incoming()
        self.listener.lost(reason)

    def open(self, info: StreamOpened) -> None:
        key = (info.stream_id, info.participant_identity)
        # LiveKit's receivers drop a stream whose id is open.
        if info.topic not in self.topics or key in self.incoming:
            return
        self.listener.emit(info)
        self.incoming[key] = StreamTally(info)
        of_sender = sum(sender == info.participant_identity for _, sender in self.incoming)
        if of_sender > MAX_OPEN_OF_SENDER or len(self.incoming) > MAX_OPEN_INCOMING:
            self.close(info.participant_identity, info.stream_id, TOO_MANY_OPEN)

    def take(self, sender: str, stream_id: str, text: str) -> None:
        if stream := self.incoming.get((stream_id, sender)):
            self.listener.emit(stream.chunk(text))

    def close(
        self,
        sender: str,
        stream_id: str,
        reason: str | None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        if stream := self.incoming.pop((stream_id, sender), None):
            merged = {**(stream.opened.attributes or {}), **(attributes or {})}
            self.listener.emit(stream.closed(reason, merged))

    def _open(self, options: TextOptions, size: int | None, sender: str | None) -> "_MemoryWriter":
        self.require_sending(sender)
        stream_id = options.stream_id or str(uuid.uuid4())
        header = StreamHeader(stream_id, time.time_ns() // 1_000_000)
        info = stream_opened(sender or self.identity, header, options, size)
        receivers = self._addressed(options)
        for room in receivers:
            room.open(info)
        return _MemoryWriter(self, header, receivers, sender)

    def _addressed(self, options: TextOptions) -> list["MemoryRoom"]:
        named = options.destination_identities
        return [room for room in self._others() if not named or room.identity in named]

    def _others(self) -> list["MemoryRoom"]:
        return [room for room in self.present.values() if room.identity != self.identity]

    def _end_incoming(self) -> None:
        for stream_id, sender in list(self.incoming):
            self.close(sender, stream_id, "disconnected")

    def _go(self, reason: str | None) -> None:
        if not self.connected:
            return
        self.connected = False
        self.agents.end()
        if self.present.get(self.identity) is self:
            del self.present[self.identity]
        for room in self._others():
            for stream_id, sender in list(room.incoming):
                if sender == self.identity:
                    room.close(sender, stream_id, "sender_disconnected")
            if not self.unseen:
                room.agents.left(self.identity)
                room.listener.emit(ParticipantDisconnected(self.identity, reason))
        if all(room.unseen for room in self.present.values()):
            self.closed()


_LOST = {
    LostReason.DUPLICATE_IDENTITY: "duplicate_identity",
    LostReason.REMOVED: "participant_removed",
    LostReason.ROOM_CLOSED: "room_deleted",
}


@dataclass(slots=True)
class _MemoryWriter(TextStreamWriter):
    room: MemoryRoom
    header: StreamHeader
    receivers: list[MemoryRoom]
    sender: str | None

    @property
    def _author(self) -> str:
        return self.sender or self.room.identity

    async def write(self, text: str) -> None:
        await _turn()
        self.room.require_sending(self.sender)
        for receiver in self.receivers:
            receiver.take(self._author, self.header.stream_id, text)

    async def close(self, attributes: Mapping[str, str] | None = None) -> None:
        await _turn()
        self.room.require_sending(self.sender)
        self._end(None, attributes)

    async def abort(self, reason: str) -> None:
        await _turn()
        if not self.room.publish_allowed:
            raise NotPermitted(NOT_PERMITTED)
        self._end(reason)

    def _end(self, reason: str | None, attributes: Mapping[str, str] | None = None) -> None:
        for receiver in self.receivers:
            receiver.close(self._author, self.header.stream_id, reason, attributes)
