"""Every LiveKit connection of this process: opened, shared, lingering, drained.

A connection is one participant in one room, keyed by (room, identity), with its event log. All
requests of that caller share it; it lives while one of them does, and lingers after the last one,
so that a page reload or the next POST finds the participant still in the room.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from gateway.auth import Caller
from gateway.errors import (
    Draining,
    GatewayError,
    LiveKitUnavailable,
    NotPermitted,
    TooManyConnections,
    TooManyTopics,
)
from gateway.event_log import EventLog, Position
from gateway.events import ClosingReason, StreamChunk, StreamClosed, StreamOpened, closing
from gateway.rooms.base import (
    Listener,
    LostReason,
    Room,
    Rooms,
    StreamHeader,
    TextOptions,
    TextStreamWriter,
)

logger = logging.getLogger(__name__)

REMEMBERED_ENDS = 10_000
"""Connections that ended for good and are remembered, so that a browser's automatic reconnect does
not undo it; about 200 bytes each."""

INTERRUPTION_NOTICED = 20.0
"""Seconds within which LiveKit and its SDK notice that they do not hear each other (10 seen); what was
sent or received since then may be missing."""

MAX_TOPICS = 1_000
"""Topics that one connection receives; each costs an entry here and in the SDK until we leave."""

IN_FLIGHT_TIMEOUT = 3.0
"""Seconds that leaving waits for texts that are being handed to LiveKit."""

_CLOSING = {
    LostReason.DUPLICATE_IDENTITY: ClosingReason.DUPLICATE_IDENTITY,
    LostReason.REMOVED: ClosingReason.REMOVED,
    LostReason.ROOM_CLOSED: ClosingReason.ROOM_CLOSED,
    LostReason.DISCONNECTED: ClosingReason.DISCONNECTED,
}


@dataclass(frozen=True, slots=True)
class Sent:
    """A text that LiveKit has accepted, which is not yet one that was delivered."""

    stream_id: str
    topic: str
    timestamp: int
    size: int
    attributes: dict[str, str]
    destination_identities: list[str]
    listeners: int
    """How many of the destinations, or of the room if there are none, were there."""
    position: str
    """The log's position before it: following from here shows this text and every answer to it, which
    is why the topic is received from then on."""


class OutgoingStream:
    """A text stream that a caller is writing, seen by its own log as it grows. Ended once."""

    def __init__(
        self, connection: "Connection", writer: TextStreamWriter, options: TextOptions, sent: Sent
    ) -> None:
        self._connection = connection
        self._writer = writer
        self._options = options
        self._sent = sent
        self._size = 0
        self._chunks = 0
        # An abort by the hub must not come between a write and its place in the log.
        self._lock = asyncio.Lock()

    async def write(self, text: str) -> None:
        """Hands the text on; nothing for an empty one, which LiveKit's receivers skip as well.

        Raises Draining or LiveKitUnavailable, also when the connection has ended meanwhile.
        """
        async with self._lock:
            self._connection.require_up()
            if not text:
                return
            await self._writer.write(text)
            self._connection.log.append(
                StreamChunk(
                    self._sent.stream_id,
                    self._options.topic,
                    self._connection.identity,
                    self._chunks,
                    text,
                )
            )
            self._chunks += 1
            self._size += len(text.encode())

    async def close(self) -> Sent:
        """The text is complete. Raises as `write` does."""
        async with self._lock:
            self._connection.require_up()
            await self._writer.close()
            self._finish(None)
        return replace(self._sent, size=self._size)

    async def abort(self, reason: str) -> None:
        """Ends it as incomplete, for receivers and for the log; does nothing if it has ended already."""
        async with self._lock:
            if self in self._connection.outgoing:
                self._finish(reason)
                await self._writer.abort(reason)

    def break_off(self, reason: str) -> None:
        """The connection below is gone: there is nobody to abort towards."""
        self._finish(reason)

    def _finish(self, reason: str | None) -> None:
        self._connection.outgoing.discard(self)
        self._connection.log.append(
            _closed(
                self._connection.identity,
                self._sent.stream_id,
                self._options,
                reason,
                self._size,
                self._chunks,
            )
        )


class Connection:
    """One participant in one room, with its log and the streams that it is sending."""

    def __init__(self, caller: Caller, log: EventLog) -> None:
        self.identity = caller.identity
        self.log = log
        self.outgoing: set[OutgoingStream] = set()
        self._room: Room | None = None
        self._ended: ClosingReason | None = None
        self._end_watchers: set[Callable[[], None]] = set()
        self._in_flight: set[asyncio.Future[None]] = set()

    def joined(self, room: Room) -> None:
        self._room = room

    def require_up(self) -> None:
        """Raises Draining or LiveKitUnavailable once the connection is ending."""
        if self._ended is ClosingReason.DRAIN:
            raise Draining("The gateway is going away; the text is not complete in the room.")
        if self._ended is not None:
            raise LiveKitUnavailable(f"The connection to LiveKit has ended ({self._ended}).")

    def watch_end(self, wake: Callable[[], None]) -> None:
        """Calls `wake` when the connection ends, at once if it has, until `unwatch_end`: for who
        waits for a sender."""
        self._end_watchers.add(wake)
        if self._ended is not None:
            wake()

    def unwatch_end(self, wake: Callable[[], None]) -> None:
        self._end_watchers.discard(wake)

    def register_topic(self, topic: str) -> None:
        """From now on the topic's streams are received and logged, with or without subscribers.

        Raises TooManyTopics, Draining, LiveKitUnavailable.
        """
        room = self._require_room()
        if self.log.is_registered(topic):
            return
        if self.log.registered_topics >= MAX_TOPICS:
            raise TooManyTopics(f"This participant receives {MAX_TOPICS} topics already.")
        room.register_topic(topic)
        self.log.register_topic(topic)

    async def send_text(self, text: str, options: TextOptions) -> Sent:
        """Sends a whole text as one stream.

        Raises NotPermitted, Draining, LiveKitUnavailable.
        """
        room = self._require_sending_room()
        position = self._position_before(options.topic)
        with self._sending():
            header = await room.send_text(text, options)
            size = len(text.encode())
            self.log.append(_opened(self.identity, header, options, size))
            if text:
                self.log.append(
                    StreamChunk(header.stream_id, options.topic, self.identity, 0, text)
                )
            self.log.append(
                _closed(self.identity, header.stream_id, options, None, size, 1 if text else 0)
            )
        return _sent(room, header, options, size, position)

    async def open_stream(self, options: TextOptions) -> OutgoingStream:
        """Opens a stream to be written piece by piece.

        Raises NotPermitted, Draining, LiveKitUnavailable.
        """
        room = self._require_sending_room()
        position = self._position_before(options.topic)
        with self._sending():
            writer = await room.open_text_stream(options)
            self.log.append(_opened(self.identity, writer.header, options, None))
            sent = _sent(room, writer.header, options, 0, position)
            stream = OutgoingStream(self, writer, options, sent)
            self.outgoing.add(stream)
        return stream

    def _position_before(self, topic: str) -> str:
        """Where to follow a text from that is sent now. Its topic is received from here on, as long as
        there is room for it: a sender with a topic for each text is not stopped by that."""
        if self.log.registered_topics < MAX_TOPICS:
            self.register_topic(topic)
        return str(self.log.head)

    async def leave(self, reason: ClosingReason) -> None:
        """Leaves LiveKit first, then ends the event streams: by the time that a client comes back,
        perhaps to another process, its identity is free. Does nothing if the connection was lost."""
        if self._room is None or self._ended is not None:
            return
        self._end(reason)
        if self._in_flight:
            # They were begun before, and are answered as accepted if LiveKit takes them.
            await asyncio.wait(self._in_flight, timeout=IN_FLIGHT_TIMEOUT)
        try:
            await asyncio.gather(*(stream.abort(reason) for stream in tuple(self.outgoing)))
            await self._room.leave()
        finally:
            self.log.end(closing(reason))

    def lost(self, reason: LostReason) -> None:
        """LiveKit ended the connection: whatever was open is incomplete, and everybody is told."""
        self._end(_CLOSING[reason])
        for stream in tuple(self.outgoing):
            stream.break_off(reason)
        self.log.end(closing(_CLOSING[reason]))

    def _end(self, reason: ClosingReason) -> None:
        self._ended = reason
        for wake in tuple(self._end_watchers):
            wake()

    def _require_room(self) -> Room:
        self.require_up()
        if self._room is None:
            raise LiveKitUnavailable("The connection to LiveKit is not there yet.")
        return self._room

    def _require_sending_room(self) -> Room:
        room = self._require_room()
        if room.hidden:
            # LiveKit hides the sender too: receivers would see a text of nobody.
            raise NotPermitted(
                "This identity is in the room hidden, by the token of another request;"
                " it can send once that is over."
            )
        return room

    @contextmanager
    def _sending(self) -> Iterator[None]:
        done = asyncio.get_running_loop().create_future()
        self._in_flight.add(done)
        try:
            yield
        finally:
            self._in_flight.discard(done)
            done.set_result(None)


def _sent(room: Room, header: StreamHeader, options: TextOptions, size: int, position: str) -> Sent:
    present = room.participants
    named = options.destination_identities
    return Sent(
        stream_id=header.stream_id,
        topic=options.topic,
        timestamp=header.timestamp,
        size=size,
        attributes=dict(options.attributes),
        destination_identities=list(named),
        listeners=len(set(named) & set(present)) if named else len(present),
        position=position,
    )


def _opened(
    identity: str, header: StreamHeader, options: TextOptions, size: int | None
) -> StreamOpened:
    return StreamOpened(
        stream_id=header.stream_id,
        topic=options.topic,
        participant_identity=identity,
        timestamp=header.timestamp,
        size=size,
        attributes=dict(options.attributes),
        destination_identities=options.destination_identities,
        reply_to_stream_id=options.reply_to_stream_id,
        local=True,
    )


def _closed(
    identity: str,
    stream_id: str,
    options: TextOptions,
    reason: str | None,
    size: int,
    chunks: int,
) -> StreamClosed:
    return StreamClosed(
        stream_id=stream_id,
        topic=options.topic,
        participant_identity=identity,
        complete=reason is None,
        reason=reason,
        attributes=dict(options.attributes),
        size=size,
        chunks=chunks,
    )


Key = tuple[str, str]
"""Room and identity."""


@dataclass(slots=True, eq=False)
class _Slot:
    """A key's place in the hub, from the first request for it until LiveKit has been left."""

    key: Key
    connection: Connection
    joining: "asyncio.Task[None]" = field(init=False)
    users: int = 0
    linger: asyncio.TimerHandle | None = None
    leaving: "asyncio.Task[None] | None" = None


