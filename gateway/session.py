"""A caller's place in a room: as the participant that its token says, or, where that identity is in
the room by other means, carried by the room's observer, so that neither evicts the other.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum

from gateway.auth import Caller
from gateway.connection import Append, Connection
from gateway.errors import JoinFailed, LiveKitUnavailable, NotPermitted, Unavailable
from gateway.event_log import EventLog
from gateway.events import (
    ClosingReason,
    GapReason,
    ParticipantDisconnected,
    ParticipantEvent,
    Presence,
    StreamChunk,
    StreamClosed,
    StreamEvent,
    StreamOpened,
)
from gateway.joins import Backoff, JoinGate
from gateway.link import Link
from gateway.observer import Observer, Tap
from gateway.rooms.base import LostReason, Room, Rooms, TextOptions

logger = logging.getLogger(__name__)

HANDOVER_NOTICED = 1.0
"""Seconds within which LiveKit tells that another presence has taken our place."""

RECHECK_UNSEEN = 1.0
"""Seconds between looks for a presence that the observer does not see: one that is gone, or new."""

RECHECK_SEEN = 30.0
"""Seconds between looks for one that it sees, whose leaving it is told."""

RENEW_TIMEOUT = 10.0
"""Seconds that a request with a newer token waits for the join with it; 0.2 are usual."""

HANDOVER = "handover"
"""The reason of a stream that was open when another took over who receives it."""

Observing = Callable[[], AbstractAsyncContextManager[Observer]]

KnownObserver = Callable[[], Observer | None]
"""The room's observer, where somebody holds one."""


class _Turn(Enum):
    """Why a session is to be carried otherwise, beside a LostReason."""

    RENEW = "renew"
    """A newer token with other grants came."""
    LOOK = "look"
    """The other presence of our identity may be gone."""


@dataclass(slots=True)
class _Open:
    opened: StreamOpened
    size: int = 0
    chunks: int = 0


