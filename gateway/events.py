"""The events of an event stream: facts, frozen when built.

`stream.*`, `participant.*` and `room.*` events are kept in an event log and numbered; `gateway.*`
events, the gap aside, speak of one subscriber's connection and are made for it alone. The dotted name is both the SSE event name and
the member `type` of the JSON, so that a bare `onmessage` fallback, a log file and a typed client
all read the same thing. No event is ever named `error` or `open`: browsers dispatch those
themselves. `message`, which they take for any event without a name, is what `view=messages` makes
of a stream's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Literal, get_args


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A participant opened a text stream."""

    type: ClassVar[str] = "stream.opened"

    stream_id: str
    topic: str
    participant_identity: str
    timestamp: int
    """Milliseconds since the epoch, by the sender's clock."""
    size: int | None = None
    """Bytes of UTF-8 of the whole text; None while it is still being written."""
    mime_type: str = "text/plain"
    attributes: Mapping[str, str] | None = None
    destination_identities: tuple[str, ...] | None = None
    """Only of own sends: LiveKit does not tell a receiver who else was addressed."""
    reply_to_stream_id: str | None = None
    attached_stream_ids: tuple[str, ...] = ()
    generated: bool = False
    operation: str = "create"
    version: int = 0
    local: bool = False
    """True for what this identity sent through the gateway."""


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """The next piece of an open stream, as it was received. Cut at character borders."""

    type: ClassVar[str] = "stream.chunk"

    stream_id: str
    topic: str
    participant_identity: str
    index: int
    """Counts from 0 within the stream: what a client has is whole if it has 0 to `chunks` - 1."""
    text: str


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """A stream ended, whole or not."""

    type: ClassVar[str] = "stream.closed"

    stream_id: str
    topic: str
    participant_identity: str
    complete: bool
    reason: str | None
    """Why it is not complete; None if it is."""
    attributes: Mapping[str, str]
    """The header's with the trailer's merged in."""
    size: int
    """Bytes of UTF-8 that arrived."""
    chunks: int


StreamEvent = StreamOpened | StreamChunk | StreamClosed

Presence = Literal["participant", "observer"]
"""Whether a connection is in the room for the others to see, or reads and sends unseen."""

PARTICIPANTS = "\0participants"
"""The topic of `participant.*` events in a log; no text stream can have it, for a topic has no NUL."""


@dataclass(frozen=True, slots=True)
class ParticipantConnected:
    """Somebody else came into the room. LiveKit tells of who has no tracks up to 3 s late."""

    type: ClassVar[str] = "participant.connected"
    topic: ClassVar[str] = PARTICIPANTS

    participant_identity: str
    kind: str
    """LiveKit's word: standard, agent, sip, ingress, egress, connector, bridge."""
    name: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ParticipantDisconnected:
    type: ClassVar[str] = "participant.disconnected"
    topic: ClassVar[str] = PARTICIPANTS

    participant_identity: str
    reason: str | None
    """LiveKit's word, like client_initiated or participant_removed; None where it gives none."""


@dataclass(frozen=True, slots=True)
class ParticipantAttributesChanged:
    type: ClassVar[str] = "participant.attributes_changed"
    topic: ClassVar[str] = PARTICIPANTS

    participant_identity: str
    changed: Mapping[str, str]
    """Only these; an attribute that was removed is empty here."""
    attributes: Mapping[str, str]
    """All, as they are now."""


ParticipantEvent = ParticipantConnected | ParticipantDisconnected | ParticipantAttributesChanged


TimeOf = Literal["happened", "sent"]

AGENTS = "\0agents"
"""Likewise, of `agent.*` events."""


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """Something that an agent has told of its session, in LiveKit Agents' own words."""

    topic: ClassVar[str] = AGENTS

    type: str
    """`agent.` and the name that LiveKit Agents gives the event."""
    participant_identity: str
    """The agent's."""
    created_at: float | None
    """Seconds since the epoch, by the agent's clock."""
    created_at_is: TimeOf | None
    """Whether that is when it happened, or only when it was sent: not all events carry the former."""
    members: Mapping[str, Any]
    """Beside those above, as LiveKit Agents has them."""


@dataclass(frozen=True, slots=True)
class RoomWaiting:
    """The room does not exist. An observer does not create it, and is there when somebody does."""

    type: ClassVar[str] = "room.waiting"
    topic: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class RoomOpened:
    """The room that was waited for exists, and is received from here on."""

    type: ClassVar[str] = "room.opened"
    topic: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class RoomClosed:
    """The room ended; its texts and participants with it."""

    type: ClassVar[str] = "room.closed"
    topic: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class RoomReconnecting:
    """LiveKit is out of reach: nothing is received until `room.reconnected`, nothing can be sent."""

    type: ClassVar[str] = "room.reconnecting"
    topic: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class RoomReconnected:
    """The room is received again; a `gateway.gap` before it says since when something may be missing."""

    type: ClassVar[str] = "room.reconnected"
    topic: ClassVar[None] = None


