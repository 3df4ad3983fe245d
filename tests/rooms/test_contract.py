"""What every form of the far side promises: the same tests over LiveKit and over its twin."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from livekit import api

from gateway.errors import JoinFailed, LiveKitUnavailable, NotPermitted, NotSupported
from gateway.events import (
    Happening,
    ParticipantAttributesChanged,
    ParticipantConnected,
    ParticipantDisconnected,
    ParticipantEvent,
    StreamChunk,
    StreamClosed,
    StreamEvent,
    StreamOpened,
)
from gateway.rooms import closings
from gateway.rooms.base import (
    MAX_OPEN_OF_SENDER,
    Listener,
    LostReason,
    Room,
    Rooms,
    StreamHeader,
    TextOptions,
)
from gateway.rooms.livekit import LiveKitRooms
from gateway.rooms.memory import MemoryRooms
from gateway.rooms.tokens import mint
from tests.polling import poll_until
from tests.running_gateway import DEADLINE, livekit_token
from tools.livekit_server import LiveKitServer


@dataclass(slots=True)
class Participant:
    """One participant of a room under test, and what its listener heard."""

    room: Room
    heard: "asyncio.Queue[StreamEvent | LostReason]"
    others: "asyncio.Queue[ParticipantEvent]"
    told: asyncio.Event
    """Set whenever one of the others comes, goes or changes."""

    async def next(self) -> StreamEvent | LostReason:
        async with asyncio.timeout(DEADLINE):
            return await self.heard.get()

    async def next_of_others(self) -> ParticipantEvent:
        async with asyncio.timeout(DEADLINE):
            return await self.others.get()

    async def texts(self, count: int) -> list[str]:
        """The next so many texts, each whole, in the order in which they were opened."""
        texts: dict[str, str] = {}
        closed = 0
        while closed < count:
            event = await self.next()
            if isinstance(event, StreamOpened):
                texts[event.stream_id] = ""
            elif isinstance(event, StreamChunk):
                texts[event.stream_id] += event.text
            elif isinstance(event, StreamClosed):
                assert event.complete
                closed += 1
        return list(texts.values())

    async def closings(self, count: int) -> list[str]:
        """The next so many streams that are closed, by their ids."""
        closed: list[str] = []
        while len(closed) < count:
            if isinstance(event := await self.next(), StreamClosed):
                closed.append(event.stream_id)
        return closed

    async def sees(self, *identities: str) -> None:
        """LiveKit tells of participants up to 3 s late."""
        async with asyncio.timeout(DEADLINE):
            while set(self.room.identities) != set(identities):
                self.told.clear()
                await self.told.wait()

    async def is_muted(self) -> None:
        """LiveKit has told that we may not send any more."""
        await poll_until(lambda: not self.room.local.can_publish_data)


@dataclass(slots=True)
class FarSide:
    rooms: Rooms
    name: str
    token: Callable[[str], str]
    remove: Callable[[str], Awaitable[None]]
    delete: Callable[[], Awaitable[None]]
    forbid: Callable[[str], Awaitable[None]]
    change: Callable[[str, dict[str, str]], Awaitable[None]]
    """Of a participant, the attributes."""
    whole_headers: bool = True
    """The public face of LiveKit's SDK shows less of a stream's header than its sender gave it."""
    joined: list[Room] = field(default_factory=list)

    async def join(self, identity: str, *topics: str) -> Participant:
        token = self.token(identity)
        return await self._enter(
            lambda listener: self.rooms.join(self.name, identity, token, topics or ("t",), listener)
        )

    async def observe(self) -> Participant:
        return await self._enter(lambda listener: self.rooms.observe(self.name, ("t",), listener))

    async def _enter(self, entering: Callable[[Listener], Awaitable[Room]]) -> Participant:
        heard: asyncio.Queue[StreamEvent | LostReason] = asyncio.Queue()
        others: asyncio.Queue[ParticipantEvent] = asyncio.Queue()
        told = asyncio.Event()

        def emit(event: Happening) -> None:
            if isinstance(event, StreamEvent):
                heard.put_nowait(event)
            elif isinstance(event, ParticipantEvent):
                others.put_nowait(event)
                told.set()

        room = await entering(Listener(emit, _unheard, _unheard, heard.put_nowait))
        self.joined.append(room)
        return Participant(room, heard, others, told)


@pytest.fixture(params=["memory", "livekit", "livekit-stock"])
async def far_side(request: pytest.FixtureRequest) -> AsyncIterator[FarSide]:
    name = f"room-{secrets.token_hex(4)}"
    if request.param == "memory":
        opened = _memory(name)
    else:
        if request.param == "livekit-stock":
            request.getfixturevalue("unknown_sdk")
        opened = _livekit(name, request.getfixturevalue("livekit"))
    async with opened as side:
        side.whole_headers = request.param != "livekit-stock"
        yield side
        for room in side.joined:
            await room.leave()


@asynccontextmanager
async def _memory(name: str) -> AsyncIterator[FarSide]:
    rooms = MemoryRooms()

    async def remove(identity: str) -> None:
        rooms.remove_participant(name, identity)

    async def delete() -> None:
        rooms.delete_room(name)

    async def forbid(identity: str) -> None:
        rooms.set_can_publish_data(name, identity, False)

    async def change(identity: str, attributes: dict[str, str]) -> None:
        rooms.change_attributes(name, identity, attributes)

    yield FarSide(rooms, name, lambda identity: "", remove, delete, forbid, change)
    await rooms.aclose()


@asynccontextmanager
async def _livekit(name: str, server: LiveKitServer) -> AsyncIterator[FarSide]:
    rooms = LiveKitRooms(server.url, server.api_key, server.api_secret, max_stream_bytes=1 << 20)
    admin = api.LiveKitAPI(server.url, server.api_key, server.api_secret)

    async def remove(identity: str) -> None:
        await admin.room.remove_participant(
            api.RoomParticipantIdentity(room=name, identity=identity)
        )

    async def delete() -> None:
        await admin.room.delete_room(api.DeleteRoomRequest(room=name))

    async def forbid(identity: str) -> None:
        permission = api.ParticipantPermission(can_subscribe=True, can_publish_data=False)
        await admin.room.update_participant(
            api.UpdateParticipantRequest(room=name, identity=identity, permission=permission)
        )

    async def change(identity: str, attributes: dict[str, str]) -> None:
        await admin.room.update_participant(
            api.UpdateParticipantRequest(room=name, identity=identity, attributes=attributes)
        )

    def token(identity: str) -> str:
        return livekit_token(server, name, identity)

    yield FarSide(rooms, name, token, remove, delete, forbid, change)
    await admin.aclose()
    await rooms.aclose()


async def test_a_whole_text_is_one_stream_at_every_other_participant(far_side: FarSide) -> None:
    bob, dave, carol = [await far_side.join(name) for name in ("bob", "dave", "carol")]
    options = TextOptions("t", attributes={"a": "ü"}, reply_to_stream_id="earlier")
    header = await carol.room.send_text("Grüße", options)

    for receiver in (bob, dave):
        assert await receiver.next() == StreamOpened(
            stream_id=header.stream_id,
            topic="t",
            participant_identity="carol",
            timestamp=header.timestamp,
            size=7,
            attributes={"a": "ü"},
            reply_to_stream_id="earlier" if far_side.whole_headers else None,
        )
        assert await receiver.next() == StreamChunk(header.stream_id, "t", "carol", 0, "Grüße")
        assert await receiver.next() == StreamClosed(
            header.stream_id, "t", "carol", True, None, {"a": "ü"}, 7, 1
        )
    assert carol.heard.empty()


async def test_an_empty_text_has_no_chunks(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    await carol.room.send_text("", TextOptions("t"))

    opened, closed = await bob.next(), await bob.next()
    assert isinstance(opened, StreamOpened)
    assert opened.size == (0 if far_side.whole_headers else None)
    assert isinstance(closed, StreamClosed)
    assert (closed.complete, closed.chunks) == (True, 0)


async def test_pieces_are_received_as_they_are_written(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    writer = await carol.room.open_text_stream(TextOptions("t"))
    opened = await bob.next()
    for index, piece in enumerate(("one ", "two ", "three")):
        await writer.write(piece)
        assert await bob.next() == StreamChunk(writer.header.stream_id, "t", "carol", index, piece)
    await writer.close()
    closed = await bob.next()

    assert isinstance(opened, StreamOpened)
    assert opened.size is None
    assert isinstance(closed, StreamClosed)
    assert (closed.complete, closed.size, closed.chunks) == (True, 13, 3)


async def test_attributes_of_the_end_are_added_to_those_of_the_beginning(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    writer = await carol.room.open_text_stream(TextOptions("t", attributes={"a": "1", "b": "2"}))
    await writer.write("text")
    # LiveKit's library shows those of the end at once where the end has come before it tells of the opening.
    opened, _ = [await bob.next() for _ in range(2)]
    await writer.close({"b": "3", "final": "true"})
    closed = await bob.next()

    assert isinstance(opened, StreamOpened)
    assert opened.attributes == {"a": "1", "b": "2"}
    assert isinstance(closed, StreamClosed)
    assert closed.attributes == {"a": "1", "b": "3", "final": "true"}


async def test_a_stream_has_the_id_that_its_sender_chose(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    whole = await carol.room.send_text("one", TextOptions("t", stream_id="first"))
    writer = await carol.room.open_text_stream(TextOptions("t", stream_id="second"))
    await writer.write("two")
    await writer.close()
    again = await carol.room.send_text("three", TextOptions("t", stream_id="second"))

    assert (whole.stream_id, writer.header.stream_id) == ("first", "second")
    assert again.stream_id == "second"
    told = [await bob.next() for _ in range(9)]
    opened = [event.stream_id for event in told if isinstance(event, StreamOpened)]
    assert opened == ["first", "second", "second"]


async def test_an_update_a_version_and_what_is_attached_reach_the_receiver(
    far_side: FarSide,
) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    options = TextOptions(
        "t",
        stream_id="chat-1",
        operation="update",
        version=3,
        generated=True,
        attached_stream_ids=("image-1", "image-2"),
    )
    if not far_side.whole_headers:
        with pytest.raises(NotSupported):
            await carol.room.send_text("new", options)
        with pytest.raises(NotSupported):
            await carol.room.open_text_stream(options)
        return
    await carol.room.send_text("new", options)
    writer = await carol.room.open_text_stream(options)
    await writer.close()
    for _ in range(2):
        while not isinstance(opened := await bob.next(), StreamOpened):
            pass
        assert (opened.stream_id, opened.operation, opened.version) == ("chat-1", "update", 3)
        assert opened.generated
        assert opened.attached_stream_ids == ("image-1", "image-2")


async def test_an_aborted_stream_ends_incomplete_with_its_reason(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    writer = await carol.room.open_text_stream(TextOptions("t"))
    await writer.write("half")
    await writer.abort("client_disconnected")
    await bob.next()
    await bob.next()
    closed = await bob.next()

    assert isinstance(closed, StreamClosed)
    assert (closed.complete, closed.reason) == (False, "client_disconnected")


async def test_a_stream_whose_sender_leaves_ends_incomplete(
    far_side: FarSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closings, "TURN_TIMEOUT", 60.0)  # nobody waits for a trailer that long
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    await bob.sees("carol")
    writer = await carol.room.open_text_stream(TextOptions("t"))
    await writer.write("half")
    await bob.next()
    await bob.next()
    await carol.room.leave()
    far_side.joined.remove(carol.room)
    closed = await bob.next()

    assert isinstance(closed, StreamClosed)
    assert (closed.complete, closed.reason) == (False, "sender_disconnected")


async def test_our_leaving_ends_the_streams_that_we_were_reading(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    writer = await carol.room.open_text_stream(TextOptions("t"))
    await writer.write("half")
    await bob.next()
    await bob.next()
    await bob.room.leave()
    far_side.joined.remove(bob.room)
    closed = bob.heard.get_nowait()

    assert isinstance(closed, StreamClosed)
    assert (closed.complete, closed.reason) == (False, "disconnected")
    assert bob.heard.empty()


async def test_who_has_left_or_was_sent_away_is_told_nothing_more(far_side: FarSide) -> None:
    bob, dave, erin, carol = [
        await far_side.join(name) for name in ("bob", "dave", "erin", "carol")
    ]
    writer = await carol.room.open_text_stream(TextOptions("t"))
    await writer.write("half")
    for receiver in (bob, dave, erin):
        await receiver.next()
        await receiver.next()
    await bob.room.leave()
    far_side.joined.remove(bob.room)
    await far_side.remove("dave")
    ends = [await dave.next() for _ in range(2)]
    told = [bob.heard.qsize(), bob.others.qsize(), dave.others.qsize()]
    # Erin hears it all.
    await writer.write(" and half")
    await writer.close()
    await erin.next()
    await erin.next()
    await carol.room.send_text("the next", TextOptions("t"))
    await erin.texts(1)
    await far_side.change("carol", {"a": "1"})
    while not isinstance(await erin.next_of_others(), ParticipantAttributesChanged):
        pass

    assert ends[1] is LostReason.REMOVED
    assert dave.heard.empty()
    assert [bob.heard.qsize(), bob.others.qsize(), dave.others.qsize()] == told


async def test_only_the_addressees_receive(far_side: FarSide) -> None:
    bob, dave, carol = [await far_side.join(name) for name in ("bob", "dave", "carol")]
    await carol.room.send_text("for bob", TextOptions("t", ("bob", "nobody")))
    await carol.room.send_text("for all", TextOptions("t"))

    assert await bob.texts(2) == ["for bob", "for all"]
    assert await dave.texts(1) == ["for all"]


async def test_only_registered_topics_are_received(far_side: FarSide) -> None:
    bob = await far_side.join("bob", "t")
    carol = await far_side.join("carol")
    await carol.room.send_text("unheard", TextOptions("later"))
    await carol.room.send_text("heard", TextOptions("t"))
    first = await bob.texts(1)
    bob.room.register_topic("later")
    bob.room.register_topic("later")
    await carol.room.send_text("now heard", TextOptions("later"))

    assert first == ["heard"]
    assert await bob.texts(1) == ["now heard"]


async def test_a_dropped_topic_is_received_no_more_but_for_what_is_open(far_side: FarSide) -> None:
    bob = await far_side.join("bob", "t", "u")
    carol = await far_side.join("carol")
    writer = await carol.room.open_text_stream(TextOptions("t"))
    await writer.write("one ")
    await bob.next()
    await bob.next()
    bob.room.unregister_topic("t")
    await carol.room.send_text("unheard", TextOptions("t"))
    await writer.write("two")
    await writer.close()
    chunk, closed = await bob.next(), await bob.next()
    await carol.room.send_text("heard", TextOptions("u"))

    assert chunk == StreamChunk(writer.header.stream_id, "t", "carol", 1, "two")
    assert isinstance(closed, StreamClosed)
    assert (closed.complete, closed.size) == (True, 7)
    assert await bob.texts(1) == ["heard"]


async def test_streams_open_in_their_senders_order(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    for number in range(20):
        await carol.room.send_text(str(number), TextOptions("t"))

    assert await bob.texts(20) == [str(number) for number in range(20)]


IN_ORDER = pytest.mark.parametrize("far_side", ["memory", "livekit"], indirect=True)
"""By the public face of LiveKit's SDK, closings of different streams may be told out of order."""


