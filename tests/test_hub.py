"""Sharing, lingering, leaving: over the in-process twin, where a join can be held up at will."""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import replace

import pytest

from gateway import joins, session
from gateway.auth import Caller
from gateway.connection import Connection
from gateway.errors import (
    Draining,
    JoinFailed,
    LiveKitUnavailable,
    TooManyConnections,
    TooManyRooms,
    TooManyTopics,
)
from gateway.event_log import Entry, EventLog, LogBounds
from gateway.events import (
    PARTICIPANTS,
    ClosingReason,
    GapReason,
    GatewayGap,
    Happening,
    LogEvent,
    StreamChunk,
    StreamClosed,
    closing,
)
from gateway.hub import Hub
from gateway.rooms.base import (
    Listener,
    LostReason,
    Participant,
    TextOptions,
)
from gateway.rooms.memory import OBSERVER, MemoryRoom, MemoryRooms
from tests.gated_rooms import GatedRooms
from tests.running_gateway import DEADLINE, emptied


class SlowRooms(MemoryRooms):
    """The twin, whose joins wait for a sign and may be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.refuse = False
        self.joins = 0
        self.begun: asyncio.Queue[str] = asyncio.Queue()

    async def join(
        self, room: str, identity: str, token: str, topics: Collection[str], listener: Listener
    ) -> MemoryRoom:
        self.joins += 1
        self.begun.put_nowait(room)
        await self.open.wait()
        if self.refuse:
            raise JoinFailed("refused")
        return await super().join(room, identity, token, topics, listener)


def _caller(identity: str = "bob", room: str = "r") -> Caller:
    return Caller(identity, room, True, True, False, time.time() + 600)


def _hub(
    rooms: MemoryRooms,
    *,
    linger: float = 60.0,
    max_connections: int = 10,
    max_rooms_of_identity: int = 10,
) -> Hub:
    return Hub(
        rooms,
        lambda topics: EventLog(_encode, LogBounds(), topics),
        topics=("t",),
        linger=linger,
        max_connections=max_connections,
        max_rooms_of_identity=max_rooms_of_identity,
        drain_spread=0.1,
    )


def _encode(event: LogEvent, position: str) -> bytes:
    match event:
        case StreamChunk():
            return f"{event.type} {event.text}".encode()
        case GatewayGap():
            return f"{event.type} {event.reason} {event.from_}".encode()
        case _:
            return event.type.encode()


async def _held(hub: Hub, caller: Caller) -> Connection:
    async with hub.session(caller) as connection:
        return connection


async def _logged_until(log: EventLog, true: Callable[[], object]) -> None:
    """Once it is true, which is looked at whenever the log tells of something."""
    told = asyncio.Event()
    topics = [*log.topics, PARTICIPANTS]

    def tell(_: Entry | None) -> None:
        told.set()

    log.watch(tell, topics)
    async with asyncio.timeout(DEADLINE):
        while not true():
            told.clear()
            await told.wait()
    log.unwatch(tell, topics)


async def test_requests_at_once_make_one_join() -> None:
    rooms = SlowRooms()
    hub = _hub(rooms)
    waiting = [asyncio.create_task(_held(hub, _caller())) for _ in range(5)]
    await asyncio.sleep(0)
    rooms.open.set()
    connections = await asyncio.gather(*waiting)

    assert rooms.joins == 1
    assert len(set(map(id, connections))) == 1
    await hub.drain()


async def test_a_join_goes_on_when_who_asked_first_goes_away() -> None:
    rooms = SlowRooms()
    hub = _hub(rooms)
    first = asyncio.create_task(_held(hub, _caller()))
    second = asyncio.create_task(_held(hub, _caller()))
    await asyncio.sleep(0)
    first.cancel()
    rooms.open.set()
    async with asyncio.timeout(DEADLINE):
        await second

    assert rooms.joins == 1
    await hub.drain()


async def test_a_refused_join_is_told_to_all_and_not_remembered() -> None:
    rooms = SlowRooms()
    rooms.refuse = True
    rooms.open.set()
    hub = _hub(rooms)
    results = await asyncio.gather(
        *(_held(hub, _caller()) for _ in range(2)), return_exceptions=True
    )
    rooms.refuse = False
    connection = await _held(hub, _caller())

    assert [type(result) for result in results] == [JoinFailed, JoinFailed]
    assert connection.ended is None
    await hub.drain()


async def test_a_connection_lingers_and_is_found_again() -> None:
    rooms = MemoryRooms()
    hub = _hub(rooms)
    first = await _held(hub, _caller())
    second = await _held(hub, _caller())

    assert first is second
    await hub.drain()


async def test_after_its_linger_the_room_is_left_and_the_next_join_begins_a_new_log() -> None:
    rooms = MemoryRooms()
    hub = _hub(rooms, linger=0)
    first = await _held(hub, _caller())
    await _logged_until(first.log, lambda: first.log.ended)
    second = await _held(hub, _caller())

    assert second is not first
    assert second.log.epoch != first.log.epoch
    await hub.drain()


async def test_a_lingering_connection_still_hears() -> None:
    rooms = MemoryRooms()
    hub = _hub(rooms)
    bob = await _held(hub, _caller())
    async with hub.session(_caller("carol")) as carol:
        sent = await carol.send_text("carol", "heard?", TextOptions("t"))

    frames = _frames(bob.log.read(0, ["t"]).entries)
    assert frames == [b"stream.opened", b"stream.chunk heard?", b"stream.closed"]
    assert sent.listeners == 1
    await hub.drain()


async def test_connections_are_bounded() -> None:
    rooms = MemoryRooms()
    hub = _hub(rooms, max_connections=1)
    async with hub.session(_caller()):
        with pytest.raises(TooManyConnections):
            await _held(hub, _caller("carol"))
    await hub.drain()


async def test_one_identity_does_not_take_all_connections() -> None:
    hub = _hub(MemoryRooms(), max_rooms_of_identity=2)
    for room in ("r", "s"):
        await _held(hub, _caller(room=room))
    with pytest.raises(TooManyRooms, match="GATEWAY_MAX_ROOMS_OF_IDENTITY"):
        await _held(hub, _caller(room="t"))
    await _held(hub, _caller("carol", room="t"))
    await hub.drain()


async def test_while_draining_nothing_is_joined() -> None:
    hub = _hub(MemoryRooms())
    await _held(hub, _caller())
    await hub.drain()

    with pytest.raises(Draining):
        await _held(hub, _caller())


async def test_draining_sees_a_join_under_way_out() -> None:
    rooms = SlowRooms()
    hub = _hub(rooms)
    joining = asyncio.create_task(_held(hub, _caller()))
    await asyncio.sleep(0)
    draining = asyncio.create_task(hub.drain())
    await asyncio.sleep(0)
    rooms.open.set()
    async with asyncio.timeout(DEADLINE):
        await draining
        await asyncio.wait({joining})

    assert rooms.identities("r") == set()


async def test_a_text_in_flight_is_accepted_though_the_gateway_is_draining() -> None:
    rooms = GatedRooms()
    hub = _hub(rooms)
    async with hub.session(_caller("bob")) as bob, hub.session(_caller("carol")) as carol:
        sending = asyncio.create_task(carol.send_text("carol", "hi", TextOptions("t")))
        await rooms.taking.wait()
        draining = asyncio.create_task(hub.drain())
        await asyncio.sleep(0)
        rooms.gate.set()
        async with asyncio.timeout(DEADLINE):
            sent = await sending
            await draining

    assert sent.size == 2
    assert _frames(carol.log.read(0, ["t"]).entries) == [
        b"stream.opened",
        b"stream.chunk hi",
        b"stream.closed",
    ]
    assert bob.log.ended == carol.log.ended == closing(ClosingReason.DRAIN)


async def test_an_abort_waits_for_the_piece_that_is_being_taken() -> None:
    rooms = GatedRooms()
    hub = _hub(rooms)
    async with hub.session(_caller()) as connection:
        stream = await connection.open_stream("bob", TextOptions("t"))
        writing = asyncio.create_task(stream.write("piece"))
        await rooms.taking.wait()
        aborting = asyncio.create_task(stream.abort("reason"))
        await asyncio.sleep(0)
        rooms.gate.set()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(LiveKitUnavailable):
                await writing
            await aborting
        frames = _frames(connection.log.read(0, ["t"]).entries)

    assert frames == [b"stream.opened", b"stream.chunk piece", b"stream.closed"]
    await hub.drain()


async def test_a_stream_that_is_aborted_before_its_turn_to_close_is_not_complete() -> None:
    rooms = GatedRooms()
    hub = _hub(rooms)
    ends: list[tuple[str, str | None]] = []

    def emit(event: Happening) -> None:
        if isinstance(event, StreamClosed):
            ends.append((event.stream_id, event.reason))

    await rooms.join("r", "carol", "", ("t",), Listener(emit, _deaf, _deaf, _deaf))
    async with hub.session(_caller()) as connection:
        first, second = [
            await connection.open_stream("bob", TextOptions("t", stream_id=name)) for name in "ab"
        ]
        closing_first = asyncio.create_task(first.close())
        await rooms.taking.wait()
        closing_second = asyncio.create_task(second.close())
        await asyncio.sleep(0)
        aborting = asyncio.create_task(second.abort("reason"))
        await asyncio.sleep(0)
        rooms.gate.set()
        async with asyncio.timeout(DEADLINE):
            await closing_first
            with pytest.raises(LiveKitUnavailable):
                await closing_second
            await aborting

    assert ends == [("a", None), ("b", "reason")]
    await hub.drain()


async def test_draining_leaves_observers_after_the_sessions_that_they_carry() -> None:
    """Whose streams end over them, for receivers to see."""
    rooms = GatedRooms()
    hub = _hub(rooms)
    ends: list[tuple[str | None, bool]] = []

    def emit(event: Happening) -> None:
        if isinstance(event, StreamClosed):
            ends.append((event.reason, OBSERVER in rooms.identities("r")))

    await rooms.join("r", "carol", "", ("t",), Listener(emit, _deaf, _deaf, _deaf))
    await Visitor(rooms).join("bob")
    async with hub.observer("r"), hub.session(_caller()) as bob:
        await bob.open_stream("bob", TextOptions("t"))
        draining = asyncio.create_task(hub.drain())
        for _ in range(
            100
        ):  # turns, in which all happens that does not wait for the end of the stream
            await asyncio.sleep(0)
        rooms.gate.set()
        async with asyncio.timeout(DEADLINE):
            await draining

    assert ends == [("drain", True)]


async def test_livekit_is_left_before_event_streams_end() -> None:
    rooms = MemoryRooms()
    hub = _hub(rooms)
    connection = await _held(hub, _caller())
    present: list[set[str]] = []
    connection.log.watch(lambda _: present.append(rooms.identities("r")), ())
    await hub.drain()

    assert present[-1] == set()


async def test_who_waits_for_a_sender_is_woken_also_when_the_end_came_before() -> None:
    rooms = MemoryRooms()
    hub = _hub(rooms)
    woken: list[str] = []
    connection = await _held(hub, _caller())
    connection.watch_end(lambda: woken.append("in time"))
    rooms.delete_room("r")
    await emptied(hub)
    connection.watch_end(lambda: woken.append("late"))

    assert woken == ["in time", "late"]


async def test_the_loss_of_an_earlier_connection_does_not_touch_the_next() -> None:
    rooms = MemoryRooms()
    hub = _hub(rooms)
    first = await _held(hub, _caller())
    rooms.delete_room("r")
    await emptied(hub)
    second = await _held(hub, _caller())
    await first.leave(ClosingReason.IDLE)
    third = await _held(hub, _caller())

    assert second is third is not first
    await hub.drain()
    assert rooms.identities("r") == set()


async def test_a_request_given_up_while_joining_does_not_hold_the_connection() -> None:
    rooms = SlowRooms()
    hub = _hub(rooms, linger=0)
    waiting = asyncio.create_task(_held(hub, _caller()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    rooms.open.set()
    await emptied(hub)

    assert rooms.identities("r") == set()


async def test_topics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.connection.MAX_TOPICS", 2)
    hub = _hub(MemoryRooms())
    connection = await _held(hub, _caller())
    connection.register_topic("t")
    connection.register_topic("u")
    with pytest.raises(TooManyTopics):
        connection.register_topic("v")
    await hub.drain()


async def test_own_pieces_are_logged_in_the_order_in_which_they_were_taken() -> None:
    hub = _hub(MemoryRooms())
    async with hub.session(_caller()) as connection:
        stream = await connection.open_stream("bob", TextOptions("t"))
        await asyncio.gather(*(stream.write(str(number)) for number in range(10)))
        await stream.close()
        frames = _frames(connection.log.read(0, ["t"]).entries)

    assert frames == [
        b"stream.opened",
        *(b"stream.chunk %d" % number for number in range(10)),
        b"stream.closed",
    ]
    await hub.drain()


def _frames(entries: list[Entry]) -> list[bytes]:
    return [entry.frame for entry in entries]


class Visitor:
    """Somebody in the room by other means, who hears nothing."""

    def __init__(self, rooms: MemoryRooms) -> None:
        self._rooms = rooms

    async def join(self, identity: str, room: str = "r") -> MemoryRoom:
        deaf = Listener(_deaf, _deaf, _deaf, _deaf)
        return await self._rooms.join(room, identity, "", ("t",), deaf)


def _deaf(*_: object) -> None:
    pass


class AskedRooms(MemoryRooms):
    """The twin; who is asked for is told of before the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.on_asked: Callable[[str], None] = lambda identity: None

    async def find_participant(self, room: str, identity: str) -> Participant | None:
        found = await super().find_participant(room, identity)
        self.on_asked(identity)
        return found


