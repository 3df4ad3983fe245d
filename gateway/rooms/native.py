"""The cure for what LiveKit's SDK costs: all that we touch of its private parts is in this file.

The stock SDK hands every event of its native library to every room and every request of the process,
subscribes to all of them for each text that is sent, and passes the library's debug log through Python.
Here an event goes to the one that it is for, found by the handle or the id that it carries; a send
waits for its own answer alone; and the log stays off. What nobody of ours has claimed goes the stock
way, so that stock rooms, readers and requests work beside ours.

Two facts do not come out of the SDK's public face either: a stream's header as it was sent
(`TextStreamInfo` drops reply_to_stream_id, version, operation and generated, and says 0 for an unknown
size), and the arrival of participant updates that change nothing, which is the echo of our own
announcement.

`cured_room` checks at start that the installed SDK has these parts (`sdk_parts.py`). If it lacks one,
the stock room is used, and one warning says what is lost.
"""

import asyncio
import ctypes
import logging
import math
import os
import signal
from collections import deque
from collections.abc import Callable
from ctypes import c_char_p, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from livekit import rtc

from gateway.rooms.base import StreamHeader, TextOptions
from gateway.rooms.sdk_parts import KEYS, ffi_client, ffi_pb2, missing_parts

logger = logging.getLogger(__name__)

sdk_logger = logging.getLogger("livekit")

ABANDONED = "sender_gave_up"
"""The reason that receivers see of a stream whose opening took longer than its sender waited."""

MAX_IN_FLIGHT = 64
"""Texts of one connection that the library works on at once; the others wait, in their order. It takes
what it is given without a bound; more at once are not sent faster (figures: from 4 on)."""

SWEEP = 1.0
"""Seconds between two looks for sends that have waited too long."""

Key = tuple[str, int]
"""The kind of a native event, and the handle or id in it that says for whom it is."""

_LOG_LEVELS = {0: logging.ERROR, 1: logging.WARNING}
"""Of the native library's levels, those that are passed on: below them it logs what users write."""

_NO_OPTIONS = rtc.RoomOptions()

_OPERATIONS = {0: "create", 1: "update", 2: "delete", 3: "reaction"}


def cured_room(*, log: bool = False) -> type[rtc.Room]:
    """The room to join with: NativeRoom if the installed SDK has the parts that we touch, else the stock one.

    To be called on the event loop on which the rooms are used. With `log`, the native library's
    warnings and errors come to Python's logging, tokens and all: our formatter takes them out.
    """
    if missing := missing_parts():
        logger.warning(
            "This version of the LiveKit SDK (%s) is another than we know (%s): connections to LiveKit"
            " cost more processor time and memory, reply_to_stream_id, version and operation of received"
            " streams are not shown, and first messages wait a little longer.",
            rtc.__version__,
            ", ".join(missing),
        )
        return rtc.Room
    _dispatch.install(asyncio.get_running_loop(), log)
    return NativeRoom


async def send_text(
    room: rtc.Room,
    text: str,
    options: TextOptions,
    *,
    sender_identity: str | None = None,
    stream_id: str | None = None,
    within: float,
) -> StreamHeader:
    """One stream with the whole text; returns when the SDK has taken it.

    `sender_identity`: on behalf of whom; the server lets agents do that. Raises rtc.StreamError, and
    TimeoutError after `within` seconds.
    """
    if isinstance(room, NativeRoom):
        return await room.send_text(text, options, sender_identity, stream_id, within)
    async with asyncio.timeout(within):
        return await _send_stock(room, text, options, sender_identity, stream_id)


