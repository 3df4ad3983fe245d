"""What can go wrong, named after what happened.

GatewayError
├── InvalidRequest              the request itself is wrong
│   ├── InvalidParameter        a path segment, query parameter, header or JSON member
│   ├── InvalidText             the text is not text: broken UTF-8, a lone surrogate
│   ├── BodyTooLarge            more text than the limit
│   ├── HeaderTooLarge          attributes and destinations do not fit LiveKit's header packet
│   ├── InvalidLine             a line of a text that is streamed as JSON lines
│   ├── InvalidEncoding         a body that is not what its Content-Encoding says
│   ├── UnsupportedMediaType    a body of a type we do not take
│   ├── UnsupportedEncoding     or compressed otherwise than we take
│   ├── NotAcceptable           an answer of a type that we do not have
│   ├── ExpectationFailed       an `Expect` other than 100-continue
│   ├── BodyIdle                the sender stopped sending in the middle of its body
│   ├── OffsetMismatch          an upload goes on elsewhere than where its sender thinks
│   ├── LengthMismatch          it has more or fewer bytes than was said
│   ├── UploadComplete          an upload that has ended whole takes no more
│   └── IdempotencyKeyReused    the key of one request, given with another
├── Unauthenticated             who is calling is not proved
│   ├── TokenMissing
│   ├── TokenInvalid
│   ├── TokenExpired            it was good; a new one is needed
│   └── WebhookInvalid          not signed by our LiveKit server
├── Forbidden                   it is proved, and that is not enough
│   ├── RoomMismatch            the token is for another room
│   ├── MissingGrant            the token lacks a grant
│   ├── NotPermitted            LiveKit took the permission away since
│   ├── PresenceRequired        only who is in the room may do this without being in it
│   ├── IdentityMismatch        the path names another participant than the token
│   ├── TokenNotStandard        a token of an agent, a recorder, an ingress...
│   └── TopicReserved           a topic below `lk.` that is not for callers
├── NotThere                    what the request is about is not there
│   ├── RoomNotOpen             the room does not exist, and this request does not create it
│   ├── NotInRoom               the participant is not in the room through us
│   ├── UploadNotFound          no such upload, or not of this caller
│   ├── UploadEnded             the upload has ended before it was whole
│   ├── StreamNotFound          no text of that id is remembered
│   └── TopicNotRegistered      nobody registered the topic
├── Conflict                    it is, but something else is under way
│   ├── TopicFixed              a topic of GATEWAY_TOPICS, which no request drops
│   ├── StreamAmbiguous         texts of several participants have that id
│   ├── StreamIdInUse           a stream of that id is open in the room
│   ├── IdempotencyKeyInUse     the first request with that key is not over
│   ├── AgentAmbiguous          several agents are there, and the request says none of them
│   ├── AgentClosed             the agent is there, and its session has ended
│   ├── TurnRunning             the caller has a turn that is not over, and is not to wait for it
│   └── UploadInterrupted       another request for the upload took over
├── NotSupported                this version of LiveKit's SDK cannot do it
└── Unavailable                 right, but not now; trying again may help
    ├── Starting                this process has not found out yet whether LiveKit takes its key
    ├── Draining                this process is going away
    ├── TooManyConnections      the process has as many LiveKit connections as it takes
    ├── TooManyRooms            the identity is in as many rooms as one may be in through us
    ├── TooManyJoins            as many joins are under way as LiveKit and this process can bear
    ├── TooManyEventStreams     the process has as many event streams as it takes
    ├── TooManyTopics           the participant receives as many topics as we let it
    ├── TooManyOpenStreams      as many texts are being streamed as we let one, or all, have open
    ├── TooManyBodies           as much of whole texts is held as we let be
    ├── TooManyIdempotencyKeys  as many are remembered as we let one, or all, have
    ├── JoinFailed              LiveKit did not let us into the room
    ├── AgentUnavailable        no agent came in the time that the request gave it
    ├── NotAccepted             the agent did not take the text into its conversation
    ├── AgentDidNotAnswer       it showed no sign of having heard it
    ├── AgentLeft               it left the room before it answered
    ├── TurnTimedOut            its answer did not begin in time
    ├── TooManyTurns            as many are under way, or wait, as we let one, or all, have
    └── LiveKitUnavailable      LiveKit did not take what we had for it

Each class has a stable `code`, which clients may program against; `web/problems.py` owns the HTTP
statuses. `detail` is for a person: it says what to do, and never carries text or tokens of users.
"""

from typing import ClassVar

SHOWN = 64
"""Most characters of a header that a `detail` repeats."""


def shown(header: str) -> str:
    """What came in a header, for a `detail` to name it."""
    return repr(header[:SHOWN])


class GatewayError(Exception):
    code: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequest(GatewayError):
    code = "invalid_request"


class InvalidParameter(InvalidRequest):
    code = "invalid_parameter"


class InvalidText(InvalidRequest):
    code = "invalid_text"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"