async def test_a_room_deleted_while_the_observer_carries_is_not_created_anew() -> None:
    """Also where the look for the other presence comes between the end of the room and its news."""
    rooms = AskedRooms()
    hub = _hub(rooms)
    await Visitor(rooms).join("bob")
    bob = await _held(hub, _caller())
    rooms.on_asked = lambda identity: rooms.delete_room("r")
    hub.nudge("r", "bob")
    await _logged_until(bob.log, lambda: bob.log.ended)

    assert bob.log.ended == closing(ClosingReason.ROOM_CLOSED)
    assert not await rooms.room_exists("r")
    await hub.drain()


async def test_who_leaves_while_the_observer_is_away_does_not_read_on() -> None:
    """Nobody tells of that leaving: the loss of the observer is what has everybody looked for."""
    rooms = AskedRooms()
    hub = _hub(rooms)
    visitor = await Visitor(rooms).join("bob")
    await Visitor(rooms).join("carol")
    asked: asyncio.Queue[str] = asyncio.Queue()
    rooms.on_asked = asked.put_nowait
    absent = asyncio.Event()
    async with asyncio.timeout(DEADLINE):
        hold = await hub.hold_unseen(_caller(), absent.set)
        observer = hold.connection
        for _ in range(2):  # when reading begins, and when watching does
            await asked.get()
        assert isinstance(observer.room, MemoryRoom)
        observer.room.lose(LostReason.DISCONNECTED)
        await visitor.leave()
        await absent.wait()
        hold.release()
    await hub.drain()


