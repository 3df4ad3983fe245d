"""What is LiveKit's alone: SDK participants at the other end, the announcement, private parts."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from livekit import rtc
from livekit.rtc._ffi_client import FfiClient

from gateway.errors import LiveKitUnavailable
from gateway.rooms import incoming, livekit as livekit_rooms
from gateway.rooms.base import Listener
from gateway.rooms.farewell import leave_again
from gateway.rooms.livekit import LiveKitRooms
from gateway.rooms.native.dispatch import DISPATCH
from tests.conftest import Serve
from tests.cutting_proxy import Cut, How, Way, cutting_proxy
from tests.guests import Guest
from tests.running_gateway import DEADLINE, RunningGateway, livekit_token
from tools.livekit_server import LiveKitServer

LEAVING = rtc.DisconnectReason.CLIENT_INITIATED


class SdkParticipant:
    """A participant by LiveKit's own SDK, with the texts that it has read to their end."""

    def __init__(self, topic: str = "lk.chat") -> None:
        self.room = rtc.Room()
        self.texts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self.room.register_text_stream_handler(topic, self._on_stream)

    def _on_stream(self, reader: rtc.TextStreamReader, sender: str) -> None:
        known = sender in self.room.remote_participants
        task = asyncio.create_task(self._read(reader, sender, known))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, reader: rtc.TextStreamReader, sender: str, known: bool) -> None:
        pieces: list[str] = []
        error = None
        try:
            async for piece in reader:
                pieces.append(piece)  # noqa: PERF401 - what came before an error counts
        except rtc.StreamError as failure:
            error = failure.description
        self.texts.put_nowait(
            {
                "sender": sender,
                "known": known,
                "text": "".join(pieces),
                "attributes": reader.info.attributes,
                "error": error,
            }
        )

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE):
            return await self.texts.get()

    async def join(self, gateway: RunningGateway, room: str, identity: str) -> None:
        await self.room.connect(gateway.settings.livekit_url, gateway.token(identity, room))


async def test_an_sdk_participant_receives_what_is_posted(serve_livekit: Serve, room: str) -> None:
    sdk = SdkParticipant()
    async with serve_livekit() as gateway:
        await sdk.join(gateway, room, "sdk")
        await gateway.post(room, "carol", "Grüße 👋", **{"attr.a": "ü"})
        whole = await sdk.next()
        async with gateway.upload(room, "carol") as upload:
            upload.send(b"one ")
            upload.send(b"two")
            upload.finish()
            assert (await upload.answer())[0] == 200
        streamed = await sdk.next()
        async with gateway.upload(room, "carol") as upload, gateway.events(room, "carol") as carol:
            upload.send(b"half")
            await carol.until("stream.chunk")
            upload.break_off()
            broken = await sdk.next()
        await sdk.room.disconnect()

    assert whole == {
        "sender": "carol",
        "known": True,
        "text": "Grüße 👋",
        "attributes": {"a": "ü"},
        "error": None,
    }
    assert (streamed["text"], streamed["error"]) == ("one two", None)
    assert (broken["text"], broken["error"]) == (
        "half",
        "stream closed abnormally: client_disconnected",
    )


async def test_what_an_sdk_participant_sends_comes_out_as_events(
    serve_livekit: Serve, room: str
) -> None:
    sdk = rtc.Room()
    async with serve_livekit() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        await sdk.connect(gateway.settings.livekit_url, gateway.token("sdk", room))
        writer = await sdk.local_participant.stream_text(topic="lk.chat", attributes={"a": "1"})
        await writer.write("one ")
        opened = await bob.until("stream.opened")
        first = await bob.until("stream.chunk")
        await writer.write("two")
        await writer.aclose(attributes={"final": "true"})
        second = await bob.until("stream.chunk")
        closed = await bob.until("stream.closed")
        await sdk.local_participant.send_text(
            "for bob", topic="lk.chat", destination_identities=["bob"]
        )
        targeted = await bob.until("stream.chunk")
        await sdk.disconnect()

    assert opened.data["participant_identity"] == "sdk"
    assert opened.data["stream_id"] == writer.info.stream_id
    assert opened.data["attributes"] == {"a": "1"}
    assert [first.data["text"], second.data["text"]] == ["one ", "two"]
    assert closed.data["attributes"] == {"a": "1", "final": "true"}
    assert closed.data["complete"] is True
    assert targeted.data["text"] == "for bob"


