"""Every LiveKit connection of this process: opened, shared, lingering, drained.

A connection is a participant's session in a room, keyed by (room, identity), or the observer of a
room, which all its passive subscribers share. It lives while a request holds it, and lingers after
the last one, so that a page reload or the next POST finds the participant still in the room.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

from gateway.auth import Caller
from gateway.connection import Connection
from gateway.errors import (
    Draining,
    GatewayError,
    LiveKitUnavailable,
    NotInRoom,
    NotPermitted,
    PresenceRequired,
    TooManyConnections,
    TooManyRooms,
    TooManyTopics,
    TopicFixed,
    TopicNotRegistered,
)
from gateway.event_log import EventLog, Position
from gateway.events import ClosingReason, RoomClosed, RoomReconnecting, RoomWaiting
from gateway.joins import JoinGate
from gateway.metrics import Metrics
from gateway.observer import Observer
from gateway.rooms.base import NOT_PERMITTED, Participant, Rooms
from gateway.session import RECHECK_SEEN, RECHECK_UNSEEN, ParticipantSession

logger = logging.getLogger(__name__)

REMEMBERED_ENDS = 10_000
"""Connections that ended for good and are remembered, so that a browser's automatic reconnect does
not undo it; about 200 bytes each."""

MAX_REGISTERED_TOPICS = 1_000
"""Topics that administrators register for one room; as many as a connection receives."""


class Key(NamedTuple):
    room: str
    identity: str | None
    """None: the observer of the room."""


SWEEP = 60.0
"""Seconds between two looks at what is remembered for too long."""

DRAIN_PAUSE = 0.01
"""Seconds between leaving one room and the next at most, when all are left."""


class State(StrEnum):
    """How a connection is."""

    JOINING = "joining"
    """Of no use yet."""
    JOINED = "joined"
    LINGERING = "lingering"
    """Joined, and held by no request."""
    RECONNECTING = "reconnecting"
    """LiveKit is out of reach."""
    WAITING = "waiting"
    """The room that is observed does not exist."""
    LEAVING = "leaving"


C = TypeVar("C", bound=Connection)


@dataclass(slots=True, eq=False)
class _Slot(Generic[C]):
    """A key's place in the hub, from the first request for it until LiveKit has been left."""

    key: Key
    connection: C
    started: "asyncio.Future[None]"
    """Done when the connection is of use, or with what kept it from that."""
    living: "asyncio.Task[None]" = field(init=False)
    users: int = 0
    linger: asyncio.TimerHandle | None = None
    leaving: "asyncio.Task[None] | None" = None

    @property
    def state(self) -> State:
        if self.leaving is not None:
            return State.LEAVING
        if not self.started.done():
            return State.JOINING
        match self.connection.condition:
            case RoomReconnecting():
                return State.RECONNECTING
            case RoomWaiting() | RoomClosed():
                return State.WAITING
            case _:
                return State.JOINED if self.users else State.LINGERING


class Hold(Generic[C]):
    """A connection in use, as a context or until it is released. An event stream has one for hours: it is
    small."""

    __slots__ = ("_hub", "_slot", "_watching")

    def __init__(self, hub: "Hub", slot: _Slot[C]) -> None:
        self._hub: Hub | None = hub
        self._slot = slot
        self._watching: asyncio.Task[None] | None = None

    @property
    def connection(self) -> C:
        return self._slot.connection

    def __enter__(self) -> C:
        return self.connection

    def __exit__(self, *_: object) -> None:
        self.release()

    def release_with(self, watching: "asyncio.Task[None]") -> None:
        """It is ended with this."""
        self._watching = watching

    def release(self) -> None:
        if self._hub is not None:
            hub, self._hub = self._hub, None
            if self._watching is not None:
                self._watching.cancel()
            hub.release(self._slot)


@dataclass(slots=True)
class _Registered:
    """What administrators registered for a room, and the observer that it keeps."""

    holding: AsyncExitStack
    topics: dict[str, None] = field(default_factory=dict)


