"""The events of an event stream: facts, frozen when built.

`stream.*` events are kept in an event log and numbered; `gateway.*` events speak of one
subscriber's connection and are made for it alone. The dotted name is both the SSE event name and
the member `type` of the JSON, so that a bare `onmessage` fallback, a log file and a typed client
all read the same thing. No event is ever named `error`, `open` or `message`: browsers dispatch
those themselves.
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


@dataclass(frozen=True, slots=True)
class GatewayOpened:
    """The first event of an event stream; one that is only told to come later gets GatewayClosing alone."""

    type: ClassVar[str] = "gateway.opened"

    presence: Literal["participant", "observer"]
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


@dataclass(frozen=True, slots=True)
class GatewayGap:
    """Continuity cannot be proved: something may be missing after `from`; you stand at `to` now."""

    type: ClassVar[str] = "gateway.gap"

    reason: GapReason
    from_: str
    to: str


class ClosingReason(StrEnum):
    DRAIN = "drain"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a reason, not a secret
    ROOM_CLOSED = "room_closed"
    REMOVED = "removed"
    DUPLICATE_IDENTITY = "duplicate_identity"
    DISCONNECTED = "disconnected"
    """LiveKit is out of reach, or took the connection away."""
    OVERLOADED = "overloaded"
    """The process has as many event streams or LiveKit connections as it takes."""
    IDLE = "idle"
    """We left the room because nobody used the connection any more."""
    SLOW = "slow"
    """The reader fell behind what the log keeps."""

    @property
    def reconnect(self) -> bool:
        """Whether coming back with the same token and `Last-Event-ID` makes sense."""
        return self not in _FINAL


_FINAL = {
    ClosingReason.TOKEN_EXPIRED,
    ClosingReason.ROOM_CLOSED,
    ClosingReason.REMOVED,
    ClosingReason.DUPLICATE_IDENTITY,
}


@dataclass(frozen=True, slots=True)
class GatewayClosing:
    """The last event of an event stream that the gateway ends."""

    type: ClassVar[str] = "gateway.closing"

    reason: ClosingReason
    reconnect: bool


def closing(reason: ClosingReason) -> GatewayClosing:
    return GatewayClosing(reason, reason.reconnect)


Event = StreamEvent | GatewayOpened | GatewayGap | GatewayClosing


_MEMBERS = {
    kind: tuple((field.name, field.name.removesuffix("_")) for field in fields(kind))
    for kind in get_args(Event)
}


def members(event: Event) -> dict[str, Any]:
    """The members of the event's JSON object, `type` first."""
    made: dict[str, Any] = {"type": event.type}
    for attribute, name in _MEMBERS[type(event)]:
        made[name] = getattr(event, attribute)
    return made