RoomEvent = RoomWaiting | RoomOpened | RoomClosed | RoomReconnecting | RoomReconnected


@dataclass(frozen=True, slots=True)
class GatewayOpened:
    """The first event of an event stream; one that is only told to come later gets GatewayClosing alone."""

    type: ClassVar[str] = "gateway.opened"

    presence: Presence
    identity: str
    position: str
    """Where the log stood when this event stream began."""


class GapReason(StrEnum):
    EVICTED = "evicted"
    """The log is bounded, and has dropped what came after `from`."""
    RESTARTED = "restarted"
    """The log that `from` belongs to is gone: the gateway restarted, or left the room because the
    participant had no request for its linger time."""
    UNKNOWN = "unknown"
    """We cannot say what happened after `from`: the connection to LiveKit was broken for a while, `from`
    lies ahead of us, or the topic was not received then."""
    HANDOVER = "handover"
    """Who receives the room for this participant has changed, from itself to the observer or back, or
    it joined again with a newer token: what fell between is not known."""


@dataclass(frozen=True, slots=True)
class GatewayGap:
    """Continuity cannot be proved: something may be missing after `from`; you stand at `to` now."""

    type: ClassVar[str] = "gateway.gap"

    topic: ClassVar[None] = None

    reason: GapReason
    from_: str
    to: str
    presence: Presence | None = None
    """As whom this participant is in the room from here on, after a handover; else None."""


class ClosingReason(StrEnum):
    DRAIN = "drain"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a reason, not a secret
    ROOM_CLOSED = "room_closed"
    REMOVED = "removed"
    LEFT = "left"
    """The participant left, by its own request."""
    ABSENT = "absent"
    """The participant for whom the room was read unseen is not in it any more."""
    DISCONNECTED = "disconnected"
    """LiveKit is out of reach, or took the connection away."""
    OVERLOADED = "overloaded"
    """The process has as many event streams or LiveKit connections as it takes."""
    IDLE = "idle"
    """We left the room because nobody used the connection any more."""
    SLOW = "slow"
    """The reader fell behind what the log keeps."""
    MAX_AGE = "max_age"
    """It has been open for as long as one is: deploys and autoscaling spread over time by that."""

    @property
    def reconnect(self) -> bool:
        """Whether coming back with the same token and `Last-Event-ID` makes sense."""
        return self not in _FINAL


_FINAL = {
    ClosingReason.TOKEN_EXPIRED,
    ClosingReason.ROOM_CLOSED,
    ClosingReason.REMOVED,
    ClosingReason.LEFT,
}


@dataclass(frozen=True, slots=True)
class GatewayClosing:
    """The last event of an event stream that the gateway ends."""

    type: ClassVar[str] = "gateway.closing"

    reason: ClosingReason
    reconnect: bool


def closing(reason: ClosingReason) -> GatewayClosing:
    return GatewayClosing(reason, reason.reconnect)


@dataclass(frozen=True, slots=True)
class AgentTurnStarted:
    """The agent has taken the text of a request: the first event of its answer."""

    type: ClassVar[str] = "agent.turn_started"

    participant_identity: str
    """The agent's."""
    stream_id: str
    """Of the text."""
    position: str
    """Where to follow the answer from by other means."""


@dataclass(frozen=True, slots=True)
class AgentTurnCompleted:
    """What came of it: the last event of the answer."""

    type: ClassVar[str] = "agent.turn_completed"

    participant_identity: str
    stream_id: str
    outcome: str
    text: str
    """What the agent said, message by message."""
    tool_calls: tuple[Mapping[str, Any], ...]
    usage: Mapping[str, Any] | None
    """Of this turn; None where no helper tells it."""
    errors: tuple[Mapping[str, Any], ...]
    truncated: bool
    """Whether there was more of these than is told at once."""


Happening = StreamEvent | ParticipantEvent | AgentEvent
"""What happens in a room."""

LogEvent = Happening | RoomEvent | GatewayGap
"""What is kept in an event log."""

Event = LogEvent | GatewayOpened | GatewayClosing | AgentTurnStarted | AgentTurnCompleted


_MEMBERS = {
    kind: tuple((field.name, field.name.removesuffix("_")) for field in fields(kind))
    for kind in get_args(Event)
    if kind is not AgentEvent
}


def members(event: Event) -> dict[str, Any]:
    """The members of the event's JSON object, `type` first."""
    made: dict[str, Any] = {"type": event.type}
    if isinstance(event, AgentEvent):
        made["participant_identity"] = event.participant_identity
        made["created_at"] = event.created_at
        made["created_at_is"] = event.created_at_is
        # An agent does not say for itself who it is.
        return made | {name: told for name, told in event.members.items() if name not in made}
    for attribute, name in _MEMBERS[type(event)]:
        made[name] = getattr(event, attribute)
    return made
