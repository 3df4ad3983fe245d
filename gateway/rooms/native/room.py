"""Rooms, readers and writers whose events come to them alone."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from livekit import rtc

from gateway.rooms.base import StreamHeader, TextOptions
from gateway.rooms.native.dispatch import DISPATCH, Key
from gateway.rooms.native.parts import ffi_client, ffi_pb2

MAX_IN_FLIGHT = 256
"""Texts of one connection that the library works on at once; the others wait, in their order. It takes
what it is given without a bound, and sends 256 at once as fast as 4 (docs: figures). Of each connection,
not of the process: one that is broken must not hold up the others."""

_NO_OPTIONS = rtc.RoomOptions()

_PACKETS = {"stream_header_received", "stream_chunk_received", "stream_trailer_received"}
"""The room events that tell of the packets which text and byte streams are made of."""

_OPERATIONS = {0: "create", 1: "update", 2: "delete", 3: "reaction"}

_OPERATION_TYPES = {word: number for number, word in _OPERATIONS.items()}

W = TypeVar("W", bound=rtc.TextStreamWriter)


@dataclass(frozen=True, slots=True)
class NativeHeader:
    """What a stream's header carries beside what TextStreamInfo shows."""

    size: int | None
    reply_to_stream_id: str | None
    generated: bool
    operation: str
    version: int


class NativeRoom(rtc.Room):
    """A stock room whose events come to it alone, and which shows the three facts.

    It publishes no tracks: the stock room waits for the events of its own tracks where ours do not pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_participants_updated: Callable[[list[str]], None] | None = None
        self.on_stream_chunk: Callable[[str], None] | None = None
        self.on_stream_trailer: Callable[[str], None] | None = None
        self.on_stream_piece: Callable[[str, str], None] | None = None
        self._sending = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def connect(self, url: str, token: str, options: rtc.RoomOptions = _NO_OPTIONS) -> None:
        await super().connect(url, token, options)
        # Nothing of this room can have passed by: the library holds its events back until the last step
        # of connect, and since then the loop has not run.
        ffi_client.FfiClient.instance.queue.unsubscribe(self._ffi_queue)
        handle: Any = self._ffi_handle
        routes: dict[Key, Callable[[Any], None]] = {
            ("room_event", handle.handle): self._take,
            ("rpc_method_invocation", self.native_participant): self._ffi_queue.put_nowait,
        }
        for key, to in routes.items():
            DISPATCH.route(key, to)

        def unroute(_: object) -> None:
            for key in routes:
                DISPATCH.unroute(key)

        self._task.add_done_callback(unroute)

    @property
    def native_participant(self) -> int:
        handle: int = self.local_participant._ffi_handle.handle
        return handle

    async def send_text(
        self,
        text: str,
        options: TextOptions,
        sender_identity: str | None,
        within: float,
    ) -> StreamHeader:
        request = ffi_pb2.FfiRequest()
        send = request.send_text
        send.local_participant_handle = self.native_participant
        send.text = text
        send.options.topic = options.topic
        if options.attributes:
            send.options.attributes.update(options.attributes)
        if options.destination_identities:
            send.options.destination_identities.extend(options.destination_identities)
        if options.reply_to_stream_id:
            send.options.reply_to_stream_id = options.reply_to_stream_id
        if options.stream_id is not None:
            send.options.id = options.stream_id
        _add_hidden(send.options, options)
        send.options.compress = True  # where every receiver can undo it; so does the stock SDK
        send.options.sender_identity = sender_identity or self.local_participant.identity
        deadline = self._loop.time() + within
        if self._sending.locked():
            async with asyncio.timeout_at(deadline):
                await self._sending.acquire()
        else:
            await self._sending.acquire()
        try:
            answer = await DISPATCH.ask(request, "send_text", "send_text", deadline)
        finally:
            self._sending.release()
        return StreamHeader(answer.send_text.info.stream_id, answer.send_text.info.timestamp)

    async def open_text_stream(
        self, options: TextOptions, sender_identity: str | None
    ) -> "NativeWriter":
        writer = stock_writer(NativeWriter, self, options, sender_identity)
        _add_hidden(writer._options, options)
        await writer._send_header()
        return writer

    async def send_trailer(
        self, stream_id: str, options: TextOptions, sender_identity: str, reason: str
    ) -> None:
        """Ends a stream as its sender, also where that one cannot; the server lets agents do that."""
        request = ffi_pb2.FfiRequest()
        send = request.send_stream_trailer
        send.local_participant_handle = self.native_participant
        send.sender_identity = sender_identity
        send.destination_identities.extend(options.destination_identities)
        send.trailer.stream_id = stream_id
        send.trailer.reason = reason
        await DISPATCH.ask(request, "send_stream_trailer", "send_stream_trailer")

    def _take(self, event: Any) -> None:
        """At once: by the stock room's queue and task it would wait for whatever else is ready to run, as the answers to texts
        that have been sent."""
        if event.room_event.HasField("eos"):
            self._ffi_queue.put_nowait(event)  # which ends that task
        else:
            self._on_room_event(event.room_event)

    def _on_room_event(self, event: Any) -> None:
        kind = event.WhichOneof("message")
        if kind in _PACKETS:  # the stock room does nothing with them
            self._on_packet(kind, getattr(event, kind))
            return
        super()._on_room_event(event)
        if self.on_participants_updated is not None and kind == "participants_updated":
            updated = event.participants_updated.participants
            self.on_participants_updated([info.identity for info in updated])

    def _on_packet(self, kind: str, packet: Any) -> None:
        """A sender's chunks and trailers come in its order, and so do they with the openings of streams;
        headers come before what was sent before them (seen: 141 of 300). Whose they are is told by the
        opening alone: those of a stream on behalf of another have the real sender's identity, or none."""
        if kind == "stream_chunk_received":
            stream_id, told = packet.chunk.stream_id, self.on_stream_chunk
        elif kind == "stream_trailer_received":
            stream_id, told = packet.trailer.stream_id, self.on_stream_trailer
        else:
            return
        if told is not None:
            told(stream_id)
        if self.on_stream_piece is not None:
            self.on_stream_piece(stream_id, packet.participant_identity)

    def _handle_text_stream_opened(self, opened: Any) -> None:
        handler: Any = self._text_stream_handlers.get(opened.reader.info.topic)
        if handler is None:
            super()._handle_text_stream_opened(opened)
            return
        reader = NativeReader(opened.reader, self._text_stream_readers)
        try:
            handler(reader, opened.participant_identity)
        finally:
            # After an error of the handler's, nobody else would.
            if reader.unread:
                reader.close()