async def _send_stock(
    room: rtc.Room,
    text: str,
    options: TextOptions,
    sender_identity: str | None,
    stream_id: str | None,
) -> StreamHeader:
    if sender_identity is None and stream_id is None:
        info = await room.local_participant.send_text(
            text,
            topic=options.topic,
            destination_identities=list(options.destination_identities),
            attributes=dict(options.attributes),
            reply_to_id=options.reply_to_stream_id,
        )
        return StreamHeader(info.stream_id, info.timestamp)
    # The public face of whole texts has neither option, that of streams has both.
    writer = await open_text_stream(
        room, options, sender_identity=sender_identity, stream_id=stream_id
    )
    if text:
        await writer.write(text)
    await writer.aclose()
    return StreamHeader(writer.info.stream_id, writer.info.timestamp)


async def open_text_stream(
    room: rtc.Room,
    options: TextOptions,
    *,
    sender_identity: str | None = None,
    stream_id: str | None = None,
) -> rtc.TextStreamWriter:
    """A stream that is open. Raises rtc.StreamError."""
    writer_class = _NativeWriter if isinstance(room, NativeRoom) else rtc.TextStreamWriter
    writer = writer_class(
        room.local_participant,
        topic=options.topic,
        destination_identities=list(options.destination_identities),
        attributes=dict(options.attributes),
        reply_to_id=options.reply_to_stream_id,
        sender_identity=sender_identity,
        stream_id=stream_id,
    )
    await writer._send_header()
    return writer


class _Dispatch:
    """Hands each native event to whom it is for. One per process, as the native library is."""

    def __init__(self) -> None:
        self._arrived: deque[bytes] = deque()
        self._scheduled = False
        self._loop: Any = None
        self._answers: dict[Key, tuple[asyncio.Future[Any], float]] = {}
        self._sweeping = False
        self._routes: dict[Key, Callable[[Any], None]] = {}
        # Kept for the life of the process: the library's threads may call it until the very end.
        self._callback: Any = None
        self._request: Any = None
        self._drop: Any = None
        self._response = c_void_p()
        self._response_size = c_size_t()
        self._response_at = ctypes.addressof(self._response)
        self._response_size_at = ctypes.addressof(self._response_size)

    def install(self, loop: asyncio.AbstractEventLoop, log: bool) -> None:
        if self._loop is not loop:
            # What is left is of an earlier loop, which has ended with its rooms.
            self._arrived.clear()
            self._routes.clear()
            self._answers.clear()
            self._scheduled = self._sweeping = False
            self._loop = loop
        if self._callback is None:
            # With its log off the library writes errors on standard error by itself, tokens and all,
            # unless it finds this; it looks once, when it is first used.
            os.environ["RUST_LOG"] = "off"
            self._callback = ffi_client.ffi_cb_fnc(self._on_arrival)
        library = ffi_client.FfiClient.instance._ffi_lib
        # By index a function is one of our own, whose types are not the SDK's.
        self._request = library["livekit_ffi_request"]
        self._request.argtypes = (c_char_p, c_size_t, c_void_p, c_void_p)
        self._request.restype = c_uint64
        self._drop = library["livekit_ffi_drop_handle"]
        self._drop.argtypes = (c_uint64,)
        # The SDK has initialized the library with a callback of its own; the later one counts.
        library.livekit_ffi_initialize(self._callback, log, b"python", rtc.__version__.encode())

    def route(self, key: Key, to: Callable[[Any], None]) -> None:
        """Events with that key go there from now on, and nowhere else."""
        self._routes[key] = to

    def unroute(self, key: Key) -> None:
        self._routes.pop(key, None)

    async def ask(self, request: Any, asked: str, answered: str, deadline: float = math.inf) -> Any:
        """Makes the native request `asked` and returns the event `answered`.

        Raises rtc.StreamError, or TimeoutError within a sweep of `deadline`, a time of the loop.
        """
        key = (answered, getattr(self.request(request), asked).async_id)
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._answers[key] = (answer, deadline)
        if not self._sweeping:
            self._sweep()
        try:
            event = await answer
        except asyncio.CancelledError:
            if not answer.cancelled():
                _abandon(answer.result())
            raise
        finally:
            if answered != "text_stream_open":  # which is abandoned when it comes
                self._answers.pop(key, None)
        body = getattr(event, answered)
        if body.HasField("error"):
            raise rtc.StreamError(body.error.description)
        return event

    def _sweep(self) -> None:
        """One timer for all that wait: one for each send costs as much as a tenth of the send."""
        self._sweeping = bool(self._answers)
        if self._sweeping:
            self._loop.call_later(SWEEP, self._sweep)
        now = self._loop.time()
        for answer, deadline in self._answers.values():
            if deadline < now and not answer.done():
                answer.set_exception(TimeoutError())

    def request(self, request: Any) -> Any:
        """The library's immediate response. What FfiClient.request does, in half of its time."""
        data = request.SerializeToString()
        handle = self._request(data, len(data), self._response_at, self._response_size_at)
        if not handle:
            raise RuntimeError("The LiveKit SDK does not take the request.")
        response = ctypes.string_at(self._response.value or 0, self._response_size.value)
        self._drop(handle)
        return ffi_pb2.FfiResponse.FromString(response)

    def _on_arrival(self, data: Any, length: int) -> None:
        """Called on the library's threads, which wait for the interpreter meanwhile: so it is short."""
        self._arrived.append(ctypes.string_at(data, length))
        # A loop that has been closed may have taken the last drain with it.
        if not self._scheduled or self._loop.is_closed():
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            # The loop is closed, and its rooms are gone; what still comes is for others, or for nobody.
            self._scheduled = False
            self._routes.clear()
            self._answers.clear()
            while (data := self._next()) is not None:
                self._dispatch(data)

    def _drain(self) -> None:
        # First of all: what arrives from here on is seen below, or schedules a drain of its own.
        self._scheduled = False
        try:
            for _ in range(len(self._arrived)):
                if (data := self._next()) is not None:
                    self._dispatch(data)
        finally:
            # An error of whoever was called goes to the loop, which logs it, and does not hold up the rest.
            if self._arrived and not self._scheduled:
                self._schedule()

    def _next(self) -> bytes | None:
        try:
            return self._arrived.popleft()
        except IndexError:
            return None

    def _dispatch(self, data: bytes) -> None:
        event = ffi_pb2.FfiEvent.FromString(data)
        kind = event.WhichOneof("message")
        if kind in KEYS:
            key = (kind, getattr(getattr(event, kind), KEYS[kind]))
            if (to := self._routes.get(key)) is not None:
                to(event)
                return
            if (waiting := self._answers.pop(key, None)) is not None:
                _answer(waiting[0], event)
                return
        if kind == "logs":
            _log(event.logs.records)
        elif kind == "panic":
            _end_process(event.panic.message)
        else:
            ffi_client.FfiClient.instance.queue.put(event)