class Hub:
    def __init__(
        self,
        rooms: Rooms,
        new_log: Callable[[Collection[str]], EventLog],
        *,
        topics: Collection[str],
        linger: float,
        max_connections: int,
        max_rooms_of_identity: int,
        drain_spread: float,
    ) -> None:
        """`new_log` is given the topics that are received from the beginning. `drain_spread`: seconds over
        which all are left at most."""
        self.starting = False
        """Set while it is not known yet whether LiveKit takes our API key."""
        self.draining = False
        self.metrics = Metrics()
        """What has been counted in this process, by whoever counts."""
        self._rooms = rooms
        self._gate = JoinGate(self.metrics)
        self._new_log = new_log
        self._topics = topics
        self._linger = linger
        self._max_connections = max_connections
        self._max_rooms_of_identity = max_rooms_of_identity
        self._drain_spread = drain_spread
        # What a key holds is decided by the key, as the two ways to acquire it.
        self._slots: dict[Key, _Slot[Any]] = {}
        self._registered: dict[str, _Registered] = {}
        self._ends: OrderedDict[Key, str] = OrderedDict()
        self._sweeping: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._drain_watchers: set[Callable[[], None]] = set()

    @asynccontextmanager
    async def session(self, caller: Caller) -> AsyncIterator[ParticipantSession]:
        """As `hold_session`, for as long as the context lasts."""
        with await self.hold_session(caller) as session:
            yield session

    async def hold_session(self, caller: Caller) -> "Hold[ParticipantSession]":
        """The caller's place in the room, joined if need be.

        Raises Draining, TooManyConnections, TooManyRooms, TooManyJoins, TooManyTopics, JoinFailed,
        LiveKitUnavailable.
        """
        slot = await self._acquire(
            Key(caller.room, caller.identity), lambda: self._new_session(caller)
        )
        try:
            slot.connection.renew(caller)
            await slot.connection.settled()
        except BaseException:
            self.release(slot)
            raise
        return Hold(self, slot)

    @asynccontextmanager
    async def observer(self, room: str) -> AsyncIterator[Observer]:
        """The room's observer, held while the context is.

        Raises Draining, TooManyConnections, TooManyJoins, JoinFailed, LiveKitUnavailable.
        """
        with await self._hold_observer(room) as observer:
            yield observer

    async def _hold_observer(self, room: str) -> "Hold[Observer]":
        slot = await self._acquire(Key(room, None), lambda: self._new_observer(room))
        return Hold(self, slot)

    async def hold_unseen(self, caller: Caller, on_absent: Callable[[], None]) -> "Hold[Observer]":
        """The room's observer. `on_absent` is called when this caller may not read there any more: by having
        been in the room, and having left it.

        Raises PresenceRequired, and as `observer` does.
        """
        by_presence = not (caller.hidden or caller.room_admin)
        if by_presence:
            await self._require_present(caller)
        hold = await self._hold_observer(caller.room)
        try:
            await hold.connection.look()
        except BaseException:
            hold.release()
            raise
        if by_presence:
            watching = self._watch_presence(caller, hold.connection, on_absent)
            hold.release_with(asyncio.create_task(watching))
        return hold

    async def _watch_presence(
        self, caller: Caller, observer: Observer, on_absent: Callable[[], None]
    ) -> None:
        """Looks now, whenever the observer is told of a leaving, and now and then: who came and went at
        once is never told of."""
        changed = asyncio.Event()
        with observer.watching_absence(caller.identity, changed.set):
            while True:
                room = observer.room
                seen = room is not None and caller.identity in room.identities
                try:
                    await self._require_present(caller)
                except PresenceRequired:
                    on_absent()
                    return
                except LiveKitUnavailable:
                    pass  # not known; the next look tells
                try:
                    async with asyncio.timeout(RECHECK_SEEN if seen else RECHECK_UNSEEN):
                        await changed.wait()
                except TimeoutError:
                    pass  # time for a look
                changed.clear()

    async def require_may_send_unseen(self, caller: Caller) -> None:
        """Raises PresenceRequired, NotPermitted, LiveKitUnavailable."""
        if caller.room_admin:
            return
        found = await self._require_present(caller)
        if not found.can_publish_data:
            raise NotPermitted(NOT_PERMITTED)

    @property
    def connections(self) -> int:
        """How many there are: joining, joined, lingering or leaving."""
        return len(self._slots)

    @property
    def states(self) -> Counter[tuple[bool, State]]:
        """How many of them are participants, or observers, and in which state."""
        return Counter((key.identity is None, slot.state) for key, slot in self._slots.items())

    @property
    def joins_waiting(self) -> int:
        """For their turn."""
        return self._gate.waiting

    @property
    def ignored_messages(self) -> Counter[str]:
        """What agents told that became no event."""
        return self._rooms.ignored_messages

    @property
    def logs(self) -> list[EventLog]:
        return [slot.connection.log for slot in self._slots.values()]

    async def must_not_come_back(self, caller: Caller, last: Position) -> bool:
        """Whether an event stream that was at `last` must not be resumed by a browser's own reconnect:
        it ended for good, or resuming it would create the room anew.

        Raises Draining, LiveKitUnavailable.
        """
        key = Key(caller.room, caller.identity)
        if self._ends.get(key) == last.epoch:
            return True
        self.require_not_draining()
        slot = self._slots.get(key)
        if slot is not None and slot.leaving is None:
            return False
        return not await self._rooms.room_exists(caller.room)

    async def leave(self, caller: Caller) -> None:
        """The caller leaves the room now, for good. Raises NotInRoom."""
        slot = self._slots.get(Key(caller.room, caller.identity))
        if slot is None or slot.connection.ended:
            raise NotInRoom("This participant is not in the room through this gateway.")
        await asyncio.wait({self._leave(slot, ClosingReason.LEFT)})

    def topics(self, caller: Caller) -> list[str]:
        """Those that are registered for the room, or received for the caller."""
        topics = dict.fromkeys(self._room_topics(caller.room))
        if slot := self._slots.get(Key(caller.room, caller.identity)):
            topics |= dict.fromkeys(slot.connection.log.topics)
        return list(topics)

    async def register_topic(self, room: str, topic: str) -> bool:
        """Receives and logs the topic in this room, with or without subscribers; whether that is new.

        Raises TooManyTopics, and as `observer` does.
        """
        if topic in self._room_topics(room):
            return False
        async with AsyncExitStack() as holding:
            await holding.enter_async_context(self.observer(room))
            if topic in self._room_topics(room):
                return False  # somebody else was as fast
            registered = self._registered.get(room)
            if registered is not None and len(registered.topics) >= MAX_REGISTERED_TOPICS:
                raise TooManyTopics(f"{MAX_REGISTERED_TOPICS} topics are registered for this room.")
            for slot in self._slots_in(room):
                # A participant that receives as many as we let it does not keep the others from it.
                if slot.key.identity is None or slot.connection.has_room_for_topics:
                    slot.connection.register_topic(topic)
            if registered is None:
                registered = self._registered[room] = _Registered(holding.pop_all())
            registered.topics[topic] = None
        return True

    async def drop_topic(self, room: str, topic: str) -> None:
        """Raises TopicFixed, TopicNotRegistered."""
        if topic in self._topics:
            raise TopicFixed(
                "The topic is one of GATEWAY_TOPICS, which are received in every room."
            )
        registered = self._registered.get(room)
        if registered is None or topic not in registered.topics:
            raise TopicNotRegistered("The topic is not registered for this room.")
        del registered.topics[topic]
        for slot in self._slots_in(room):
            slot.connection.drop_topic(topic)
        if not registered.topics:
            del self._registered[room]
            await registered.holding.aclose()

    def nudge(self, room: str, identity: str | None) -> None:
        """Something happened in the room, to this participant if one is named: LiveKit says so."""
        for key in {Key(room, None), Key(room, identity)}:
            if slot := self._slots.get(key):
                slot.connection.nudge()

    def require_not_draining(self) -> None:
        """Raises Draining."""
        if self.draining:
            raise Draining("The gateway is going away; come back in a moment.")

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
        self._gate.close()
        for wake in tuple(self._drain_watchers):
            wake()
        # Observers last: sessions that they carry end their streams over them.
        sessions = [slot for slot in self._slots.values() if slot.key.identity is not None]
        leaving = []
        for slot in sessions:
            leaving.append(self._leave(slot, ClosingReason.DRAIN))
            # Their clients come back at once, and join elsewhere.
            await asyncio.sleep(min(DRAIN_PAUSE, self._drain_spread / len(sessions)))
        if leaving:
            await asyncio.wait(leaving)
        for slot in tuple(self._slots.values()):
            self._leave(slot, ClosingReason.DRAIN)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _new_session(self, caller: Caller) -> ParticipantSession:
        of_identity = sum(key.identity == caller.identity for key in self._slots)
        if of_identity >= self._max_rooms_of_identity:
            raise TooManyRooms(
                f"The identity {caller.identity!r} is in {of_identity} rooms through this gateway,"
                " as many as GATEWAY_MAX_ROOMS_OF_IDENTITY allows."
            )
        log = self._new_log(self._room_topics(caller.room))
        return ParticipantSession(
            caller,
            log,
            self._rooms,
            self._gate,
            lambda: self.observer(caller.room),
            lambda: self._known_observer(caller.room),
        )

    def _known_observer(self, room: str) -> Observer | None:
        slot = self._slots.get(Key(room, None))
        return None if slot is None or slot.leaving is not None else slot.connection

    def _new_observer(self, room: str) -> Observer:
        return Observer(room, self._new_log(self._room_topics(room)), self._rooms, self._gate)

    def _room_topics(self, room: str) -> list[str]:
        registered = self._registered.get(room)
        return [*self._topics, *(registered.topics if registered else ())]

    def _slots_in(self, room: str) -> list[_Slot[Any]]:
        return [
            slot
            for slot in self._slots.values()
            if slot.key.room == room and not slot.connection.ended
        ]

    async def _require_present(self, caller: Caller) -> Participant:
        found = await self._rooms.find_participant(caller.room, caller.identity)
        if found is None or found.hidden:
            raise PresenceRequired(
                "presence=none is for who is in the room by other means, or has a token with"
                " 'roomAdmin' (or, to read, 'hidden'); leave it out to join the room."
            )
        return found

    async def _acquire(self, key: Key, new: "Callable[[], C]") -> "_Slot[C]":
        # A connection that is on its way out is waited for: joining beside it, one would evict the other.
        while (slot := self._slots.get(key)) is not None and slot.leaving is not None:
            await asyncio.wait({slot.leaving})
        self.require_not_draining()
        if slot is None:
            slot = self._open(key, new)
        slot.users += 1
        if slot.linger is not None:
            slot.linger.cancel()
            slot.linger = None
        try:
            if not slot.started.done():
                await asyncio.wait({slot.started})
            slot.started.result()
        except BaseException:
            self.release(slot)
            raise
        return slot

    def _open(self, key: Key, new: "Callable[[], C]") -> "_Slot[C]":
        if self.connections >= self._max_connections:
            raise TooManyConnections("The gateway has as many LiveKit connections as it takes.")
        slot = _Slot(key, new(), asyncio.get_running_loop().create_future())
        self._slots[key] = slot
        if self._sweeping is None:
            self._sweep_later()
        # The join belongs to the hub: whoever asked first may go away while others wait for it.
        slot.living = self._start(self._live(slot))
        return slot

    async def _live(self, slot: _Slot[Any]) -> None:
        """Until the connection has ended by itself."""
        connection, started = slot.connection, slot.started

        def on_start() -> None:
            if not started.done():
                started.set_result(None)

        try:
            await connection.live(on_start)
        except GatewayError as error:
            # A join's error is answered to the requests that wait for it; the operator is told as well.
            logger.warning("A join failed: %s", error.detail)
            if not started.done():
                _fail(started, error)
        finally:
            if not started.done():
                _fail(started, LiveKitUnavailable("The connection ended before it was of use."))
            if slot.leaving is None:
                self._forget(slot)
                # Whatever it ended with, nobody is left to read on, or in the room.
                await connection.leave(ClosingReason.DISCONNECTED)
        if (reason := connection.ended) and not reason.reconnect and slot.key.identity is not None:
            self._remember_end(slot.key, connection.log.epoch)

    def _forget(self, slot: _Slot[Any]) -> None:
        if slot.linger is not None:
            slot.linger.cancel()
        if self._slots.get(slot.key) is slot:
            del self._slots[slot.key]
            slot.connection.log.discard()
            self._count_past(slot.connection.log)

    def _count_past(self, log: EventLog) -> None:
        self.metrics.past_events += log.head.seq
        self.metrics.past_evicted_events += log.evicted
        self.metrics.past_gaps += log.gaps

    def _sweep_later(self) -> None:
        self._sweeping = asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        """What is too old is dropped also where nothing happens."""
        for slot in self._slots.values():
            slot.connection.log.evict()
        self._sweeping = None
        if self._slots:
            self._sweep_later()

    def release(self, slot: _Slot[Any]) -> None:
        """A request less holds it."""
        slot.users -= 1
        held = self._slots.get(slot.key) is slot
        if slot.users == 0 and held and slot.leaving is None:
            slot.linger = asyncio.get_running_loop().call_later(
                self._linger, self._leave, slot, ClosingReason.IDLE
            )

    def _leave(self, slot: _Slot[Any], reason: ClosingReason) -> "asyncio.Task[None]":
        if slot.linger is not None:
            slot.linger.cancel()
            slot.linger = None
        if slot.leaving is None:
            slot.leaving = self._start(self._see_out(slot, reason))
        return slot.leaving

    async def _see_out(self, slot: _Slot[Any], reason: ClosingReason) -> None:
        try:
            # A join that is under way is seen through: given up, it would leave a ghost in the room.
            await asyncio.wait({slot.started})
            await slot.connection.leave(reason)
            if not reason.reconnect:
                self._remember_end(slot.key, slot.connection.log.epoch)
        finally:
            slot.living.cancel()
            await asyncio.wait({slot.living})
            self._forget(slot)

    def _remember_end(self, key: Key, epoch: str) -> None:
        self._ends[key] = epoch
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
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("A connection failed in a way that it should not.", exc_info=error)


def _fail(started: "asyncio.Future[None]", error: GatewayError) -> None:
    started.set_exception(error)
    started.exception()  # retrieved, for all that waited may have gone
