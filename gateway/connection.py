"""What requests hold: a log of one room, and whatever of LiveKit carries it at the moment.

What carries a connection comes and goes (LiveKit restarts, another presence of the same identity
takes over); the log stays, and says where something may be missing. The two kinds are in
`session.py` and `observer.py`.
"""

import asyncio
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from gateway.agent_session import KnownAgent
from gateway.errors import (
    AgentUnavailable,
    Draining,
    LiveKitUnavailable,
    TooManyTopics,
)
from gateway.event_log import EventLog
from gateway.events import (
    PARTICIPANTS,
    ClosingReason,
    GapReason,
    Presence,
    RoomClosed,
    RoomEvent,
    RoomOpened,
    RoomReconnected,
    RoomReconnecting,
    RoomWaiting,
    closing,
)
from gateway.outgoing import Append, OutgoingStream, Sent, Way, sent
from gateway.rooms.base import AGENT, AGENT_STATE, Participant, Room, TextOptions, stream_opened
from gateway.tally import StreamTally

INTERRUPTION_NOTICED = 20.0
"""Seconds within which LiveKit and its SDK notice that they do not hear each other (10 seen); what was
sent or received since then may be missing."""

MAX_TOPICS = 1_000
"""Topics that one connection receives; each costs an entry here and in the SDK until we leave."""

IN_FLIGHT_TIMEOUT = 3.0
"""Seconds that leaving waits for texts that are being handed to LiveKit."""

ABORT_TIMEOUT = 2.0
"""Seconds for receivers to be told that streams are incomplete; a LiveKit that stands still never is."""