def _log(records: Any) -> None:
    for record in records:
        if (level := _LOG_LEVELS.get(record.level)) is not None:
            sdk_logger.log(level, "%s: %s", record.target, record.message)


def _answer(answer: asyncio.Future[Any], event: Any) -> None:
    if answer.done():  # by cancellation or timeout
        _abandon(event)
    else:
        answer.set_result(event)


def _abandon(event: Any) -> None:
    """Closes a stream that was opened after nobody wanted it any more: it would stay open for ever."""
    if event.text_stream_open.HasField("writer"):
        request = ffi_pb2.FfiRequest()
        request.text_stream_close.writer_handle = event.text_stream_open.writer.handle.id
        request.text_stream_close.reason = ABANDONED
        _dispatch.request(request)


def _end_process(message: str) -> None:
    """What the stock SDK does: after a panic nothing that the library does can be counted on."""
    logger.critical("The native library of the LiveKit SDK has panicked: %s", message)
    os.kill(os.getpid(), signal.SIGTERM)


_dispatch = _Dispatch()


@dataclass(frozen=True, slots=True)
class NativeHeader:
    """What a stream's header carries beside what TextStreamInfo shows."""

    size: int | None
    reply_to_stream_id: str | None
    generated: bool
    operation: str
    version: int


class NativeRoom(rtc.Room):
    """A stock room whose events come to it alone, and which shows the two facts."""

    def __init__(self) -> None:
        super().__init__()
        self.on_participants_updated: Callable[[list[str]], None] | None = None
        self._sending = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def connect(self, url: str, token: str, options: rtc.RoomOptions = _NO_OPTIONS) -> None:
        await super().connect(url, token, options)
        # Nothing of this room can have passed by: the library holds its events back until the last step
        # of connect, and since then the loop has not run.
        ffi_client.FfiClient.instance.queue.unsubscribe(self._ffi_queue)
        handle: Any = self._ffi_handle
        routes: tuple[Key, ...] = (
            ("room_event", handle.handle),
            ("rpc_method_invocation", self.native_participant),
        )
        for key in routes:
            _dispatch.route(key, self._ffi_queue.put_nowait)

        def unroute(_: object) -> None:
            for key in routes:
                _dispatch.unroute(key)

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
        stream_id: str | None,
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
        if stream_id is not None:
            send.options.id = stream_id
        send.options.compress = True  # where every receiver can undo it; so does the stock SDK
        send.options.sender_identity = sender_identity or self.local_participant.identity
        deadline = self._loop.time() + within
        if self._sending.locked():
            async with asyncio.timeout_at(deadline):
                await self._sending.acquire()
        else:
            await self._sending.acquire()
        try:
            answer = await _dispatch.ask(request, "send_text", "send_text", deadline)
        finally:
            self._sending.release()
        return StreamHeader(answer.send_text.info.stream_id, answer.send_text.info.timestamp)

    def _on_room_event(self, event: Any) -> None:
        super()._on_room_event(event)
        if (
            self.on_participants_updated is not None
            and event.WhichOneof("message") == "participants_updated"
        ):
            updated = event.participants_updated.participants
            self.on_participants_updated([info.identity for info in updated])

    def _handle_text_stream_opened(self, opened: Any) -> None:
        handler: Any = self._text_stream_handlers.get(opened.reader.info.topic)
        if handler is None:
            super()._handle_text_stream_opened(opened)
            return
        handler(NativeReader(opened.reader, self._text_stream_readers), opened.participant_identity)