async def test_the_sender_is_announced_before_its_first_text(
    serve_livekit: Serve, room: str
) -> None:
    """An agent ignores a text from a participant that it does not know yet."""
    sdk = SdkParticipant()
    async with serve_livekit() as gateway:
        await sdk.join(gateway, room, "sdk")
        for number in range(10):
            await gateway.post(room, f"cold-{number}", "the first message")
            first = await sdk.next()
            assert first["known"], f"unknown at text {number}"
        await sdk.room.disconnect()


async def test_after_its_linger_a_participant_leaves_as_one_who_may_come_back(
    serve_livekit: Serve, room: str
) -> None:
    """USER_UNAVAILABLE: agents keep their session. CLIENT_INITIATED would close it."""
    sdk = rtc.Room()
    left: asyncio.Queue[rtc.RemoteParticipant] = asyncio.Queue()
    sdk.on("participant_disconnected", left.put_nowait)
    async with serve_livekit(linger=0) as gateway:
        await sdk.connect(gateway.settings.livekit_url, gateway.token("sdk", room))
        await gateway.post(room, "carol", "hi")
        async with asyncio.timeout(DEADLINE):
            carol = await left.get()
        await sdk.disconnect()

    assert carol.identity == "carol"
    assert carol.disconnect_reason == rtc.DisconnectReason.USER_UNAVAILABLE


@asynccontextmanager
async def _rooms_that_lose_leavings(
    server: LiveKitServer,
) -> AsyncIterator[tuple[LiveKitRooms, Callable[[], None]]]:
    """Behind a proxy, which cuts the next signal connection that something comes over after the call."""
    async with cutting_proxy(server.url.replace("ws://", "http://")) as proxy:
        url = proxy.url.replace("http://", "ws://")
        rooms = LiveKitRooms(url, server.api_key, server.api_secret, max_stream_bytes=1)
        yield rooms, lambda: proxy.cut([Cut(Way.REQUESTS, 0, How.RESET)])
        await rooms.aclose()


@pytest.mark.parametrize("for_good", [True, False])
async def test_a_leaving_that_was_lost_on_its_way_is_told_again(
    server: LiveKitServer, room: str, for_good: bool
) -> None:
    """Else LiveKit keeps us in the room for 20 s, and an agent does not learn whether we come back."""
    carol = rtc.Room()
    came: asyncio.Queue[rtc.RemoteParticipant] = asyncio.Queue()
    left: asyncio.Queue[rtc.RemoteParticipant] = asyncio.Queue()
    carol.on("participant_connected", came.put_nowait)
    carol.on("participant_disconnected", left.put_nowait)
    await carol.connect(server.url, livekit_token(server, room, "carol"))
    async with _rooms_that_lose_leavings(server) as (rooms, lose):
        bob = await rooms.join(
            room, "bob", livekit_token(server, room, "bob"), (), Guest().listener
        )
        async with asyncio.timeout(DEADLINE):
            await came.get()
            lose()
            await bob.leave(for_good=for_good)
            gone = await left.get()
    await carol.disconnect()

    assert gone.identity == "bob"
    assert gone.disconnect_reason == (
        rtc.DisconnectReason.CLIENT_INITIATED if for_good else rtc.DisconnectReason.USER_UNAVAILABLE
    )


async def test_a_hidden_participant_that_leaves_is_gone_as_well(
    server: LiveKitServer, room: str
) -> None:
    """LiveKit tells it nothing of itself when it takes up its signal connection again."""
    async with _rooms_that_lose_leavings(server) as (rooms, lose):
        observer = await rooms.observe(room, (), Guest().listener)
        lose()
        await observer.leave()
        identity = observer.local.identity
        async with asyncio.timeout(DEADLINE):
            while await rooms.find_participant(room, identity) is not None:
                pass