class HeaderTooLarge(InvalidRequest):
    code = "header_too_large"


class InvalidLine(InvalidRequest):
    code = "invalid_line"


class InvalidEncoding(InvalidRequest):
    code = "invalid_encoding"


class UnsupportedMediaType(InvalidRequest):
    code = "unsupported_media_type"


class UnsupportedEncoding(InvalidRequest):
    code = "unsupported_encoding"


class NotAcceptable(InvalidRequest):
    code = "not_acceptable"


class ExpectationFailed(InvalidRequest):
    code = "expectation_failed"


class BodyIdle(InvalidRequest):
    code = "body_idle"


class OffsetMismatch(InvalidRequest):
    code = "offset_mismatch"

    def __init__(self, expected: int, provided: int) -> None:
        super().__init__(f"The upload goes on at byte {expected}, not at byte {provided}.")
        self.expected = expected
        self.provided = provided


class LengthMismatch(InvalidRequest):
    code = "length_mismatch"


class UploadComplete(InvalidRequest):
    code = "upload_complete"


class IdempotencyKeyReused(InvalidRequest):
    code = "idempotency_key_reused"


class Unauthenticated(GatewayError):
    code = "unauthenticated"


class TokenMissing(Unauthenticated):
    code = "token_missing"


class TokenInvalid(Unauthenticated):
    code = "token_invalid"


class TokenExpired(Unauthenticated):
    code = "token_expired"


class WebhookInvalid(Unauthenticated):
    code = "webhook_invalid"


class Forbidden(GatewayError):
    code = "forbidden"


class RoomMismatch(Forbidden):
    code = "room_mismatch"


class MissingGrant(Forbidden):
    code = "missing_grant"


class NotPermitted(Forbidden):
    code = "not_permitted"


class PresenceRequired(Forbidden):
    code = "presence_required"


class IdentityMismatch(Forbidden):
    code = "identity_mismatch"


class TokenNotStandard(Forbidden):
    code = "token_not_standard"


class TopicReserved(Forbidden):
    code = "topic_reserved"


class NotThere(GatewayError):
    code = "not_there"


class RoomNotOpen(NotThere):
    code = "room_not_open"


class NotInRoom(NotThere):
    code = "not_in_room"


class TopicNotRegistered(NotThere):
    code = "topic_not_registered"


class UploadNotFound(NotThere):
    code = "upload_not_found"


class StreamNotFound(NotThere):
    code = "stream_not_found"


class UploadEnded(NotThere):
    code = "upload_ended"


class Conflict(GatewayError):
    code = "conflict"


class TopicFixed(Conflict):
    code = "topic_fixed"


class StreamAmbiguous(Conflict):
    code = "stream_ambiguous"


class StreamIdInUse(Conflict):
    code = "stream_id_in_use"


class IdempotencyKeyInUse(Conflict):
    code = "idempotency_key_in_use"


class AgentAmbiguous(Conflict):
    code = "agent_ambiguous"


class AgentClosed(Conflict):
    code = "agent_closed"


class TurnRunning(Conflict):
    code = "turn_running"


class UploadInterrupted(Conflict):
    code = "upload_interrupted"


class NotSupported(GatewayError):
    code = "not_supported"


class Unavailable(GatewayError):
    code = "unavailable"

    retry_after: ClassVar[int] = 2
    """Seconds after which trying again makes sense."""


class Starting(Unavailable):
    code = "starting"


class Draining(Unavailable):
    code = "draining"


class TooManyConnections(Unavailable):
    code = "too_many_connections"
    retry_after = 30


class TooManyRooms(Unavailable):
    code = "too_many_rooms"
    retry_after = 30


class TooManyJoins(Unavailable):
    code = "too_many_joins"
    retry_after = 5


class TooManyEventStreams(Unavailable):
    code = "too_many_event_streams"
    retry_after = 30


class TooManyTopics(Unavailable):
    code = "too_many_topics"
    retry_after = 30


class TooManyOpenStreams(Unavailable):
    code = "too_many_open_streams"
    retry_after = 5


class TooManyBodies(Unavailable):
    code = "too_many_bodies"


class TooManyIdempotencyKeys(Unavailable):
    code = "too_many_idempotency_keys"
    retry_after = 30


class JoinFailed(Unavailable):
    code = "join_failed"
    retry_after = 5


class AgentUnavailable(Unavailable):
    code = "agent_unavailable"
    retry_after = 5


class NotAccepted(Unavailable):
    code = "not_accepted"
    retry_after = 5


class AgentDidNotAnswer(Unavailable):
    code = "agent_did_not_answer"
    retry_after = 5


class AgentLeft(Unavailable):
    code = "agent_left"
    retry_after = 5


class TurnTimedOut(Unavailable):
    code = "timed_out"
    retry_after = 5


class TooManyTurns(Unavailable):
    code = "too_many_turns"
    retry_after = 5


class LiveKitUnavailable(Unavailable):
    code = "livekit_unavailable"
    retry_after = 5
