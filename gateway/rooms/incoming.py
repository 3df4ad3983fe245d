"""The text streams of others that are open towards one connection: told as they come, to their end."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from livekit import rtc

from gateway.errors import LiveKitUnavailable
from gateway.events import StreamClosed, StreamEvent, StreamOpened
from gateway.rooms.base import (
    MAX_OPEN_INCOMING,
    MAX_OPEN_OF_SENDER,
    TOO_MANY_OPEN,
    Participant,
)
from gateway.rooms.closings import Closings, Place
from gateway.rooms.native.room import NativeReader, NativeRoom
from gateway.tally import StreamTally

END_TIMEOUT = 3.0
"""Seconds for the readers to tell the ends of their streams once the connection has ended; it takes one
turn of the event loop."""

SWEEP = 5.0
"""Seconds between looks at the streams that are open to us, and after which a quiet one is looked at:
longer than LiveKit takes to tell of who has come."""

GONE_QUIET = 30.0
"""Seconds that nothing comes on the stream of somebody who is not in the room until it counts as
forgotten: who is sent for by an administrator need not be there."""

SENDER_DISCONNECTED = "sender_disconnected"
"""The reason of a stream whose sender went away in the middle of it."""

IDLE = "idle"
"""The reason of a stream that nothing came on for too long."""

_ABORTED = "stream closed abnormally: "
"""How the SDK begins to describe an end with a reason in its trailer, and that of a sender that is gone."""


class IncomingStreams:
    """Reads each stream that is opened to us to its end, always: what nobody reads is held for ever."""

    def __init__(
        self,
        sdk_room: rtc.Room,
        emit: Callable[[StreamEvent], None],
        find_participant: Callable[[str], Awaitable[Participant | None]],
        idle_timeout: float,
    ) -> None:
        """`find_participant`: by identity, as the server knows it; may raise LiveKitUnavailable.

        `idle_timeout`: seconds after which a stream is ended that nothing comes on.
        """
        self._sdk_room = sdk_room
        self._emit = emit
        self._find_participant = find_participant
        self._idle_timeout = idle_timeout
        self._closings = Closings()
        if isinstance(sdk_room, NativeRoom):
            sdk_room.on_stream_chunk = self._closings.chunk
            sdk_room.on_stream_trailer = self._closings.trailer
        self._readers: dict[asyncio.Future[None], _Incoming] = {}
        self._last: dict[tuple[str, str], _Incoming] = {}
        """The latest of each sender and id, until its closing has been told."""
        self._open_of: Counter[str] = Counter()
        self._sweeping: asyncio.Task[None] | None = None

    def open(self, reader: rtc.TextStreamReader | NativeReader, sender: str) -> None:
        """What the SDK calls for each stream on a registered topic."""
        opened = _opened(reader, sender)
        stream = _Incoming(
            StreamTally(opened), reader.info, self._emit, self._closings, self._on_closed
        )
        if (earlier := self._last.get(stream.key)) is not None:
            earlier.next = stream
            stream.held = []
        stream.tell(opened)
        self._last[stream.key] = stream
        self._open_of[sender] += 1
        if self._open_of[sender] > MAX_OPEN_OF_SENDER or len(self._readers) >= MAX_OPEN_INCOMING:
            reader.close()
            stream.give_up(TOO_MANY_OPEN)
            return
        if isinstance(reader, NativeReader):
            whole = reader.header.size is not None
            stream.place = self._closings.opened(*stream.key, whole=whole)
            reading = reader.follow(stream.chunk, stream.ended)
        else:
            reading = asyncio.create_task(_read(reader, stream))
        self._readers[reading] = stream
        reading.add_done_callback(self._readers.pop)
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweep())

    async def end(self) -> None:
        """Once the connection has ended: returns when the ends of all streams have been told."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._readers:
            _, unfinished = await asyncio.wait(self._readers, timeout=END_TIMEOUT)
            for reader in unfinished:
                reader.cancel()
            if unfinished:
                await asyncio.wait(unfinished)
        self._closings.flush()

    def _on_closed(self, stream: "_Incoming", event: StreamClosed) -> None:
        self._open_of[stream.sender] -= 1
        if not self._open_of[stream.sender]:
            del self._open_of[stream.sender]
        try:
            stream.tell(event)
        finally:
            if stream.held is None:
                self._let_next_speak(stream)

    def _let_next_speak(self, stream: "_Incoming") -> None:
        """The next stream of the same id, and so on, as long as they are closed as well."""
        while stream.closed:
            if stream.next is None:
                del self._last[stream.key]
                return
            stream = stream.next
            stream.speak()

    async def _sweep(self) -> None:
        """Ends the streams that the SDK would hold open for ever, while there are any that are open.

        Seen: who joins, opens a stream and leaves within a second is never announced, and so never
        told to have gone.
        """
        while self._readers:
            await asyncio.sleep(SWEEP)
            now = time.monotonic()
            quiet = [
                reading
                for reading, stream in self._readers.items()
                if now - stream.heard_at >= SWEEP
            ]
            senders = {self._readers[reading].sender for reading in quiet}
            gone = {sender for sender in senders if await self._is_gone(sender)}
            now = time.monotonic()
            for reading in quiet:
                if (stream := self._readers.get(reading)) is None:
                    continue
                if stream.sender in gone and now - stream.heard_at >= GONE_QUIET:
                    stream.give_up(SENDER_DISCONNECTED)
                elif now - stream.heard_at >= self._idle_timeout:
                    stream.give_up(IDLE)
                else:
                    continue
                reading.cancel()

    async def _is_gone(self, sender: str) -> bool:
        if sender in self._sdk_room.remote_participants:
            return False  # and if it goes, the SDK ends its streams
        try:
            return await self._find_participant(sender) is None
        except LiveKitUnavailable:
            return False  # not known; the next look tells


