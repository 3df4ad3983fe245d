"""The cure for what LiveKit's SDK costs, and what becomes of us where it cannot be had."""

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from livekit import api, rtc
from livekit.rtc._proto import ffi_pb2, room_pb2

from gateway.events import (
    Happening,
    StreamChunk,
    StreamClosed,
    StreamEvent,
    StreamOpened,
)
from gateway.rooms import closings, native
from gateway.rooms.base import Listener, Room, TextOptions
from gateway.rooms.livekit import LiveKitRooms, _LiveKitRoom
from gateway.rooms.native import cured_room, dispatch as dispatch_module, parts, room as room_module
from gateway.rooms.native.dispatch import ABANDONED, DISPATCH
from gateway.rooms.native.inbox import CompiledInbox
from gateway.rooms.native.room import NativeRoom
from gateway.rooms.tokens import mint
from tests.polling import poll_until
from tests.running_gateway import DEADLINE, livekit_token
from tools.livekit_server import LiveKitServer

FFI_EVENTS = """
    audio_stream_event byte_stream_open byte_stream_reader_event byte_stream_reader_read_all
    byte_stream_reader_write_to_file byte_stream_writer_close byte_stream_writer_write
    capture_audio_frame capture_source_event chat_message connect data_track_stream_event
    define_schema disconnect dispose get_schema get_session_stats get_stats logs new_capture_source
    panic perform_rpc publish_data publish_data_track publish_sip_dtmf publish_track
    publish_transcription room_event rpc_method_invocation send_bytes send_file send_stream_chunk
    send_stream_header send_stream_trailer send_text set_local_attributes set_local_metadata
    set_local_name simulate_scenario text_stream_open text_stream_reader_event
    text_stream_reader_read_all text_stream_writer_close text_stream_writer_write track_event
    unpublish_track video_stream_event
    """

ROOM_EVENTS = """
    active_speakers_changed byte_stream_opened chat_message connection_quality_changed
    connection_state_changed data_channel_low_threshold_changed data_packet_received
    data_track_published data_track_unpublished disconnected e2ee_state_changed eos
    local_track_published local_track_republished local_track_subscribed local_track_unpublished
    moved participant_active participant_attributes_changed participant_connected
    participant_disconnected participant_encryption_status_changed participant_metadata_changed
    participant_name_changed participant_permission_changed participants_updated reconnected
    reconnecting room_metadata_changed room_sid_changed room_updated stream_chunk_received
    stream_header_received stream_trailer_received text_stream_opened token_refreshed track_muted
    track_published track_subscribed track_subscription_failed track_unmuted track_unpublished
    track_unsubscribed transcription_received
    """

READER_EVENTS = {"chunk_received", "eos"}


def kinds(message: Any, oneof: str) -> set[str]:
    return {field.name for field in message.DESCRIPTOR.oneofs_by_name[oneof].fields}


def test_an_sdk_with_other_events_announces_itself() -> None:
    """Look what the new ones say, and to whom they belong (KEYS), before they are listed here."""
    reader_event = ffi_pb2.FfiEvent().text_stream_reader_event

    assert kinds(ffi_pb2.FfiEvent, "message") == set(FFI_EVENTS.split())
    assert kinds(room_pb2.RoomEvent, "message") == set(ROOM_EVENTS.split())
    assert kinds(type(reader_event), "detail") == READER_EVENTS


async def test_the_installed_sdk_has_the_parts_that_we_touch() -> None:
    assert parts.missing_parts() == []
    assert cured_room() is NativeRoom


def _without_method(patch: pytest.MonkeyPatch) -> str:
    patch.delattr(rtc.Room, "_error_stream_readers")
    return "Room._error_stream_readers"


