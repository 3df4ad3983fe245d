"""The contract with the far side: LiveKit rooms, as one participant of them sees them.

Calls go down and may wait; what happens in the room comes up through a Listener, whose functions
are synchronous and are called on the event loop; the events of one stream in their order, the streams of
one sender opened in the order in which it opened them, and closed in the order in which it closed them.
A stream that breaks off without its sender's word (the sender is gone, we leave, it is too long) is closed
when that is known, and an id that is used again is opened after it was closed. No closing waits long for
another, and nothing else waits; `closings.py` says how, and what is not certain about whole texts that
older SDKs send at the same time.

There are two forms, `livekit.py` and its in-process twin `memory.py`, under the same contract tests. With
an SDK whose private parts are others than we know (`native/`), closings of different streams may come in
another order than their sender's: the SDK reads each in a task of its own (seen: 88 of 200 rounds).
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, NamedTuple

from gateway.agent_session import Agents
from gateway.events import Happening, StreamOpened

MAX_OPEN_OF_SENDER = 500
"""Streams that one participant may hold open towards one connection, so that a hostile one does not
make the others unheard."""

MAX_OPEN_INCOMING = 4_000
"""Streams that all others together may hold open towards one connection. Beyond either bound a stream
is opened and closed as incomplete at once: memory stays bounded, and nobody is left to believe
that nothing was sent."""

NOT_PERMITTED = (
    "LiveKit does not let this participant send: the permission was taken away, or the token that it"
    " joined with, of another request, does not give it."
)

TOO_MANY_OPEN = "too_many_open_streams"
"""The reason of a stream closed by that bound."""

AGENT = "agent"
"""The kind of a participant that LiveKit takes for an agent."""

AGENT_STATE = "lk.agent.state"
"""The attribute in which an agent says what it does; `initializing` while it does not listen yet."""


@dataclass(frozen=True, slots=True)
class Participant:
    """Who is in a room, as LiveKit tells it."""

    identity: str
    sid: str
    """Of this one presence: the next of the same identity has another."""
    name: str
    kind: str
    """LiveKit's word: standard, agent, sip, …"""
    state: str
    """LiveKit's word: joining, joined, active, disconnected."""
    attributes: Mapping[str, str]
    can_publish_data: bool
    hidden: bool

    @property
    def agent_state(self) -> str | None:
        """Of an agent, as it says itself."""
        return self.attributes.get(AGENT_STATE) if self.kind == AGENT else None

    @property
    def is_listening_agent(self) -> bool:
        return self.agent_state not in (None, "initializing", "")


Operation = Literal["create", "update"]
"""LiveKit's words for what a text is: a new one, or what replaces the earlier one of the same stream id."""


class TextOptions(NamedTuple):
    """What goes with a text into the header of its stream."""

    topic: str
    destination_identities: tuple[str, ...] = ()
    """Nobody named: everybody in the room."""
    attributes: Mapping[str, str] = MappingProxyType({})
    reply_to_stream_id: str | None = None
    attached_stream_ids: tuple[str, ...] = ()
    stream_id: str | None = None
    """Chosen by the sender; None: LiveKit draws one. Receivers drop a stream whose id is open already."""
    operation: Operation = "create"
    version: int = 0
    """Counts the updates of one text, as its sender does."""
    generated: bool = False
    """Written by a machine."""


class StreamHeader(NamedTuple):
    """What LiveKit gave the stream that we opened."""

    stream_id: str
    timestamp: int
    """Milliseconds since the epoch."""


def stream_opened(
    sender: str,
    header: StreamHeader,
    options: TextOptions,
    size: int | None,
    *,
    local: bool = False,
) -> StreamOpened:
    """What receivers are told of a stream that was opened with these options, or, `local`, what their
    sender's own log tells."""
    return StreamOpened(
        stream_id=header.stream_id,
        topic=options.topic,
        participant_identity=sender,
        timestamp=header.timestamp,
        size=size,
        attributes=dict(options.attributes),
        destination_identities=options.destination_identities if local else None,
        reply_to_stream_id=options.reply_to_stream_id,
        attached_stream_ids=options.attached_stream_ids,
        generated=options.generated,
        operation=options.operation,
        version=options.version,
        local=local,
    )


class LostReason(StrEnum):
    """Why a connection ended without our leaving."""

    DUPLICATE_IDENTITY = "duplicate_identity"
    """The same identity joined from elsewhere."""
    REMOVED = "removed"
    ROOM_CLOSED = "room_closed"
    DISCONNECTED = "disconnected"
    """The server went away or could not be reached any more."""