class NativeReader:
    """A stream that has been opened to us, to be either followed or closed at once.

    It has no queue and no task, as the stock reader has: it calls as the events come.
    """

    def __init__(self, owned: Any, readers: dict[int, Any]) -> None:
        """`readers`: those that are open in the room, by handle; this one is while it is among them."""
        self._handle: int = owned.handle.id
        self._readers = readers
        self._readers[self._handle] = self
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
        self._chunk = chunk
        self._ended = ended
        self._reading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading.add_done_callback(lambda _: self._signal_disconnect())
        _dispatch.route(("text_stream_reader_event", self._handle), self._on_event)
        request = ffi_pb2.FfiRequest()
        # From here on the library owns the handle; an unfollowed stream's is ours.
        request.text_read_incremental.reader_handle = self._handle
        _dispatch.request(request)
        return self._reading

    def close(self) -> None:
        """In place of following: what the library holds of the stream is let go."""
        del self._readers[self._handle]
        ffi_client.FfiHandle(self._handle).dispose()

    def _on_event(self, event: Any) -> None:
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
        _dispatch.unroute(("text_stream_reader_event", self._handle))
        if not self._reading.done():
            self._reading.set_result(None)
        self._ended(error)


class _NativeWriter(rtc.TextStreamWriter):
    """A stock writer that waits for its own answers alone."""

    async def _wait_for_callback(self, req: Any, callback_field: str, response_field: str) -> Any:
        return await _dispatch.ask(req, response_field, callback_field)


def _native_header(info: Any) -> NativeHeader:
    return NativeHeader(
        size=info.total_length if info.HasField("total_length") else None,
        reply_to_stream_id=info.reply_to_stream_id or None,
        generated=info.generated,
        operation=_OPERATIONS.get(info.operation_type, "create"),
        version=info.version,
    )