async def test_who_comes_back_at_once_is_not_disturbed_by_its_farewell(
    server: LiveKitServer, room: str
) -> None:
    back = Guest()
    token = livekit_token(server, room, "bob")
    async with _rooms_that_lose_leavings(server) as (rooms, lose):
        bob = await rooms.join(room, "bob", token, (), Guest().listener)
        lose()
        await bob.leave()
        again = await rooms.join(room, "bob", token, (), back.listener)
        there = await rooms.find_participant(room, "bob")
        await again.leave()

    assert there is not None
    assert there.sid == again.local.sid
    assert back.lost.empty()


async def test_who_came_under_the_name_of_one_that_left_is_let_be(
    server: LiveKitServer, room: str
) -> None:
    """LiveKit takes up the signal connection of whoever has the name now; its own comes back."""
    bob = rtc.Room()
    ways: asyncio.Queue[str] = asyncio.Queue()
    bob.on("reconnected", lambda: ways.put_nowait("reconnected"))
    bob.on("disconnected", lambda reason: ways.put_nowait("disconnected"))
    await bob.connect(server.url, livekit_token(server, room, "bob"))
    async with asyncio.timeout(2 * DEADLINE), aiohttp.ClientSession() as http:
        await leave_again(http, server.url, livekit_token(server, room, "bob"), _is_not, LEAVING)
        way = await ways.get()
    await bob.disconnect()

    assert way == "reconnected"


async def test_nobody_is_made_to_leave_who_is_not_there(server: LiveKitServer, room: str) -> None:
    bob = rtc.Room()
    await bob.connect(server.url, livekit_token(server, room, "bob"))
    async with asyncio.timeout(DEADLINE), aiohttp.ClientSession() as http:
        await leave_again(http, server.url, livekit_token(server, room, "carol"), _is_not, LEAVING)
    seen = set(bob.remote_participants)
    await bob.disconnect()

    assert seen == set()


async def _is_not() -> bool:
    return False