class NativeReader:
    """A stream that has been opened to us, to be either followed or closed at once.

    It has no queue and no task, as the stock reader has: it calls as the events come.
    """

    def __init__(self, owned: Any, readers: dict[int, Any]) -> None:
        """`readers`: those that are open in the room, by handle; this one is while it is among them."""
        self._handle: int = owned.handle.id
        self._readers = readers
        self._readers[self._handle] = self
        self.unread = True
        native = owned.info
        self.header = _native_header(native)
        self.info = rtc.TextStreamInfo(
            stream_id=native.stream_id,
            mime_type=native.mime_type,
            topic=native.topic,
            timestamp=native.timestamp,
            size=self.header.size,
            attributes=dict(native.attributes),
            attachments=list(native.attached_stream_ids),
        )

    def follow(
        self, chunk: Callable[[str], None], ended: Callable[[str | None], None]
    ) -> asyncio.Future[None]:
        """Calls `chunk` with each piece, and `ended` once: with None, or with the error's description.

        What it returns is done with the stream; cancelling it ends the stream as disconnected.
        """
        self.unread = False
        self._chunk = chunk
        self._ended = ended
        self._reading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading.add_done_callback(lambda _: self._signal_disconnect())
        DISPATCH.route(("text_stream_reader_event", self._handle), self._on_event)
        request = ffi_pb2.FfiRequest()
        # From here on the library owns the handle; an unfollowed stream's is ours.
        request.text_read_incremental.reader_handle = self._handle
        DISPATCH.request(request)
        return self._reading

    def close(self) -> None:
        """In place of following: what the library holds of the stream is let go."""
        self.unread = False
        del self._readers[self._handle]
        ffi_client.FfiHandle(self._handle).dispose()

    def _on_event(self, event: Any) -> None:
        if (
            self._reading.done()
        ):  # cancelled: nothing may follow the end that its canceller has told of
            return
        body = event.text_stream_reader_event
        if body.HasField("eos"):
            trailer = dict(body.eos.attributes)
            self.info.attributes = {**(self.info.attributes or {}), **trailer}
            self._end(body.eos.error.description if body.eos.HasField("error") else None)
        elif body.chunk_received.content:
            self._chunk(body.chunk_received.content)

    def _signal_disconnect(self) -> None:
        """The stock room calls it at the end of the connection, of all readers that are open."""
        self._end("Disconnected while receiving")

    def _end(self, error: str | None) -> None:
        if self._readers.pop(self._handle, None) is None:
            return
        DISPATCH.unroute(("text_stream_reader_event", self._handle))
        if not self._reading.done():
            self._reading.set_result(None)
        self._ended(error)


class NativeWriter(rtc.TextStreamWriter):
    """A stock writer that waits for its own answers alone."""

    async def _wait_for_callback(self, req: Any, callback_field: str, response_field: str) -> Any:
        return await DISPATCH.ask(req, response_field, callback_field)


def stock_writer(
    kind: type[W], room: rtc.Room, options: TextOptions, sender_identity: str | None
) -> W:
    """A writer, not open yet, with what the SDK's public face can say."""
    return kind(
        room.local_participant,
        topic=options.topic,
        destination_identities=list(options.destination_identities),
        attributes=dict(options.attributes),
        reply_to_id=options.reply_to_stream_id,
        sender_identity=sender_identity,
        stream_id=options.stream_id,
    )


def _add_hidden(native: Any, options: TextOptions) -> None:
    """What the library takes and the SDK's public face hides; most texts have none of it."""
    if options.operation != "create":
        native.operation_type = _OPERATION_TYPES[options.operation]
    if options.version:
        native.version = options.version
    if options.generated:
        native.generated = True
    if options.attached_stream_ids:
        native.attached_stream_ids.extend(options.attached_stream_ids)


def _native_header(info: Any) -> NativeHeader:
    return NativeHeader(
        size=info.total_length if info.HasField("total_length") else None,
        reply_to_stream_id=info.reply_to_stream_id or None,
        generated=info.generated,
        operation=_OPERATIONS.get(info.operation_type, "create"),
        version=info.version,
    )
