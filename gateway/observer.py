"""One unseen connection for all of a room's passive subscribers, and for who is there by other means.

It never creates the room (a room's agents are dispatched when it is created) and does not keep it
open: it waits for the room, sees it end, and is there again when it comes back.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from gateway.connection import Carrier, Connection
from gateway.errors import LiveKitUnavailable, RoomNotOpen, Unavailable
from gateway.event_log import EventLog
from gateway.events import (
    ClosingReason,
    GapReason,
    Happening,
    ParticipantDisconnected,
    RoomClosed,
    RoomReconnecting,
    RoomWaiting,
    StreamEvent,
    StreamOpened,
)
from gateway.joins import Backoff, JoinGate
from gateway.link import Link
from gateway.outgoing import Append
from gateway.rooms.base import LostReason, Room, Rooms, TextOptions

POLL_FIRST = 1.0
"""Seconds until a room that does not exist is looked for again; without webhooks this is what finds it."""

POLL_LAST = 10.0
"""Seconds between looks at most: a tenth of a request a second for each room that is waited for."""


MAX_TOPICS = 10_000
"""Topics that an observer receives: for ten whom it carries and who have as many as one may have."""

OPENING_TIMEOUT = 10.0
"""Seconds that a request waits for the observer to be in a room that has just been created."""


class Tap:
    """What a connection that an observer carries is told, beside the observer's own log."""

    def __init__(
        self,
        identity: str,
        emit: Callable[[Happening], None],
        reconnecting: Callable[[], None],
        reconnected: Callable[[], None],
        lost: Callable[[LostReason], None],
    ) -> None:
        self.identity = identity
        self.emit = emit
        self.reconnecting = reconnecting
        self.reconnected = reconnected
        self.lost = lost