@dataclass(frozen=True, slots=True)
class Listener:
    """What a room calls; after `lost`, or once `leave` has returned, nothing more comes."""

    emit: Callable[[Happening], None]
    reconnecting: Callable[[], None]
    """The connection is broken, and is being mended below: `reconnected` follows, or `lost`, unless we
    leave first."""
    reconnected: Callable[[], None]
    """The connection was broken for a while and is whole again: something may be missing, both ways."""
    lost: Callable[[LostReason], None]


class TextStreamWriter(ABC):
    """One text stream that we are writing. Not for concurrent use; ended by `close` or `abort`."""

    header: StreamHeader

    @abstractmethod
    async def write(self, text: str) -> None:
        """Returns when LiveKit has taken the text, which is what slows a fast sender down."""

    @abstractmethod
    async def close(self, attributes: Mapping[str, str] | None = None) -> None:
        """The stream is complete; these are added to the attributes of its header."""

    @abstractmethod
    async def abort(self, reason: str) -> None:
        """The stream is not complete; receivers see an abnormal end with this reason.

        Raises NotPermitted where LiveKit would drop that as well, for we may not send any more.
        """


class Room(ABC):
    """A room that we are in."""

    agents: Agents
    """What the agents among the others have told."""

    @property
    @abstractmethod
    def local(self) -> Participant:
        """Ourselves, with LiveKit's word of now on what we may. It drops in silence what is sent without
        the permission; we raise NotPermitted."""

    @property
    @abstractmethod
    def hidden(self) -> bool:
        """Whether `local` is: what a hidden participant sends seems to come from nobody."""

    @property
    @abstractmethod
    def identities(self) -> Collection[str]:
        """Of the others, as LiveKit has told us; up to 3 s late for those without tracks."""

    @abstractmethod
    def participant(self, identity: str) -> Participant | None:
        """One of the others."""

    @abstractmethod
    def register_topic(self, topic: str) -> None:
        """Receive the text streams on this topic from now on. Doing it twice is the same as once."""

    @abstractmethod
    def unregister_topic(self, topic: str) -> None:
        """Receive no more streams on it; those that are open are read to their end."""

    @abstractmethod
    async def send_text(
        self, text: str, options: TextOptions, sender: str | None = None
    ) -> StreamHeader:
        """One stream with the whole text; returns when LiveKit has taken it.

        `sender` is on whose behalf, for who observes: receivers see the text as that identity's.
        """

    @abstractmethod
    async def open_text_stream(
        self, options: TextOptions, sender: str | None = None
    ) -> TextStreamWriter: ...

    @abstractmethod
    async def abort_text_stream(
        self, stream_id: str, options: TextOptions, sender: str, reason: str
    ) -> None:
        """Ends a stream of `sender`, who may not send any more, as incomplete; for who observes.

        Raises NotSupported and LiveKitUnavailable.
        """

    @abstractmethod
    async def leave(self, *, for_good: bool = False) -> None:
        """Leaves as a participant who may come back (USER_UNAVAILABLE: agents keep their session), or,
        for good, as one who does not (CLIENT_INITIATED: agents close theirs).

        What LiveKit has accepted from us is on its way before, within a bound.

        Streams of others that are still open are told to the listener as incomplete before it
        returns. Nothing may be called after it.
        """


class Rooms(ABC):
    """The way into rooms."""

    def __init__(self) -> None:
        self.ignored_messages: Counter[str] = Counter()
        """What agents told that became no event, by the reason."""

    @abstractmethod
    async def join(
        self, room: str, identity: str, token: str, topics: Collection[str], listener: Listener
    ) -> Room:
        """Joins with the participant's own token, so that LiveKit's own rules stay in force.

        The topics are received from the first moment, so the listener may hear of streams before
        this returns. Creates the room if it does not exist. Raises JoinFailed or LiveKitUnavailable.
        """

    @abstractmethod
    async def observe(self, room: str, topics: Collection[str], listener: Listener) -> Room:
        """Joins unseen, and may send on behalf of others; raises as `join` does.

        Does not keep the room open, but would create it: to be called for a room that exists.
        """

    @abstractmethod
    async def room_exists(self, room: str) -> bool:
        """Raises LiveKitUnavailable."""

    @abstractmethod
    async def find_participant(self, room: str, identity: str) -> Participant | None:
        """Who is in the room under this identity, by whatever way; known to the server at once, where
        a room's `participant` may be late. Raises LiveKitUnavailable."""

    @abstractmethod
    async def aclose(self) -> None:
        """Ends what joins are still under way. Rooms that were joined are left by who joined them."""