TOLD_WITHIN = 3.0
"""Seconds after which readers are told of our leaving that is not done yet: within the drain time."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """What of LiveKit carries a connection: a room that it is in itself, or one that is observed."""

    room: Room
    observer: "Connection | None" = None
    """Whose room it is, where it is not our own."""


class Connection(Way):
    """One log, what carries it, and the streams that are being sent over it."""

    def __init__(self, log: EventLog, max_topics: int | None = None) -> None:
        super().__init__()
        self.log = log
        self._max_topics = MAX_TOPICS if max_topics is None else max_topics
        self._carrier: Carrier | None = None
        self._condition: RoomEvent | None = None
        self._gap: tuple[GapReason, float] | None = None
        self._ended: ClosingReason | None = None
        self._end_watchers: set[Callable[[], None]] = set()
        self._followers: Counter[str] = Counter()

    @abstractmethod
    async def live(self, started: Callable[[], None]) -> None:
        """Joins, keeps joined, and returns when the connection has ended by itself; `started` is called
        when it is first of use. Raises what kept it from that."""

    @property
    @abstractmethod
    def presence(self) -> Presence:
        """Whether the others see us in the room, now."""

    @abstractmethod
    def nudge(self) -> None:
        """Something happened in the room, LiveKit says: to be looked at now."""

    @property
    def condition(self) -> RoomEvent | None:
        """What a newcomer must know: waiting for the room, or reconnecting; None while all is well."""
        return self._condition

    @property
    def participants(self) -> list[Participant]:
        """Who is in the room, ourselves included where we are seen; none while it is not received."""
        if self._carrier is None:
            return []
        room = self._carrier.room
        local = [] if room.hidden else [room.local]
        others = (room.participant(identity) for identity in room.identities)
        return [*local, *(other for other in others if other is not None)]

    @property
    def agents(self) -> list[tuple[Participant, KnownAgent]]:
        """Those in the room, and how they are by what they have told this connection."""
        if self._carrier is None:
            return []
        room = self._carrier.room
        present = (room.participant(identity) for identity in room.identities)
        return [
            (agent, room.agents.known(agent.identity))
            for agent in present
            if agent is not None and agent.kind == AGENT
        ]

    def require_up(self) -> None:
        """Raises Draining or LiveKitUnavailable once the connection is ending."""
        if self._ended is ClosingReason.DRAIN:
            raise Draining("The gateway is going away; the text is not complete in the room.")
        if self._ended is not None:
            raise LiveKitUnavailable(f"The connection to LiveKit has ended ({self._ended}).")

    @property
    def is_interrupted(self) -> bool:
        return isinstance(self._condition, RoomReconnecting)

    def require_carried(self) -> None:
        self.require_up()
        if self.is_interrupted:
            raise LiveKitUnavailable(
                "The connection to LiveKit is broken; the text is not complete in the room."
            )

    def require_received(self) -> None:
        """Raises LiveKitUnavailable while what is known of the room is not up to date."""
        self.require_up()
        absent = isinstance(self._condition, RoomWaiting | RoomClosed)
        if isinstance(self._condition, RoomReconnecting) or (self._carrier is None and not absent):
            raise LiveKitUnavailable(
                "The connection to LiveKit is broken, or changing hands; who is there is not known."
            )

    def may_send(self, sender: str) -> bool:
        """Whether LiveKit lets that participant send, as far as it has told."""
        if self._carrier is None:
            return True
        room = self._carrier.room
        author = room.participant(sender) if self._on_behalf_of(room, sender) else room.local
        return author is None or author.can_publish_data

    def watch_end(self, wake: Callable[[], None]) -> None:
        """Calls `wake` when the connection ends, at once if it has, until `unwatch_end`: for who
        waits for a sender."""
        self._end_watchers.add(wake)
        if self._ended is not None:
            wake()

    @property
    def ended(self) -> ClosingReason | None:
        """Why nothing more comes of it."""
        return self._ended

    def unwatch_end(self, wake: Callable[[], None]) -> None:
        self._end_watchers.discard(wake)

    @property
    def has_room_for_topics(self) -> bool:
        return len(self.log.topics) < self._max_topics

    def register_topic(self, topic: str) -> None:
        """From now on the topic's streams are received and logged, with or without subscribers.

        Raises TooManyTopics, Draining, LiveKitUnavailable.
        """
        self.require_up()
        if self.log.is_registered(topic):
            return
        if not self.has_room_for_topics:
            raise TooManyTopics(f"{self._max_topics} topics are received already for this reader.")
        self._receive(topic)
        self.log.register_topic(topic)

    def receive_from_now(self, topic: str) -> None:
        """Registers it as long as there is room, for who is given a position to follow it from."""
        if not self.log.is_registered(topic) and self.has_room_for_topics:
            self.register_topic(topic)

    def drop_topic(self, topic: str) -> None:
        """Receives the topic no more, unless somebody follows it now."""
        if self._followers[topic] or not self.log.is_registered(topic):
            return
        self._ignore(topic)
        self.log.unregister_topic(topic)

    def follow(self, topics: Collection[str]) -> None:
        """They are received, and not dropped until `unfollow`. Raises as `register_topic`."""
        for topic in topics:
            self.register_topic(topic)
        self._followers.update(topics)

    def unfollow(self, topics: Collection[str]) -> None:
        self._followers -= Counter(topics)

    async def send_text(self, sender: str, text: str, options: TextOptions) -> Sent:
        """Sends a whole text as one stream.

        Raises NotPermitted, RoomNotOpen, Draining, LiveKitUnavailable.
        """
        room = self._require_sending_room()
        position = self._position_before(options.topic)
        append = self._append_for(room, options)
        with self.in_flight:
            header = await room.send_text(text, options, self._on_behalf_of(room, sender))
            tally = StreamTally(
                stream_opened(sender, header, options, len(text.encode()), local=True)
            )
            append(tally.opened)
            if text:
                append(tally.chunk(text))
            append(tally.closed(None))
        return sent(room, sender, header, options, tally.size, position)

    async def open_stream(self, sender: str, options: TextOptions) -> OutgoingStream:
        """Opens a stream to be written piece by piece.

        Raises NotPermitted, RoomNotOpen, Draining, LiveKitUnavailable.
        """
        room = self._require_sending_room()
        position = self._position_before(options.topic)
        append = self._append_for(room, options)
        with self.in_flight:
            async with self.order.turn():
                writer = await room.open_text_stream(options, self._on_behalf_of(room, sender))
                tally = StreamTally(stream_opened(sender, writer.header, options, None, local=True))
                append(tally.opened)
            stream = OutgoingStream(
                self,
                writer,
                options,
                tally,
                sent(room, sender, writer.header, options, 0, position),
                append,
            )
            if self._carrier is None or self._carrier.room is not room:
                await stream.abort("disconnected")
        return stream

    async def until_agent_listens(self, seconds: float, identity: str | None = None) -> None:
        """Waits for an agent, of that identity or any, that is in the room and has begun to listen.

        Raises AgentUnavailable; and at once what sending would raise now.
        """
        self._require_sending_room()
        changed = asyncio.Event()

        def watch(_: object) -> None:
            changed.set()

        self.log.watch(watch, (PARTICIPANTS,))
        try:
            async with asyncio.timeout(seconds):
                while not any(
                    other.is_listening_agent and identity in (None, other.identity)
                    for other in self.participants
                ):
                    self.require_up()
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise AgentUnavailable(
                f"No agent was listening in the room within {seconds:g} s (of kind agent, with its"
                f" attribute {AGENT_STATE!r} beyond initializing); nothing was sent."
            ) from None
        finally:
            self.log.unwatch(watch, (PARTICIPANTS,))

    async def leave(self, reason: ClosingReason) -> None:
        """Leaves LiveKit first, then ends the event streams: by the time that a client comes back,
        perhaps to another process, its identity is free. Does nothing if the connection has ended."""
        if self._ended is not None:
            return
        self._end(reason)
        told = asyncio.get_running_loop().call_later(TOLD_WITHIN, self.log.end, closing(reason))
        # They were begun before, and are answered as accepted if LiveKit takes them.
        await self.in_flight.none(IN_FLIGHT_TIMEOUT)
        try:
            await self._abort_outgoing(reason)
            await self._leave_room(for_good=reason is ClosingReason.LEFT)
        finally:
            told.cancel()
            self.log.end(closing(reason))

    def _receive(self, topic: str) -> None:
        if self._carrier is not None:
            self._carrier.room.register_topic(topic)

    def _ignore(self, topic: str) -> None:
        if self._carrier is not None:
            self._carrier.room.unregister_topic(topic)

    @abstractmethod
    async def _leave_room(self, *, for_good: bool) -> None:
        """Lets go of what carries us."""

    @abstractmethod
    def _on_behalf_of(self, room: Room, sender: str) -> str | None:
        """The sender, where the room is not its own."""

    @abstractmethod
    def _append_for(self, room: Room, options: TextOptions) -> Append:
        """Who is to see what is sent over this room, for LiveKit does not return it to its sender."""

    def _carried_by(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._whole()

    async def _abort_outgoing(self, reason: str) -> None:
        """For receivers to see it, while what carries us is still there."""
        if aborting := [asyncio.create_task(each.abort(reason)) for each in self.outgoing]:
            await asyncio.wait(aborting, timeout=ABORT_TIMEOUT)

    def _let_go(self, reason: str) -> None:
        """What carried us is gone: streams that were being sent over it are incomplete."""
        self._carrier = None
        for stream in tuple(self.outgoing):
            stream.break_off(reason)

    def _part(self, reason: GapReason, noticed_within: float = 0.0) -> None:
        """From here, or so many seconds before, something may be missing, until we are carried again."""
        since = time.monotonic() - noticed_within
        if self._gap is None:
            self._gap = (reason, since)
        elif reason is GapReason.UNKNOWN:
            self._gap = (reason, min(since, self._gap[1]))

    def _broken(self) -> None:
        """LiveKit is out of reach; told once."""
        if not isinstance(self._condition, RoomReconnecting):
            self._part(GapReason.UNKNOWN, INTERRUPTION_NOTICED)
            self._condition = RoomReconnecting()
            self.log.append(self._condition)

    def _whole(self) -> None:
        """Carried, or carried again: what may be missing is told before anything else."""
        if self._gap is not None:
            reason, since = self._gap
            self._gap = None
            presence = self.presence if reason is GapReason.HANDOVER else None
            self.log.interrupt(time.monotonic() - since, reason, presence)
        match self._condition:
            case RoomReconnecting():
                self.log.append(RoomReconnected())
            case RoomWaiting() | RoomClosed():
                self.log.append(RoomOpened())
            case _:
                pass  # all was well
        self._condition = None

    def _finish(self, reason: ClosingReason) -> None:
        """Ended by what happened in LiveKit, not by our leaving."""
        self._end(reason)
        self._let_go(reason)
        self.log.end(closing(reason))

    def _end(self, reason: ClosingReason) -> None:
        self._ended = reason
        for wake in tuple(self._end_watchers):
            wake()

    def _require_sending_room(self) -> Room:
        self.require_up()
        if self._carrier is None:
            raise LiveKitUnavailable("The connection to LiveKit is broken; nothing was sent.")
        return self._carrier.room

    def _position_before(self, topic: str) -> str:
        """Where to follow a text from that is sent now. Its topic is received from here on, as long as
        there is room for it: a sender with a topic for each text is not stopped by that."""
        self.receive_from_now(topic)
        return str(self.log.head)
