"""A caller's place in a room: as the participant that its token says, or, where that identity is in
the room by other means, carried by the room's observer, so that neither evicts the other.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from enum import Enum

from gateway.auth import Caller
from gateway.connection import Carrier, Connection
from gateway.errors import (
    JoinFailed,
    LiveKitUnavailable,
    NotPermitted,
    NotSupported,
    Unavailable,
)
from gateway.event_log import EventLog
from gateway.events import (
    ClosingReason,
    GapReason,
    Happening,
    ParticipantDisconnected,
    Presence,
    StreamChunk,
    StreamClosed,
    StreamEvent,
    StreamOpened,
)
from gateway.joins import Backoff, JoinGate
from gateway.link import Link
from gateway.observer import Observer, Tap
from gateway.outgoing import Append, OutgoingStream, Sent
from gateway.rooms.base import NOT_PERMITTED, LostReason, Room, Rooms, TextOptions
from gateway.tally import StreamTally

logger = logging.getLogger(__name__)

HANDOVER_NOTICED = 1.0
"""Seconds within which LiveKit tells that another presence has taken our place."""

RECHECK_UNSEEN = 1.0
"""Seconds between looks for a presence that the observer does not see: one that is gone, or new."""

RECHECK_SEEN = 30.0
"""Seconds between looks for one that it sees, whose leaving it is told."""

SETTLING = 0.3
"""Seconds for which our identity must be nobody's before we join as it again."""

RENEW_TIMEOUT = 10.0
"""Seconds that a request with a newer token waits for the join with it; 0.2 are usual."""

HANDOVER = "handover"
"""The reason of a stream that was open when another took over who receives it."""

Observing = Callable[[], AbstractAsyncContextManager[Observer]]

KnownObserver = Callable[[], Observer | None]
"""The room's observer, where somebody holds one."""