class ParticipantSession(Connection):
    def __init__(
        self,
        caller: Caller,
        log: EventLog,
        rooms: Rooms,
        gate: JoinGate,
        observing: Observing,
        known_observer: KnownObserver,
    ) -> None:
        super().__init__(log)
        self.identity = caller.identity
        self._caller = caller
        self._rooms = rooms
        self._gate = gate
        self._observing = observing
        self._known_observer = known_observer
        self._observer: Observer | None = None
        self._begun = False
        self._settled = asyncio.Event()
        self._settled.set()
        self._sid: str | None = None
        self._turn: asyncio.Future[_Turn | LostReason] | None = None
        self._tapped: dict[tuple[str, str], _Open] = {}
        self._removed = False

    @property
    def presence(self) -> Presence:
        return "participant" if self._observer is None else "observer"

    def renew(self, caller: Caller) -> None:
        """A request came with this token: the newest is what we join with, at once if its grants differ."""
        if caller.token == self._caller.token or caller.issued_at < self._caller.issued_at:
            return
        before, self._caller = self._caller, caller
        if caller.grants != before.grants and self._begun and self._observer is None:
            self._settled.clear()
            self._take_turn(_Turn.RENEW)

    async def settled(self) -> None:
        """Once we are in the room with the newest grants. Raises LiveKitUnavailable."""
        try:
            async with asyncio.timeout(RENEW_TIMEOUT):
                await self._settled.wait()
        except TimeoutError:
            raise LiveKitUnavailable("Joining again with the newer token takes too long.") from None

    def nudge(self) -> None:  # the other presence of our identity may be gone
        if self._observer is not None:
            self._take_turn(_Turn.LOOK)

    async def live(self, started: Callable[[], None]) -> None:
        backoff = Backoff()

        def on_start() -> None:
            self._begun = True
            self._settled.set()
            started()
            backoff.reset()

        while not self.ended:
            try:
                if await self._is_elsewhere():
                    await self._be_observed(on_start)
                else:
                    await self._participate(on_start)
            except Unavailable as error:
                if not self._begun:
                    raise
                self._settled.set()
                if isinstance(error, JoinFailed):
                    # LiveKit refuses the token: trying again would not change that.
                    self._finish(ClosingReason.DISCONNECTED)
                    return
                self._broken()
                await asyncio.sleep(backoff.next())

    async def _participate(self, started: Callable[[], None]) -> None:
        """As ourselves, until that ends."""
        caller = self._caller
        link = Link(self.log.append, self._broken, self._whole)
        async with self._gate.turn():
            room = await self._rooms.join(
                caller.room, caller.identity, caller.token, self.log.topics, link.listener
            )
        self._sid = room.local.sid
        self._carried_by(room)
        link.open()
        turn = self._next_turn()
        await self._wake_observer()
        if self._caller.grants != caller.grants:
            turn.set_result(_Turn.RENEW)  # came while we joined
        link.lost.add_done_callback(
            lambda lost: None if lost.cancelled() else self._take_turn(lost.result(), turn)
        )
        started()
        match await turn:
            case LostReason.ROOM_CLOSED:
                self._finish(ClosingReason.ROOM_CLOSED)
            case LostReason.REMOVED:
                self._finish(ClosingReason.REMOVED)
            case LostReason.DUPLICATE_IDENTITY:
                self._part(GapReason.HANDOVER, HANDOVER_NOTICED)
                self._let_go(LostReason.DUPLICATE_IDENTITY)
            case LostReason.DISCONNECTED:
                self._broken()
                self._let_go(LostReason.DISCONNECTED)
            case _:
                self._part(GapReason.HANDOVER)
                await self._abort_outgoing(HANDOVER)
                self._let_go(HANDOVER)
                await room.leave()

    async def _wake_observer(self) -> None:
        """The room exists, for we are in it: who waits for it unseen is to miss nothing that we send."""
        if (observer := self._known_observer()) is not None:
            try:
                await observer.look()
            except LiveKitUnavailable as error:
                logger.info("The observer of a room came too late: %s", error.detail)

    async def _be_observed(self, started: Callable[[], None]) -> None:
        """Carried by the observer, until the other presence of our identity is gone."""
        async with self._observing() as observer:
            await observer.look()
            room = observer.room
            if room is None:
                raise LiveKitUnavailable("The room cannot be observed now.")
            tap = Tap(
                self.identity, self._on_tapped, self._broken, self._whole, self._on_observer_lost
            )
            with observer.tapped(tap):
                self._observer = observer
                self._removed = False
                self._carried_by(room)
                started()
                try:
                    await self._until_free(room)
                finally:
                    self._let_go(HANDOVER)
                    self._end_tapped()
                    self._observer = None

    async def _until_free(self, room: Room) -> None:
        elsewhere = True
        turn = self._next_turn()
        while elsewhere:
            seen = self.identity in room.identities
            await asyncio.wait({turn}, timeout=RECHECK_SEEN if seen else RECHECK_UNSEEN)
            if turn.done() and isinstance(turn.result(), LostReason):
                self._let_go(LostReason.DISCONNECTED)
                if turn.result() is LostReason.ROOM_CLOSED:
                    self._finish(ClosingReason.ROOM_CLOSED)
                else:
                    self._broken()
                return
            # Before the look, so that what happens during it is not missed.
            turn = self._next_turn()
            elsewhere = await self._is_elsewhere()
        await self._abort_outgoing(HANDOVER)
        if self._removed:
            self._finish(ClosingReason.REMOVED)
        else:
            self._part(GapReason.HANDOVER)

    def _next_turn(self) -> "asyncio.Future[_Turn | LostReason]":
        self._turn = asyncio.get_running_loop().create_future()
        return self._turn

    async def _is_elsewhere(self) -> bool:
        """Whether our identity is in the room by other means than our own last connection."""
        found = await self._rooms.find_participant(self._caller.room, self.identity)
        return found is not None and found.state != "disconnected" and found.sid != self._sid

    def _take_turn(
        self, turn: _Turn | LostReason, of: "asyncio.Future[_Turn | LostReason] | None" = None
    ) -> None:
        waiting = of or self._turn
        if waiting is not None and not waiting.done():
            waiting.set_result(turn)

    def _on_observer_lost(self, reason: LostReason) -> None:
        self._take_turn(reason)

    def _on_tapped(self, event: StreamEvent | ParticipantEvent) -> None:
        """An event of the observer's, unless it is of a stream whose beginning we did not see."""
        match event:
            case StreamOpened() if self.log.is_registered(event.topic):
                self._tapped[event.participant_identity, event.stream_id] = _Open(event)
            case StreamChunk():
                stream = self._tapped.get((event.participant_identity, event.stream_id))
                if stream is None:
                    return
                stream.chunks += 1
                stream.size += len(event.text.encode())
            case StreamClosed():
                if self._tapped.pop((event.participant_identity, event.stream_id), None) is None:
                    return
            case StreamOpened():
                return
            case _:
                pass  # of participants
        self.log.append(event)
        if (
            isinstance(event, ParticipantDisconnected)
            and event.participant_identity == self.identity
        ):
            self._removed = event.reason == "participant_removed"
            self._take_turn(_Turn.LOOK)

    def _end_tapped(self) -> None:
        """Streams that the observer goes on receiving are cut off for us."""
        for stream in self._tapped.values():
            opened = stream.opened
            self.log.append(
                StreamClosed(
                    stream_id=opened.stream_id,
                    topic=opened.topic,
                    participant_identity=opened.participant_identity,
                    complete=False,
                    reason=HANDOVER,
                    attributes=opened.attributes or {},
                    size=stream.size,
                    chunks=stream.chunks,
                )
            )
        self._tapped.clear()

    def _receive(self, topic: str) -> None:
        if self._observer is None:
            super()._receive(topic)
        else:
            self._observer.register_topic(topic)

    def _ignore(self, topic: str) -> None:
        # What the observer receives is not ours to end.
        if self._observer is None:
            super()._ignore(topic)

    def _require_sending_room(self) -> Room:
        room = super()._require_sending_room()
        if self._observer is None and room.local.hidden:
            # LiveKit hides the sender too: receivers would see a text of nobody.
            raise NotPermitted(
                "This identity is in the room hidden, by a token that is as new as this request's;"
                " it can send with a newer one, or once that is over."
            )
        return room

    def _on_behalf_of(self, room: Room, sender: str) -> str | None:
        return None if self._observer is None else sender

    def _append_for(self, room: Room, options: TextOptions) -> Append:
        if self._observer is None or options.destination_identities:
            return self.log.append
        return self._observer.publish

    async def _leave_room(self, *, for_good: bool) -> None:
        # The observer is not ours to leave.
        if self._room is not None and self._observer is None:
            await self._room.leave(for_good=for_good)