async def test_a_join_that_was_given_up_does_not_disturb_the_next(
    server: LiveKitServer, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stands still during a join, and the caller tries again."""
    monkeypatch.setattr(livekit_rooms, "JOIN_TIMEOUT", 0.5)
    rooms = LiveKitRooms(server.url, server.api_key, server.api_secret, max_stream_bytes=1)
    heard: list[str] = []

    def listener(name: str) -> Listener:
        return Listener(
            lambda event: None,
            lambda: None,
            lambda: None,
            lambda reason: heard.append(f"{name}: {reason}"),
        )

    token = livekit_token(server, room, "bob")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for attempt in ("first", "second"):
            with pytest.raises(LiveKitUnavailable):
                await rooms.join(room, "bob", token, (), listener(attempt))
    finally:
        os.kill(server.pid, signal.SIGCONT)
    monkeypatch.setattr(livekit_rooms, "JOIN_TIMEOUT", 10.0)
    joined = await rooms.join(room, "bob", token, (), listener("third"))
    carol = rtc.Room()
    await carol.connect(server.url, livekit_token(server, room, "carol"))
    seen = set(carol.remote_participants)
    await carol.disconnect()
    await joined.leave()
    await rooms.aclose()

    assert seen == {"bob"}
    assert heard == []


async def test_streams_beyond_the_bound_are_told_as_incomplete(
    serve_livekit: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "MAX_OPEN_OF_SENDER", 2)
    sdk = rtc.Room()
    async with serve_livekit() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        await sdk.connect(gateway.settings.livekit_url, gateway.token("sdk", room))
        for _ in range(3):
            await sdk.local_participant.stream_text(topic="lk.chat")
        closed = await bob.until("stream.closed")
        await gateway.post(room, "carol", "others are still heard")
        chunk = await bob.until("stream.chunk")
        await sdk.disconnect()

    assert (closed.data["complete"], closed.data["reason"]) == (False, "too_many_open_streams")
    assert chunk.data["text"] == "others are still heard"


async def test_a_connection_that_was_broken_for_a_while_is_told_as_a_gap(
    serve_livekit: Serve, room: str
) -> None:
    async with serve_livekit() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        armed = await bob.cursor()
        await _sdk_room(gateway).simulate_scenario(rtc.SimulateScenarioKind.SIMULATE_FULL_RECONNECT)
        gap = await bob.until("gateway.gap")
        await gateway.post(room, "carol", "heard again")
        chunk = await bob.until("stream.chunk")

    assert gap.data["reason"] == "unknown"
    assert gap.data["from"] == armed
    assert gap.data["to"] == gap.id
    assert chunk.data["text"] == "heard again"


def _sdk_room(gateway: RunningGateway) -> rtc.Room:
    (slot,) = gateway.hub._slots.values()
    room = slot.connection._carrier.room
    assert isinstance(room, livekit_rooms._LiveKitRoom)
    return room.sdk_room


async def test_a_stream_whose_sender_was_never_announced_ends(
    serve_livekit: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who joins, opens a stream and leaves within a second is never told to have gone."""
    monkeypatch.setattr(incoming, "SWEEP", 0.2)
    monkeypatch.setattr(incoming, "GONE_QUIET", 0.5)
    async with serve_livekit() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        sdk = rtc.Room()
        await sdk.connect(gateway.settings.livekit_url, gateway.token("sdk", room))
        writer = await sdk.local_participant.stream_text(topic="lk.chat")
        await writer.write("half")
        await bob.until("stream.chunk")
        await sdk.disconnect()
        closed = await bob.until("stream.closed")

    assert (closed.data["complete"], closed.data["reason"]) == (False, "sender_disconnected")


async def test_a_stream_that_nothing_comes_on_is_ended_and_stays_so(
    serve_livekit: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "SWEEP", 0.2)
    async with (
        serve_livekit(stream_idle_timeout=0.5) as gateway,
        gateway.events(room, "bob") as bob,
    ):
        await bob.until("gateway.opened")
        sdk = rtc.Room()
        await sdk.connect(gateway.settings.livekit_url, gateway.token("sdk", room))
        writer = await sdk.local_participant.stream_text(topic="lk.chat")
        await writer.write("half")
        closed = await bob.until("stream.closed")
        await writer.write("too late")
        await sdk.local_participant.send_text("others are heard", topic="lk.chat")
        opened = await bob.next()
        chunk = await bob.next()
        await sdk.disconnect()

    assert (closed.data["complete"], closed.data["reason"]) == (False, "idle")
    assert opened.name == "stream.opened"
    assert chunk.data["text"] == "others are heard"


async def test_streams_that_nobody_asked_for_leave_nothing_behind(
    serve_livekit: Serve, room: str
) -> None:
    async with serve_livekit() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        sdk = rtc.Room()
        await sdk.connect(gateway.settings.livekit_url, gateway.token("sdk", room))
        (slot,) = gateway.hub._slots.values()
        inside = slot.connection._carrier.room.sdk_room
        await sdk.local_participant.send_text("first", topic="lk.chat")
        await bob.text()
        before = _held(inside)
        for _ in range(20):
            await sdk.local_participant.send_text("unheard", topic="another")
            writer = await sdk.local_participant.stream_bytes("file", topic="lk.chat")
            await writer.write(b"bytes")
            await writer.aclose()
        await sdk.local_participant.send_text("last", topic="lk.chat")
        last = await bob.text()
        after = _held(inside)
        await sdk.disconnect()

    assert last.text == "last"
    assert after == before


def _held(room: rtc.Room) -> tuple[int, ...]:
    """What the SDK, and what we have put in its place, hold for streams."""
    return (
        len(room._text_stream_readers),
        len(room._byte_stream_readers),
        len(DISPATCH._routes),
        len(FfiClient.instance.queue._subscribers),
    )