class _Cause(Enum):
    """Why a session is to look how it is carried."""

    LOST = "lost"
    """LiveKit has ended what carried it."""
    RENEW = "renew"
    """A newer token with other grants came."""
    LOOK = "look"
    """The other presence of our identity may be gone."""


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
        self._begun = False
        self._settled = asyncio.Event()
        self._settled.set()
        self._sid: str | None = None
        self._superseded: set[str] = set()
        self._cause: asyncio.Future[_Cause] | None = None
        self._lost: LostReason | None = None
        self._tap: Tap | None = None
        self._carried_topics = ExitStack()
        self._tapped: dict[tuple[str, str], StreamTally] = {}
        self._removed = False

    @property
    def presence(self) -> Presence:
        return "participant" if self._observer is None else "observer"

    @property
    def _observer(self) -> Observer | None:
        """Who carries us, where we are not in the room ourselves."""
        observer = None if self._carrier is None else self._carrier.observer
        return observer if isinstance(observer, Observer) else None

    def renew(self, caller: Caller) -> None:
        """A request came with this token: the newest is what we join with, at once if its grants differ."""
        held = self._caller
        if caller.token == held.token or caller.issued_at < held.issued_at:
            return
        if caller.issued_at > held.issued_at:
            self._superseded.clear()
        elif caller.grants in self._superseded:
            return  # of one second: two that take turns would have us join without end
        self._caller = caller
        if caller.grants != held.grants:
            self._superseded.add(held.grants)
            if self._begun and self._observer is None:
                self._settled.clear()
                self._wake(_Cause.RENEW)

    async def settled(self) -> None:
        """Once we are in the room with the newest grants. Raises Draining, LiveKitUnavailable."""
        if not self._settled.is_set():
            try:
                async with asyncio.timeout(RENEW_TIMEOUT):
                    await self._settled.wait()
            except TimeoutError:
                raise LiveKitUnavailable(
                    "Joining again with the newer token takes too long."
                ) from None
        self.require_up()

    def nudge(self) -> None:  # the other presence of our identity may be gone
        if self._observer is not None:
            self._wake(_Cause.LOOK)

    async def send_text(self, sender: str, text: str, options: TextOptions) -> Sent:
        await self._require_author()
        return await super().send_text(sender, text, options)

    async def open_stream(self, sender: str, options: TextOptions) -> OutgoingStream:
        await self._require_author()
        return await super().open_stream(sender, options)

    async def _require_author(self) -> None:
        """On whose behalf the observer sends is in the room, and may send, also where LiveKit has not
        told of it yet. Raises NotPermitted, LiveKitUnavailable."""
        if self._observer is None or self._observer.room is None:
            return
        if self.identity in self._observer.room.identities:
            return  # and what it may is looked at with each piece
        found = await self._rooms.find_participant(self._caller.room, self.identity)
        if found is None:
            raise LiveKitUnavailable("This participant is just leaving; its place changes hands.")
        if not found.can_publish_data:
            raise NotPermitted(NOT_PERMITTED)

    async def live(self, started: Callable[[], None]) -> None:
        backoff = Backoff()

        def on_start() -> None:
            self._begun = True
            started()
            backoff.reset()

        while not self.ended:
            try:
                caller = self._caller
                link = Link(self.log.append, self._broken, self._whole)
                room = await self._join(caller, link)
                if room is None:
                    await self._be_observed(on_start)
                else:
                    await self._participate(room, link, caller, on_start)
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

    async def _join(self, caller: Caller, link: Link) -> Room | None:
        """None where our identity is there by other means: looked for when it is our turn, not before."""
        async with self._gate.turn():
            if await self._is_elsewhere():
                return None
            with self._gate.counted():
                return await self._rooms.join(
                    caller.room, caller.identity, caller.token, self.log.topics, link.listener
                )

    async def _participate(
        self, room: Room, link: Link, caller: Caller, started: Callable[[], None]
    ) -> None:
        """As ourselves, until that ends."""
        self._sid = room.local.sid
        for topic in self.log.topics:
            room.register_topic(topic)  # those that came while we joined
        self._carried_by(Carrier(room))
        link.open()
        cause = self._next_cause()
        link.lost.add_done_callback(lambda _: self._wake(_Cause.LOST, cause))
        await self._wake_observer()
        if self._caller.grants != caller.grants:
            self._wake(_Cause.RENEW, cause)  # came while we joined
        if not cause.done():
            self._settled.set()
        started()
        if await cause is _Cause.RENEW:
            await self._abort_outgoing(HANDOVER)
            if not link.lost.done():
                # Carried until it has been left: whoever ends us meanwhile waits for that.
                self._part(GapReason.HANDOVER)
                await room.leave()
                self._let_go(HANDOVER)
                return
        self._ended_as(link.lost.result())

    def _ended_as(self, reason: LostReason) -> None:
        match reason:
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
            self._tap = tap = Tap(
                self.identity, self._on_tapped, self._broken, self._whole, self._on_observer_lost
            )
            with observer.tapped(tap), ExitStack() as self._carried_topics:
                self._lost = None
                self._removed = False
                for topic in self.log.topics:
                    self._carried_topics.enter_context(observer.carrying(topic))
                self._carried_by(Carrier(room, observer))
                self._settled.set()
                started()
                try:
                    await self._until_free(room)
                finally:
                    if self._lost is None:
                        # The observer goes on: receivers are to see the end of what we sent over it.
                        await self._abort_outgoing(HANDOVER)
                    self._let_go(HANDOVER)
                    self._end_tapped()
        if self._lost is LostReason.ROOM_CLOSED:
            self._finish(ClosingReason.ROOM_CLOSED)
        elif self._lost is not None:
            self._broken()
        elif self._removed:
            self._finish(ClosingReason.REMOVED)
        else:
            self._part(GapReason.HANDOVER)

    async def _until_free(self, room: Room) -> None:
        """Until the observer is lost, or the other presence is gone for good."""
        elsewhere = True
        while elsewhere and not self._is_lost():
            seen = self.identity in room.identities
            cause = self._next_cause()
            await asyncio.wait({cause}, timeout=RECHECK_SEEN if seen else RECHECK_UNSEEN)
            if not self._is_lost() and not await self._may_be_elsewhere():
                # A room that ends sends its people away one by one, and a page that is loaded anew is
                # gone for a moment: the place is taken back when it stays free.
                await asyncio.sleep(SETTLING)
                elsewhere = await self._may_be_elsewhere()
        if not self._is_lost() and not await self._rooms.room_exists(self._caller.room):
            self._lost = LostReason.ROOM_CLOSED

    def _is_lost(self) -> bool:
        """Whether LiveKit has ended the observer's connection, at any time since it carries us."""
        return self._lost is not None

    async def _may_be_elsewhere(self) -> bool:
        try:
            return await self._is_elsewhere()
        except LiveKitUnavailable:
            return True  # not known; the next look tells

    def _next_cause(self) -> "asyncio.Future[_Cause]":
        self._cause = asyncio.get_running_loop().create_future()
        return self._cause

    async def _is_elsewhere(self) -> bool:
        """Whether our identity is in the room by other means than our own last connection."""
        found = await self._rooms.find_participant(self._caller.room, self.identity)
        return found is not None and found.state != "disconnected" and found.sid != self._sid

    def _wake(self, cause: _Cause, of: "asyncio.Future[_Cause] | None" = None) -> None:
        waiting = of or self._cause
        if waiting is not None and not waiting.done():
            waiting.set_result(cause)

    def _on_observer_lost(self, reason: LostReason) -> None:
        self._lost = reason
        self._wake(_Cause.LOST)

    def _end(self, reason: ClosingReason) -> None:
        super()._end(reason)
        self._settled.set()

    def _on_tapped(self, event: Happening) -> None:
        """An event of the observer's, unless it is of a stream whose beginning we did not see."""
        match event:
            case StreamOpened() if self.log.is_registered(event.topic):
                self._tapped[event.participant_identity, event.stream_id] = StreamTally(event)
            case StreamChunk():
                stream = self._tapped.get((event.participant_identity, event.stream_id))
                if stream is None:
                    return
                stream.chunk(event.text)
            case StreamClosed():
                if self._tapped.pop((event.participant_identity, event.stream_id), None) is None:
                    return
            case StreamOpened():
                return
            case _:
                pass  # of participants and agents
        self.log.append(event)
        if (
            isinstance(event, ParticipantDisconnected)
            and event.participant_identity == self.identity
        ):
            self._removed = event.reason == "participant_removed"
            self._wake(_Cause.LOOK)

    def _end_tapped(self) -> None:
        """Streams that the observer goes on receiving are cut off for us."""
        for stream in self._tapped.values():
            self.log.append(stream.closed(HANDOVER))
        self._tapped.clear()

    def _receive(self, topic: str) -> None:
        if self._observer is None:
            super()._receive(topic)
        else:
            self._carried_topics.enter_context(self._observer.carrying(topic))

    def _ignore(self, topic: str) -> None:
        # What the observer receives is not ours to end.
        if self._observer is None:
            super()._ignore(topic)

    async def abort_unheard(
        self, sender: str, stream_id: str, options: TextOptions, reason: str
    ) -> None:
        try:
            async with self._observing() as observer:
                await observer.look()
                if observer.room is not None:
                    await observer.room.abort_text_stream(stream_id, options, sender, reason)
        except (Unavailable, NotSupported) as error:
            # They see it end when this participant leaves.
            logger.info("Receivers were not told that a text is incomplete: %s", error.detail)

    def _require_sending_room(self) -> Room:
        room = super()._require_sending_room()
        if self._observer is None and room.hidden:
            # LiveKit hides the sender too: receivers would see a text of nobody.
            raise NotPermitted(
                "This identity is in the room hidden, by a token that is as new as this request's;"
                " it can send with a newer one, or once that is over."
            )
        return room

    def _on_behalf_of(self, room: Room, sender: str) -> str | None:
        return None if self._observer is None else sender

    def _append_for(self, room: Room, options: TextOptions) -> Append:
        observer, tap = self._observer, self._tap
        if observer is None or options.destination_identities:
            return self.log.append

        def append(event: StreamEvent) -> None:
            # Our own log in any case, also where another carries us by now.
            self.log.append(event)
            observer.publish(event, but=tap)

        return append

    async def _leave_room(self, *, for_good: bool) -> None:
        # The observer is not ours to leave.
        if self._carrier is not None and self._observer is None:
            await self._carrier.room.leave(for_good=for_good)