class Observer(Connection):
    def __init__(self, room_name: str, log: EventLog, rooms: Rooms, gate: JoinGate) -> None:
        super().__init__(log, MAX_TOPICS)
        self._name = room_name
        self._rooms = rooms
        self._gate = gate
        self._taps: set[Tap] = set()
        self._absence_watchers: set[tuple[str, Callable[[], None]]] = set()
        self._borrowed: set[str] = set()
        self._nudged = asyncio.Event()
        self._observing = asyncio.Event()

    @property
    def presence(self) -> Literal["observer"]:
        return "observer"

    @property
    def room(self) -> Room | None:
        """What is observed; None while the room does not exist, or LiveKit is out of reach."""
        return None if self._carrier is None else self._carrier.room

    def nudge(self) -> None:  # the room that is waited for may exist
        self._nudged.set()

    async def look(self) -> None:
        """A room that exists is observed when this returns, however long it was waited for.

        Raises LiveKitUnavailable.
        """
        if not isinstance(self._condition, RoomWaiting | RoomClosed):
            return
        if not await self._rooms.room_exists(self._name):
            return
        self._nudged.set()
        try:
            async with asyncio.timeout(OPENING_TIMEOUT):
                await self._observing.wait()
        except TimeoutError:
            raise LiveKitUnavailable("The room is there, but joining it takes too long.") from None

    @contextmanager
    def tapped(self, tap: Tap) -> Iterator[None]:
        """Tells `tap` of everything that is received, while the context lasts."""
        self._taps.add(tap)
        try:
            yield
        finally:
            self._taps.discard(tap)

    def register_topic(self, topic: str) -> None:
        super().register_topic(topic)
        self._borrowed.discard(topic)

    @contextmanager
    def carrying(self, topic: str) -> Iterator[None]:
        """Receives the topic for one whom it carries, and no longer than that unless others want it."""
        borrowed = topic in self._borrowed or not self.log.is_registered(topic)
        self.follow((topic,))
        try:
            if borrowed:
                self._borrowed.add(topic)
            yield
        finally:
            self.unfollow((topic,))
        if topic in self._borrowed and topic not in self._followers:
            self._borrowed.discard(topic)
            self.drop_topic(topic)

    @contextmanager
    def watching_absence(self, identity: str, wake: Callable[[], None]) -> Iterator[None]:
        """Calls `wake` when that participant leaves the room, while the context lasts."""
        watcher = (identity, wake)
        self._absence_watchers.add(watcher)
        try:
            yield
        finally:
            self._absence_watchers.discard(watcher)

    def publish(self, event: StreamEvent, but: Tap | None = None) -> None:
        """Shows everybody a text of ours, which LiveKit does not return to us; `local` to its sender."""
        others = replace(event, local=False) if isinstance(event, StreamOpened) else event
        self.log.append(others)
        for tap in tuple(self._taps):
            if tap is not but:
                tap.emit(event if tap.identity == event.participant_identity else others)

    async def live(self, started: Callable[[], None]) -> None:
        begun = False
        backoff = Backoff()

        def on_start() -> None:
            nonlocal begun
            begun = True
            started()
            backoff.reset()

        while not self.ended:
            try:
                link = Link(self._on_event, self._on_reconnecting, self._on_reconnected)
                room = await self._join(link)
                if room is None:
                    await self._await_room(on_start)
                else:
                    await self._observe(room, link, on_start)
            except Unavailable:
                if not begun:
                    raise
                self._broken()
                await asyncio.sleep(backoff.next())

    async def _join(self, link: Link) -> Room | None:
        """None where the room does not exist: looked for when it is our turn, not before."""
        async with self._gate.turn():
            if not await self._rooms.room_exists(self._name):
                return None
            with self._gate.counted():
                return await self._rooms.observe(self._name, self.log.topics, link.listener)

    async def _observe(self, room: Room, link: Link, started: Callable[[], None]) -> None:
        """Until the connection is lost."""
        for topic in self.log.topics:
            room.register_topic(topic)  # those that came while we joined
        self._carried_by(Carrier(room))
        link.open()
        self._observing.set()
        started()
        reason = await link.lost
        self._observing.clear()
        self._let_go(reason)
        if reason is LostReason.ROOM_CLOSED:
            self._part(GapReason.UNKNOWN)
            self._condition = RoomClosed()
            self.log.append(self._condition)
        else:
            self._broken()
        for tap in tuple(self._taps):
            tap.lost(reason)
        self._tell_of_absence(None)

    async def _await_room(self, started: Callable[[], None]) -> None:
        """Until the room exists."""
        if not isinstance(self._condition, RoomWaiting):
            if isinstance(self._condition, RoomReconnecting):
                self._whole()
            self._part(GapReason.UNKNOWN)
            self._condition = RoomWaiting()
            self.log.append(self._condition)
        started()
        poll = Backoff(POLL_FIRST, POLL_LAST)
        while True:
            self._nudged.clear()
            try:
                async with asyncio.timeout(poll.next()):
                    await self._nudged.wait()
            except TimeoutError:
                pass  # time for a look
            if await self._rooms.room_exists(self._name):
                return

    def _on_event(self, event: Happening) -> None:
        self.log.append(event)
        for tap in tuple(self._taps):
            tap.emit(event)
        if isinstance(event, ParticipantDisconnected):
            self._tell_of_absence(event.participant_identity)

    def _tell_of_absence(self, identity: str | None) -> None:
        """Of this one, or of everybody."""
        for absent, wake in tuple(self._absence_watchers):
            if identity in (absent, None):
                wake()

    def _on_reconnecting(self) -> None:
        self._broken()
        for tap in tuple(self._taps):
            tap.reconnecting()

    def _on_reconnected(self) -> None:
        self._whole()
        for tap in tuple(self._taps):
            tap.reconnected()

    def _end(self, reason: ClosingReason) -> None:
        super()._end(reason)
        self._observing.set()  # who waits for it has nothing to wait for any more

    def _require_sending_room(self) -> Room:
        if isinstance(self._condition, RoomWaiting | RoomClosed):
            raise RoomNotOpen("The room does not exist; somebody must be in it to be sent to.")
        return super()._require_sending_room()

    def _position_before(self, topic: str) -> str:
        # Not registered: who sends unseen has no log here, and others are not to be filled by it.
        return str(self.log.head)

    def _on_behalf_of(self, room: Room, sender: str) -> str:
        return sender

    async def abort_unheard(
        self, sender: str, stream_id: str, options: TextOptions, reason: str
    ) -> None:
        """Not needed: what an observer says for others is heard, whatever they may."""

    def _append_for(self, room: Room, options: TextOptions) -> Append:
        # A text for some is not for all that read here; its sender has no log of its own.
        return _nowhere if options.destination_identities else self.publish

    async def _leave_room(self, *, for_good: bool) -> None:
        if self._carrier is not None:
            await self._carrier.room.leave()


def _nowhere(event: StreamEvent) -> None:
    pass