async def test_who_is_there_is_not_known_while_a_place_changes_hands() -> None:
    rooms = AskedRooms()
    hub = _hub(rooms)
    known: list[bool] = []

    def look(_: str) -> None:
        try:
            bob.require_received()
        except LiveKitUnavailable:
            known.append(False)
        else:
            known.append(True)

    async with hub.session(_caller()) as bob:
        look("before")
        rooms.on_asked = look  # for it is asked whether the other presence is there
        await Visitor(rooms).join("bob")
        await _logged_until(bob.log, lambda: bob.presence == "observer")
        look("after")

    assert known == [True, False, True]
    await hub.drain()


async def test_what_came_just_before_another_took_our_place_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "HANDOVER_NOTICED", 60.0)
    rooms = MemoryRooms()
    hub = _hub(rooms)
    async with hub.session(_caller()) as bob:
        before = bob.log.head
        carol = await Visitor(rooms).join("carol")
        await carol.send_text("before", TextOptions("t"))
        await Visitor(rooms).join("bob")
        await _logged_until(bob.log, lambda: bob.presence == "observer")
        await carol.send_text("after", TextOptions("t"))
        kept = _frames(bob.log.replay_all(["t"]).replay)

    of_texts = [frame for frame in kept if not frame.startswith(b"participant")]
    assert of_texts[:4] == [
        *(b"stream.opened", b"stream.chunk before", b"stream.closed"),
        f"gateway.gap {GapReason.HANDOVER} {before}".encode(),
    ]
    assert sum(frame.startswith(b"gateway.gap") for frame in kept) == 1
    await hub.drain()