def _with_other_parameters(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(rtc.Room, "_handle_text_stream_opened", lambda self, opened, more: None)
    return "Room._handle_text_stream_opened"


def _without_attribute(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(rtc.LocalParticipant, "send_text", lambda self: self.handle)
    return "_ffi_handle in LocalParticipant.send_text"


def _without_field(patch: pytest.MonkeyPatch) -> str:
    patch.setitem(parts._FIELDS, "FfiEvent", ["send_text.receipt"])
    return "FfiEvent.send_text.receipt"


def _without_module(patch: pytest.MonkeyPatch) -> str:
    assert parts._module("_no_such_module") is None
    patch.setattr(parts, "ffi_pb2", parts._module("_no_such_module"))
    return "FfiRequest.send_text.text"


@pytest.mark.parametrize(
    "change",
    [
        _without_method,
        _with_other_parameters,
        _without_attribute,
        _without_field,
        _without_module,
    ],
)
async def test_another_sdk_is_used_by_its_public_face_with_one_warning(
    change: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    part = change(monkeypatch)

    assert cured_room() is rtc.Room
    (record,) = [record for record in caplog.records if record.name.startswith("gateway")]
    assert record.levelno == logging.WARNING
    assert part in record.message


class Ears:
    """What one participant's listener heard."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[StreamEvent] = asyncio.Queue()

    def listener(self) -> Listener:
        return Listener(self._hear, lambda: None, lambda: None, lambda reason: None)

    def _hear(self, event: Happening) -> None:
        if isinstance(event, StreamEvent):
            self.heard.put_nowait(event)

    async def next(self) -> StreamEvent:
        async with asyncio.timeout(DEADLINE):
            return await self.heard.get()

    async def closed(self) -> StreamClosed:
        """The end of the next stream."""
        while not isinstance(event := await self.next(), StreamClosed):
            pass
        return event

    async def opened(self, count: int) -> list[StreamOpened]:
        """The next streams, once all of them are closed again."""
        opened: list[StreamOpened] = []
        closed = 0
        while closed < count:
            event = await self.next()
            if isinstance(event, StreamOpened):
                opened.append(event)
            closed += isinstance(event, StreamClosed)
        return opened


class Joined:
    def __init__(self, rooms: LiveKitRooms, server: LiveKitServer, name: str) -> None:
        self.rooms = rooms
        self.server = server
        self.name = name
        self._stack = AsyncExitStack()

    async def join(
        self, identity: str, listener: Listener | None = None, token: str | None = None
    ) -> _LiveKitRoom:
        token = token or livekit_token(self.server, self.name, identity)
        room = await self.rooms.join(
            self.name, identity, token, ("t",), listener or Ears().listener()
        )
        assert isinstance(room, _LiveKitRoom)
        self._stack.push_async_callback(room.leave)
        return room

    async def leave(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def _joined(server: LiveKitServer, name: str) -> AsyncIterator[Joined]:
    rooms = LiveKitRooms(server.url, server.api_key, server.api_secret, max_stream_bytes=1 << 20)
    joined = Joined(rooms, server, name)
    try:
        yield joined
    finally:
        await joined.leave()
        await rooms.aclose()


@pytest.fixture(params=[pytest.param("compiled", marks=pytest.mark.needs("cc")), "interpreted"])
def inbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of the library is heard from here on comes by that way."""
    compiled = request.param == "compiled"
    monkeypatch.setattr(DISPATCH, "_inbox", CompiledInbox() if compiled else DISPATCH._interpreted)


@pytest.fixture
async def side(inbox: None, livekit: LiveKitServer, room: str) -> AsyncIterator[Joined]:
    async with _joined(livekit, room) as joined:
        yield joined


async def test_an_agent_sends_on_behalf_of_another(
    side: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closings, "TURN_TIMEOUT", 60.0)  # the trailers of such streams are found
    await _sends_on_behalf(side)


async def test_an_agent_sends_on_behalf_of_another_by_the_public_face_as_well(
    unknown_sdk: None, livekit: LiveKitServer, room: str
) -> None:
    async with _joined(livekit, room) as side:
        await _sends_on_behalf(side)


async def _sends_on_behalf(side: Joined) -> None:
    bob = Ears()
    await side.join("bob", bob.listener())
    token = (
        api.AccessToken(side.server.api_key, side.server.api_secret)
        .with_identity("observer")
        .with_kind("agent")
        .with_ttl(timedelta(minutes=5))
        .with_grants(api.VideoGrants(room_join=True, room=side.name, hidden=True))
        .to_jwt()
    )
    observer = (await side.join("observer", token=token)).sdk_room
    header = await native.send_text(
        observer,
        "for carol",
        TextOptions("t", stream_id="of-carol"),
        sender_identity="carol",
        within=DEADLINE,
    )
    writer = await native.open_text_stream(
        observer, TextOptions("t", stream_id="of-dave"), sender_identity="dave"
    )
    await writer.write("half")
    await writer.aclose()
    told = await bob.opened(2)

    assert header.stream_id == "of-carol"
    assert [(each.participant_identity, each.stream_id) for each in told] == [
        ("carol", "of-carol"),
        ("dave", "of-dave"),
    ]


async def test_sends_beyond_the_bound_wait_in_their_order(
    livekit: LiveKitServer, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "MAX_IN_FLIGHT", 1)
    async with _joined(livekit, room) as side:
        bob = Ears()
        await side.join("bob", bob.listener())
        carol = await side.join("carol")
        await carol.send_text("the first", TextOptions("t"))
        headers = await asyncio.gather(
            *(carol.send_text(str(number), TextOptions("t")) for number in range(30))
        )
        told = await bob.opened(31)

    assert [each.stream_id for each in told[1:]] == [header.stream_id for header in headers]


async def test_a_send_that_waits_too_long_for_its_turn_is_given_up(
    livekit: LiveKitServer, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "MAX_IN_FLIGHT", 0)
    async with _joined(livekit, room) as side:
        carol = await side.join("carol")
        with pytest.raises(TimeoutError):
            await native.send_text(carol.sdk_room, "x", TextOptions("t"), within=0)


async def test_an_answer_that_does_not_come_is_given_up(
    side: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody hands us the answer to a request for statistics: it stands for one that never comes."""
    monkeypatch.setattr(dispatch_module, "SWEEP", 0.01)
    carol = await side.join("carol")
    assert carol.sdk_room._ffi_handle is not None
    request = ffi_pb2.FfiRequest()
    request.get_session_stats.room_handle = carol.sdk_room._ffi_handle.handle
    with pytest.raises(TimeoutError):
        await DISPATCH.ask(request, "get_session_stats", "get_session_stats", deadline=0)

    assert not DISPATCH._answers


async def test_a_cancelled_send_leaves_nothing_behind(side: Joined) -> None:
    carol = await side.join("carol")
    await carol.send_text("the first", TextOptions("t"))
    sending = asyncio.create_task(carol.send_text("x", TextOptions("t")))
    await poll_until(lambda: DISPATCH._answers, every=0)  # it may be answered at once
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending

    assert not DISPATCH._answers


async def test_a_stream_that_opens_after_its_sender_gave_up_is_closed(side: Joined) -> None:
    bob = Ears()
    await side.join("bob", bob.listener())
    carol = await side.join("carol")
    await carol.send_text("the first", TextOptions("t"))
    await bob.opened(1)
    opening = asyncio.create_task(carol.open_text_stream(TextOptions("t")))
    await poll_until(lambda: DISPATCH._answers, every=0)  # it may be answered at once
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    opened, closed = await bob.next(), await bob.next()

    assert isinstance(opened, StreamOpened)
    assert isinstance(closed, StreamClosed)
    assert (closed.complete, closed.reason) == (False, ABANDONED)


async def test_what_the_library_refuses_is_an_error(side: Joined) -> None:
    request = ffi_pb2.FfiRequest()
    request.text_read_incremental.reader_handle = 1 << 60
    with pytest.raises(RuntimeError):
        DISPATCH.request(request)


async def test_after_leaving_no_event_has_an_address_any_more(side: Joined) -> None:
    bob = Ears()
    await side.join("bob", bob.listener())
    carol = await side.join("carol")
    await carol.open_text_stream(TextOptions("t"))
    await bob.next()
    assert DISPATCH._routes
    await side.leave()

    assert not DISPATCH._routes


async def test_an_error_of_a_listener_is_reported_and_holds_up_nobody(side: Joined) -> None:
    async def sent() -> None:
        await carol.send_text("text", TextOptions("t"))

    failed: asyncio.Queue[Any] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: failed.put_nowait(context["exception"])
    )

    def fail(event: Happening) -> None:
        if isinstance(event, StreamChunk | StreamClosed):
            raise ValueError(event)

    bob = Ears()
    await side.join("mallory", Listener(fail, lambda: None, lambda: None, lambda reason: None))
    await side.join("bob", bob.listener())
    carol = await side.join("carol")
    await asyncio.gather(sent(), sent())
    await bob.opened(2)
    async with asyncio.timeout(DEADLINE):
        errors = [await failed.get() for _ in range(4)]

    assert all(isinstance(error, ValueError) for error in errors)


async def test_a_listener_that_fails_at_the_opening_of_a_stream_leaves_no_reader(
    side: Joined,
) -> None:
    failed: asyncio.Queue[Any] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: failed.put_nowait(context["exception"])
    )

    def fail(event: Happening) -> None:
        if isinstance(event, StreamOpened):
            raise ValueError(event.stream_id)

    bob = Ears()
    mallory = await side.join(
        "mallory", Listener(fail, lambda: None, lambda: None, lambda reason: None)
    )
    await side.join("bob", bob.listener())
    carol = await side.join("carol")
    header = await carol.send_text("text", TextOptions("t"))
    await bob.opened(1)
    async with asyncio.timeout(DEADLINE):
        error = await failed.get()

    assert error.args == (header.stream_id,)
    assert not mallory.sdk_room._text_stream_readers


async def test_an_id_that_is_used_again_is_opened_after_it_was_closed(side: Joined) -> None:
    """Sent at once, many are opened before the end of the one before has been heard of."""

    async def sent() -> None:
        await native.send_text(
            carol.sdk_room, "text", TextOptions("t", stream_id="same"), within=DEADLINE
        )

    bob = Ears()
    await side.join("bob", bob.listener())
    carol = await side.join("carol")
    await asyncio.gather(*(sent() for _ in range(100)))
    heard = [await bob.next() for _ in range(300)]

    assert [type(event) for event in heard] == 100 * [StreamOpened, StreamChunk, StreamClosed]


async def test_a_stream_that_ends_without_a_trailer_holds_up_no_other(
    side: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closings, "TURN_TIMEOUT", 60.0)  # nobody waits so long
    bob = Ears()
    await side.join("bob", bob.listener())
    carol = await side.join("carol")
    too_long = await carol.open_text_stream(TextOptions("t"))
    others = [await carol.open_text_stream(TextOptions("t")) for _ in range(10)]
    await too_long.write("x" * ((1 << 20) + 1))
    for writer in others:
        await writer.close()
    closed = [await bob.closed() for _ in range(11)]
    (broken,) = [each for each in closed if not each.complete]
    closed.remove(broken)

    assert broken.stream_id == too_long.header.stream_id
    assert [each.stream_id for each in closed] == [writer.header.stream_id for writer in others]


async def test_a_stream_of_known_size_whose_text_does_not_come_is_overtaken(
    side: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closings, "TURN_TIMEOUT", 0.1)
    bob = Ears()
    await side.join("bob", bob.listener())
    carol = await side.join("carol")
    sized = await carol.sdk_room.local_participant.stream_text(topic="t", total_size=4)
    header = await carol.send_text("other", TextOptions("t"))
    other = await bob.closed()
    await sized.write("text")
    await sized.aclose()
    late = await bob.closed()

    assert other.stream_id == header.stream_id
    assert (late.stream_id, late.complete, late.size) == (sized.info.stream_id, True, 4)


async def test_a_remote_procedure_call_to_us_is_answered(
    side: Joined, livekit: LiveKitServer
) -> None:
    await side.join("bob")
    sdk = rtc.Room()
    await sdk.connect(livekit.url, livekit_token(livekit, side.name, "sdk"))
    with pytest.raises(rtc.RpcError) as error:
        await sdk.local_participant.perform_rpc(
            destination_identity="bob", method="unheard of", payload=""
        )
    await sdk.disconnect()

    assert error.value.code == rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD


def test_the_library_outlives_a_loop_and_serves_the_next(
    inbox: None, livekit: LiveKitServer, room: str
) -> None:
    """The first loop ends with its connection open, and what the library still says reaches nobody."""

    async def join_and_forget() -> None:
        rooms = LiveKitRooms(livekit.url, livekit.api_key, livekit.api_secret, max_stream_bytes=1)
        token = livekit_token(livekit, room, "bob")
        bob = await rooms.join(room, "bob", token, ("t",), Ears().listener())
        await bob.send_text("the last of this loop", TextOptions("t"))
        kept.append(bob)
        await rooms.aclose()

    async def speak_by_the_sdk() -> list[str]:
        texts: asyncio.Queue[str] = asyncio.Queue()
        reading: list[asyncio.Task[None]] = []

        async def read(reader: rtc.TextStreamReader) -> None:
            texts.put_nowait(await reader.read_all())

        ears, mouth = rtc.Room(), rtc.Room()
        ears.register_text_stream_handler(
            "t", lambda reader, sender: reading.append(asyncio.create_task(read(reader)))
        )
        await ears.connect(livekit.url, livekit_token(livekit, room, "ears"))
        await mouth.connect(livekit.url, livekit_token(livekit, room, "mouth"))
        await mouth.local_participant.send_text("still here", topic="t")
        text = await asyncio.wait_for(texts.get(), DEADLINE)
        await mouth.disconnect()
        await ears.disconnect()
        return [text]

    kept: list[object] = []
    asyncio.run(join_and_forget())
    assert asyncio.run(speak_by_the_sdk()) == ["still here"]


def test_a_send_at_the_end_of_a_loop_is_answered(
    inbox: None, livekit: LiveKitServer, room: str
) -> None:
    """Asynchronous generators are ended last of all, ours among them."""
    sent: list[int] = []

    async def send_at_the_end(bob: Room, number: int) -> AsyncIterator[None]:
        try:
            yield
        finally:
            async with asyncio.timeout(DEADLINE):
                await bob.send_text("the last", TextOptions("t"))
            sent.append(number)

    async def main() -> None:
        rooms = LiveKitRooms(livekit.url, livekit.api_key, livekit.api_secret, max_stream_bytes=1)
        token = livekit_token(livekit, room, "bob")
        bob = await rooms.join(room, "bob", token, ("t",), Ears().listener())
        for number in range(5):
            ending = send_at_the_end(bob, number)
            await anext(ending)
            kept.append(ending)
        await rooms.aclose()

    kept: list[object] = []
    asyncio.run(main())

    assert sorted(sent) == list(range(5))


async def test_a_loop_that_is_run_again_takes_nothing_from_a_later_one(
    inbox: None, livekit: LiveKitServer, room: str
) -> None:
    """Its asynchronous generator is ended when nobody has it any more."""
    earlier = asyncio.new_event_loop()

    async def install() -> None:
        cured_room()

    await asyncio.to_thread(earlier.run_until_complete, install())
    async with _joined(livekit, room) as side:
        carol = await side.join("carol")
        gc.collect()
        await asyncio.to_thread(earlier.run_until_complete, earlier.shutdown_asyncgens())
        await carol.send_text("still here", TextOptions("t"))
    earlier.close()


_TWO_REFUSALS = """
import asyncio, logging, sys
from gateway.errors import JoinFailed
from gateway.logs import configure_logging
from gateway.rooms.base import Listener
from gateway.rooms.livekit import LiveKitRooms
from gateway.rooms.native import parts
from gateway.rooms.native.dispatch import DISPATCH

async def main(url, token, log):
    told = asyncio.Event()

    def of_the_last(record):
        if "failed to handle request" in record.getMessage():
            told.set()
        return True

    logging.getLogger("livekit").addFilter(of_the_last)
    rooms = LiveKitRooms(url, "devkey", "secret", max_stream_bytes=1, log=log)
    try:
        await rooms.join("r", "i", token, (), Listener(print, print, print, print))
    except JoinFailed:
        request = parts.ffi_pb2.FfiRequest()
        request.text_stream_write.writer_handle = 1 << 60
        request.text_stream_write.text = "the user's text"
        try:
            DISPATCH.request(request)
        except RuntimeError:
            # The library hands its log over now and then; with its log off it would write at once.
            if log:
                await asyncio.wait_for(told.wait(), DEADLINE)
    await rooms.aclose()

configure_logging("INFO", livekit=LOG)
asyncio.run(main(sys.argv[1], sys.argv[2], LOG))
"""


@pytest.mark.parametrize("log", [False, True])
def test_what_the_library_logs_has_neither_tokens_nor_texts(
    livekit: LiveKitServer, log: bool
) -> None:
    secret = "not the secret, but one of at least 32 bytes"
    token = mint("devkey", secret, room="r", identity="i", ttl=timedelta(minutes=1))
    program = f"LOG, DEADLINE = {log}, {DEADLINE}\n{_TWO_REFUSALS}"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, livekit.url, token],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert token not in ended.stderr
    assert "the user's text" not in ended.stderr
    assert ended.stdout == ""
    assert ("invalid token: [token]" in ended.stderr) is log
    assert ("failed to handle request [request]" in ended.stderr) is log
    if not log:
        assert ended.stderr == ""


_A_PANIC = """
import asyncio, ctypes
from gateway.rooms.native import cured_room, parts
from gateway.rooms.native.dispatch import DISPATCH
from gateway.rooms.native.inbox import CALLBACK

async def main():
    cured_room()
    event = parts.ffi_pb2.FfiEvent()
    event.panic.message = "all is lost"
    data = event.SerializeToString()
    place = ctypes.create_string_buffer(data, len(data))
    ctypes.cast(DISPATCH._inbox.callback, CALLBACK)(ctypes.addressof(place), len(data))
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_panic_of_the_library_ends_the_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _A_PANIC], capture_output=True, text=True, timeout=30, check=False
    )

    assert ended.returncode == -signal.SIGTERM
    assert "all is lost" in ended.stderr


_A_REFUSAL = """
import asyncio, sys
from gateway.errors import JoinFailed
from gateway.rooms.base import Listener
from gateway.rooms.livekit import LiveKitRooms

async def main(url):
    rooms = LiveKitRooms(url, "devkey", "secret", max_stream_bytes=1)
    try:
        await rooms.join("r", "i", "no.token.really", (), Listener(print, print, print, print))
    except JoinFailed:
        pass
    await rooms.aclose()

asyncio.run(main(sys.argv[1]))
"""

EXITS = 24
"""Without what the dispatch does at exit, about two of them were aborts."""


def test_the_process_ends_as_it_should_while_the_library_still_calls(
    livekit: LiveKitServer,
) -> None:
    def end(_: int) -> tuple[int, bytes]:
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _A_REFUSAL, livekit.url],
            capture_output=True,
            timeout=30,
            check=False,
        )
        return ended.returncode, ended.stderr

    with ThreadPoolExecutor(6) as at_once:
        ends = set(at_once.map(end, range(EXITS)))

    assert ends == {(0, b"")}


_POLICIES = """
import asyncio, os
from gateway.rooms.native import cured_room

def policies():
    return {name: os.sched_getscheduler(int(name)) for name in os.listdir("/proc/self/task")}

async def main():
    before = policies()
    cured_room()
    begun = {policy for name, policy in policies().items() if name not in before}
    assert begun == {os.SCHED_BATCH}, begun
    assert os.sched_getscheduler(0) == os.SCHED_OTHER

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has it")
def test_the_threads_of_the_library_interrupt_nobody() -> None:
    subprocess.run([sys.executable, "-c", _POLICIES], timeout=30, check=True)