class Hub:
    def __init__(
        self,
        rooms: Rooms,
        new_log: Callable[[], EventLog],
        *,
        topics: Collection[str],
        linger: float,
        max_connections: int,
    ) -> None:
        self.starting = False
        """Set while it is not known yet whether LiveKit takes our API key."""
        self.draining = False
        self._rooms = rooms
        self._new_log = new_log
        self._topics = topics
        self._linger = linger
        self._max_connections = max_connections
        self._slots: dict[Key, _Slot] = {}
        self._ends: OrderedDict[Key, tuple[str, LostReason]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._drain_watchers: set[Callable[[], None]] = set()

    @asynccontextmanager
    async def connection(self, caller: Caller) -> AsyncIterator[Connection]:
        """The caller's connection, joined if need be, and held while the context is.

        Raises Draining, TooManyConnections, JoinFailed, LiveKitUnavailable.
        """
        slot = await self._acquire(caller)
        try:
            yield slot.connection
        finally:
            self._release(slot)

    @property
    def connections(self) -> int:
        """How many there are: joining, joined, lingering or leaving."""
        return len(self._slots)

    def ended_for_good(self, caller: Caller, last: Position) -> bool:
        """Whether the log that `last` belongs to ended in a way that coming back must not undo."""
        return self._ends.get((caller.room, caller.identity), ("", None))[0] == last.epoch

    def watch_drain(self, wake: Callable[[], None]) -> None:
        """Calls `wake` when draining begins, at once if it has, until `unwatch_drain`."""
        self._drain_watchers.add(wake)
        if self.draining:
            wake()

    def unwatch_drain(self, wake: Callable[[], None]) -> None:
        self._drain_watchers.discard(wake)

    async def drain(self) -> None:
        """Takes nothing new, leaves every room, and ends every event stream."""
        self.draining = True
        for wake in tuple(self._drain_watchers):
            wake()
        for slot in self._slots.values():
            self._leave(slot, ClosingReason.DRAIN)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _acquire(self, caller: Caller) -> _Slot:
        key = (caller.room, caller.identity)
        # A connection that is on its way out is waited for: joining beside it, one would evict the other.
        while (slot := self._slots.get(key)) is not None and slot.leaving is not None:
            await asyncio.wait({slot.leaving})
        if self.draining:
            raise Draining("The gateway is going away; come back in a moment.")
        if slot is None:
            slot = self._open(key, caller)
        slot.users += 1
        if slot.linger is not None:
            slot.linger.cancel()
            slot.linger = None
        try:
            await asyncio.wait({slot.joining})
            slot.joining.result()
        except BaseException:
            self._release(slot)
            raise
        return slot

    def _open(self, key: Key, caller: Caller) -> _Slot:
        if self.connections >= self._max_connections:
            raise TooManyConnections("The gateway has as many LiveKit connections as it takes.")
        connection = Connection(caller, self._new_log())
        slot = _Slot(key, connection)
        # The join belongs to the hub: whoever asked first may go away while others wait for it.
        slot.joining = self._start(self._join(slot, caller))
        slot.joining.add_done_callback(lambda _: self._forget_failed(slot))
        self._slots[key] = slot
        return slot

    async def _join(self, slot: _Slot, caller: Caller) -> None:
        connection = slot.connection

        def lost(reason: LostReason) -> None:
            logger.info("The connection to room %r as %r was lost: %s.", *slot.key, reason)
            connection.lost(reason)
            if not _CLOSING[reason].reconnect:
                self._remember_end(slot.key, connection.log.epoch, reason)
            self._forget(slot)

        def interrupted() -> None:
            logger.info("The connection to room %r as %r was broken for a while.", *slot.key)
            connection.log.interrupt(INTERRUPTION_NOTICED)

        listener = Listener(connection.log.append, interrupted, lost)
        room = await self._rooms.join(
            caller.room, caller.identity, caller.token, self._topics, listener
        )
        connection.joined(room)

    def _forget_failed(self, slot: _Slot) -> None:
        if not _joined(slot):
            self._forget(slot)

    def _forget(self, slot: _Slot) -> None:
        if self._slots.get(slot.key) is slot:
            del self._slots[slot.key]

    def _release(self, slot: _Slot) -> None:
        slot.users -= 1
        held = self._slots.get(slot.key) is slot
        if slot.users == 0 and held and slot.leaving is None:
            slot.linger = asyncio.get_running_loop().call_later(
                self._linger, self._leave, slot, ClosingReason.IDLE
            )

    def _leave(self, slot: _Slot, reason: ClosingReason) -> None:
        if slot.linger is not None:
            slot.linger.cancel()
            slot.linger = None
        if slot.leaving is None:
            slot.leaving = self._start(self._see_out(slot, reason))

    async def _see_out(self, slot: _Slot, reason: ClosingReason) -> None:
        try:
            await asyncio.wait({slot.joining})
            if _joined(slot):
                await slot.connection.leave(reason)
        finally:
            self._forget(slot)

    def _remember_end(self, key: Key, epoch: str, reason: LostReason) -> None:
        self._ends[key] = (epoch, reason)
        self._ends.move_to_end(key)
        if len(self._ends) > REMEMBERED_ENDS:
            self._ends.popitem(last=False)

    def _start(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        # A join's error is answered to the requests that wait for it; the operator is told as well.
        error = None if task.cancelled() else task.exception()
        if isinstance(error, GatewayError):
            logger.warning("A join failed: %s", error.detail)
        elif error is not None:
            logger.error("A connection failed in a way that it should not.", exc_info=error)


def _joined(slot: _Slot) -> bool:
    return not slot.joining.cancelled() and slot.joining.exception() is None