async def test_a_look_that_fails_changes_nothing() -> None:
    rooms = AskedRooms()
    hub = _hub(rooms)
    await Visitor(rooms).join("bob")
    async with hub.session(_caller()) as bob:
        stream = await bob.open_stream("bob", TextOptions("t"))
        asked = asyncio.Event()

        def fail(identity: str) -> None:
            asked.set()
            raise LiveKitUnavailable("not now")

        rooms.on_asked = fail
        hub.nudge("r", "bob")
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        await stream.write("on")
        rooms.on_asked = lambda identity: None
        await stream.close()
    frames = _frames(bob.log.read(0, ["t"]).entries)

    assert frames == [b"stream.opened", b"stream.chunk on", b"stream.closed"]
    await hub.drain()


async def test_leaving_during_a_renewal_leaves_nobody_behind() -> None:
    rooms = MemoryRooms()
    hub = _hub(rooms)
    await Visitor(rooms).join("carol")
    await _held(hub, _caller())
    newer = replace(_caller(), token="newer", grants="others", issued_at=1.0)
    renewing = asyncio.create_task(_held(hub, newer))
    await asyncio.sleep(0)
    await hub.leave(newer)
    with pytest.raises(LiveKitUnavailable):
        await renewing

    assert rooms.identities("r") == {"carol"}
    await hub.drain()