@dataclass(slots=True, eq=False)
class _Incoming:
    """A stream that is open to us, told as it comes, and always to its end."""

    tally: StreamTally
    info: rtc.TextStreamInfo
    """Its attributes are those of the end once that has come."""
    emit: Callable[[StreamEvent], None]
    closings: Closings
    on_closed: Callable[["_Incoming", StreamClosed], None]
    place: Place | None = None
    next: "_Incoming | None" = None
    """Of the same id, opened before our closing was told."""
    held: list[StreamEvent] | None = None
    """What is told of us once the closing of the stream before us with the same id has been."""
    heard_at: float = field(default_factory=time.monotonic)
    over: bool = False
    closed: bool = False

    @property
    def sender(self) -> str:
        return self.tally.opened.participant_identity

    @property
    def key(self) -> tuple[str, str]:
        return self.sender, self.info.stream_id

    def tell(self, event: StreamEvent) -> None:
        if self.held is None:
            self.emit(event)
        else:
            self.held.append(event)

    def speak(self) -> None:
        held, self.held = self.held, None
        for event in held or ():
            self.emit(event)

    def chunk(self, text: str) -> None:
        self.tell(self.tally.chunk(text))
        self.heard_at = time.monotonic()

    def ended(self, error: str | None) -> None:
        if error is None:
            self._end(None)
        else:
            reason = _abnormal_end(error)
            by_sender = error.startswith(_ABORTED) and reason != SENDER_DISCONNECTED
            self._end(reason, at_once=not by_sender)

    def give_up(self, reason: str) -> None:
        """It is over for us; whoever reads it stops now."""
        self._end(reason, at_once=True)

    def _end(self, reason: str | None, *, at_once: bool = False) -> None:
        if self.over:
            return
        self.over = True
        if self.place is None:
            self._close(reason)
        else:
            self.closings.ended(self.place, partial(self._close, reason), at_once=at_once)

    def _close(self, reason: str | None) -> None:
        self.closed = True
        self.on_closed(self, self.tally.closed(reason, dict(self.info.attributes or {})))


async def _read(reader: rtc.TextStreamReader, stream: _Incoming) -> None:
    """Reads the stream to its end, always: an unread one is held by the SDK for ever."""
    error: str | None = "disconnected"
    try:
        async for text in reader:
            stream.chunk(text)
        error = None
    except rtc.StreamError as failure:
        error = failure.description
    finally:
        reader.close()
        stream.ended(error)


def _opened(reader: rtc.TextStreamReader | NativeReader, sender: str) -> StreamOpened:
    info = reader.info
    header = reader.header if isinstance(reader, NativeReader) else None
    return StreamOpened(
        stream_id=info.stream_id,
        topic=info.topic,
        participant_identity=sender,
        timestamp=info.timestamp,
        size=header.size if header else info.size or None,
        mime_type=info.mime_type,
        attributes=dict(info.attributes or {}),
        reply_to_stream_id=header.reply_to_stream_id if header else None,
        attached_stream_ids=tuple(info.attachments),
        generated=header.generated if header else False,
        operation=header.operation if header else "create",
        version=header.version if header else 0,
    )


def _abnormal_end(description: str) -> str:
    """The sender's own reason where it gave one, else a word for what happened."""
    reason = description.removeprefix(_ABORTED)
    if reason.endswith("unexpectedly disconnected in the middle of sending data"):
        return SENDER_DISCONNECTED
    if reason == "Disconnected while receiving":
        return "disconnected"
    return reason