@IN_ORDER
async def test_streams_close_in_the_order_in_which_their_sender_closed_them(
    far_side: FarSide,
) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    for _ in range(5):
        writers = [await carol.room.open_text_stream(TextOptions("t")) for _ in range(50)]
        secrets.SystemRandom().shuffle(writers)
        for writer in writers:
            await writer.write("a piece")
        for writer in writers:
            await writer.close()

        assert await bob.closings(50) == [writer.header.stream_id for writer in writers]


@IN_ORDER
async def test_whatever_way_texts_are_sent_they_close_in_one_order(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    options = TextOptions("t")
    long = secrets.token_hex(20_000)  # too long for one packet, which the others fit into
    sent: list[str] = []
    for _ in range(20):
        left_open = await carol.room.open_text_stream(options)
        aborted = await carol.room.open_text_stream(options)
        sent.append((await carol.room.send_text("short", options)).stream_id)
        sent.append((await carol.room.send_text("", options)).stream_id)
        await aborted.abort("enough")
        sent.append(aborted.header.stream_id)
        sent.append((await carol.room.send_text(long, options)).stream_id)
        sent.append((await carol.room.send_text("for bob", TextOptions("t", ("bob",)))).stream_id)
        await left_open.close()
        sent.append(left_open.header.stream_id)

    assert await bob.closings(len(sent)) == sent


async def test_one_sender_may_hold_so_many_streams_open_and_no_more(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    writers = [
        await carol.room.open_text_stream(TextOptions("t")) for _ in range(MAX_OPEN_OF_SENDER + 1)
    ]
    (refused,) = await bob.closings(1)
    await writers[0].close()
    (first,) = await bob.closings(1)
    await carol.room.send_text("one in its place", TextOptions("t"))

    assert (first, refused) == (writers[0].header.stream_id, writers[-1].header.stream_id)
    assert await bob.texts(1) == ["one in its place"]


async def test_what_was_accepted_arrives_though_we_leave_at_once(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    text = secrets.token_hex(500_000)
    await carol.room.send_text(text, TextOptions("t"))
    await carol.room.leave()
    far_side.joined.remove(carol.room)

    assert await bob.texts(1) == [text]


async def test_the_others_are_seen_and_oneself_is_not(far_side: FarSide) -> None:
    bob = await far_side.join("bob")
    carol = await far_side.join("carol")
    await bob.sees("carol")
    await carol.sees("bob")
    await bob.room.leave()
    far_side.joined.remove(bob.room)
    await carol.sees()


async def test_the_coming_and_going_of_others_is_told(far_side: FarSide) -> None:
    bob = await far_side.join("bob")
    carol, dave, _ = [await far_side.join(name) for name in ("carol", "dave", "erin")]
    came = [await bob.next_of_others() for _ in range(3)]
    await carol.room.leave()
    await dave.room.leave(for_good=True)
    await far_side.remove("erin")
    went = [await bob.next_of_others() for _ in range(3)]
    for left in (carol, dave):
        far_side.joined.remove(left.room)

    assert sorted(came, key=_of_whom) == [
        ParticipantConnected(name, "standard", "", {}) for name in ("carol", "dave", "erin")
    ]
    assert sorted(went, key=_of_whom) == [
        ParticipantDisconnected("carol", "user_unavailable"),
        ParticipantDisconnected("dave", "client_initiated"),
        ParticipantDisconnected("erin", "participant_removed"),
    ]


async def test_changed_attributes_are_told(far_side: FarSide) -> None:
    bob, _ = [await far_side.join(name) for name in ("bob", "carol")]
    await bob.next_of_others()
    await far_side.change("carol", {"a": "1", "b": "2"})
    given = await bob.next_of_others()
    await far_side.change("carol", {"a": ""})
    removed = await bob.next_of_others()
    carol = bob.room.participant("carol")

    both = {"a": "1", "b": "2"}
    assert given == ParticipantAttributesChanged("carol", both, both)
    assert removed == ParticipantAttributesChanged("carol", {"a": ""}, {"b": "2"})
    assert carol is not None
    assert carol.attributes == {"b": "2"}


def _of_whom(event: ParticipantEvent) -> str:
    return event.participant_identity


async def test_the_server_knows_at_once_who_is_there(far_side: FarSide) -> None:
    async def asked() -> tuple[bool, str | None]:
        found = await far_side.rooms.find_participant(far_side.name, "carol")
        exists = await far_side.rooms.room_exists(far_side.name)
        return exists, None if found is None else found.sid

    assert await asked() == (False, None)
    bob = await far_side.join("bob")
    assert await asked() == (True, None)
    carol = await far_side.join("carol")
    assert await asked() == (True, carol.room.local.sid)
    await bob.sees("carol")
    await far_side.remove("carol")
    await bob.sees()
    assert await asked() == (True, None)
    await far_side.delete()
    assert await bob.next() is LostReason.ROOM_CLOSED
    assert await asked() == (False, None)


async def test_who_observes_receives_and_is_not_seen(far_side: FarSide) -> None:
    bob = await far_side.join("bob")
    observer = await far_side.observe()
    carol = await far_side.join("carol")
    await observer.sees("bob", "carol")
    await carol.sees("bob")
    await carol.room.send_text("for all", TextOptions("t"))

    assert observer.room.local.hidden
    assert await observer.texts(1) == ["for all"]
    # The first of whom bob is told came after the observer.
    assert await bob.next_of_others() == ParticipantConnected("carol", "standard", "", {})
    assert set(bob.room.identities) == {"carol"}


async def test_who_observes_sends_on_behalf_of_others(far_side: FarSide) -> None:
    async def all_hear(header: StreamHeader, text: str) -> None:
        # Bob too, who is there by other means than what was sent by.
        for receiver in (bob, carol):
            opened, chunk, closed = [await receiver.next() for _ in range(3)]
            assert isinstance(opened, StreamOpened)
            assert (opened.stream_id, opened.participant_identity) == (header.stream_id, "bob")
            assert chunk == StreamChunk(header.stream_id, "t", "bob", 0, text)
            assert isinstance(closed, StreamClosed)
            assert closed.complete

    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    observer = await far_side.observe()
    header = await observer.room.send_text("whole", TextOptions("t"), sender="bob")
    await all_hear(header, "whole")
    writer = await observer.room.open_text_stream(TextOptions("t"), sender="bob")
    await writer.write("in pieces")
    await writer.close()
    await all_hear(writer.header, "in pieces")

    assert observer.heard.empty()


async def test_joining_as_somebody_who_is_there_takes_his_place(far_side: FarSide) -> None:
    first = await far_side.join("bob")
    await far_side.join("bob")

    assert await first.next() is LostReason.DUPLICATE_IDENTITY


async def test_being_removed_is_told(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    await carol.sees("bob")
    await far_side.remove("bob")

    assert await bob.next() is LostReason.REMOVED


async def test_the_end_of_the_room_is_told_after_that_of_its_streams(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    writer = await carol.room.open_text_stream(TextOptions("t"))
    await writer.write("half")
    await bob.next()
    await bob.next()
    await far_side.delete()
    closed = await bob.next()

    assert isinstance(closed, StreamClosed)
    assert closed.complete is False
    assert await bob.next() is LostReason.ROOM_CLOSED


async def test_nothing_can_be_sent_once_the_connection_is_lost(far_side: FarSide) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    await carol.sees("bob")
    await far_side.remove("bob")
    await bob.next()

    with pytest.raises(LiveKitUnavailable):
        await bob.room.send_text("lost?", TextOptions("t"))
    with pytest.raises(LiveKitUnavailable):
        await bob.room.open_text_stream(TextOptions("t"))


async def test_a_permission_taken_away_is_known(far_side: FarSide) -> None:
    bob = await far_side.join("bob")
    assert bob.room.local.can_publish_data
    await far_side.forbid("bob")

    await bob.is_muted()


async def test_what_is_sent_without_the_permission_is_refused_and_not_lost(
    far_side: FarSide,
) -> None:
    bob, carol = [await far_side.join(name) for name in ("bob", "carol")]
    writer = await carol.room.open_text_stream(TextOptions("t"))
    await writer.write("allowed")
    await bob.next()
    await bob.next()
    await far_side.forbid("carol")
    await carol.is_muted()

    with pytest.raises(NotPermitted):
        await writer.write("lost?")
    with pytest.raises(NotPermitted):
        await writer.close()
    with pytest.raises(NotPermitted):
        await carol.room.send_text("lost?", TextOptions("t"))


async def test_a_server_that_is_not_there_is_told_as_such() -> None:
    rooms = LiveKitRooms("ws://127.0.0.1:1", "devkey", "secret", max_stream_bytes=1)
    with pytest.raises(LiveKitUnavailable, match="cannot be reached"):
        await rooms.join("r", "i", "token", (), _DEAF)
    with pytest.raises(LiveKitUnavailable, match="cannot be reached"):
        await rooms.check()
    await rooms.aclose()


async def test_a_refused_token_is_told_as_such_and_not_shown(livekit: LiveKitServer) -> None:
    secret = "not the secret, but one of at least 32 bytes"
    rooms = LiveKitRooms(livekit.url, "devkey", secret, max_stream_bytes=1)
    token = mint("devkey", secret, room="r", identity="i", ttl=timedelta(minutes=1))
    with pytest.raises(JoinFailed) as error:
        await rooms.join("r", "i", token, (), _DEAF)
    with pytest.raises(JoinFailed, match="refuses"):
        await rooms.check()
    await rooms.aclose()

    assert "refused the token" in error.value.detail
    assert token not in error.value.detail


def _unheard() -> None:
    pass


_DEAF = Listener(lambda event: None, _unheard, _unheard, lambda reason: None)