async def test_tokens_of_one_second_do_not_take_turns() -> None:
    rooms = SlowRooms()
    rooms.open.set()
    hub = _hub(rooms)
    for _ in range(5):
        for grants in ("one", "other"):
            await _held(hub, replace(_caller(), token=grants, grants=grants, issued_at=1.0))

    assert rooms.joins == 2
    await hub.drain()


async def test_an_older_token_changes_nothing() -> None:
    rooms = SlowRooms()
    rooms.open.set()
    hub = _hub(rooms)
    await _held(hub, replace(_caller(), token="new", grants="new", issued_at=2.0))
    await _held(hub, replace(_caller(), token="old", grants="old", issued_at=1.0))

    assert rooms.joins == 1
    await hub.drain()


async def test_what_was_received_for_a_carried_session_is_let_go_with_it() -> None:
    rooms = MemoryRooms()
    hub = _hub(rooms)
    visitor = await Visitor(rooms).join("bob")
    async with hub.observer("r") as observer:
        async with hub.session(_caller()) as bob:
            bob.register_topic("own")
            assert observer.log.is_registered("own")
            await visitor.leave()
            await _logged_until(bob.log, lambda: bob.presence == "participant")
        assert not observer.log.is_registered("own")
    await hub.drain()


async def test_an_error_that_nobody_expected_ends_the_event_streams() -> None:
    class Broken(MemoryRooms):
        async def find_participant(self, room: str, identity: str) -> Participant | None:
            if room in self._rooms:
                raise ZeroDivisionError
            return None

    rooms = Broken()
    hub = _hub(rooms)
    bob = await _held(hub, _caller())
    await Visitor(rooms).join("bob")
    await _logged_until(bob.log, lambda: bob.log.ended)

    assert bob.log.ended == closing(ClosingReason.DISCONNECTED)
    assert hub.connections == 0


async def test_draining_begins_no_joins() -> None:
    rooms = SlowRooms()
    hub = _hub(rooms, max_connections=50, max_rooms_of_identity=50)
    joining = [asyncio.create_task(_held(hub, _caller(room=f"r{n}"))) for n in range(30)]
    async with asyncio.timeout(DEADLINE):
        for _ in range(joins.IN_FLIGHT):
            await rooms.begun.get()
        draining = asyncio.create_task(hub.drain())
        await asyncio.sleep(0)
        rooms.open.set()
        await draining
        ended = await asyncio.gather(*joining, return_exceptions=True)

    assert rooms.joins == joins.IN_FLIGHT
    assert sum(isinstance(each, Draining) for each in ended) == 30 - joins.IN_FLIGHT
