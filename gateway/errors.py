"""What can go wrong, named after what happened.

GatewayError
├── InvalidRequest              the request itself is wrong
│   ├── InvalidParameter        a path segment, query parameter, header or JSON member
│   ├── InvalidText             the text is not text: broken UTF-8, a lone surrogate
│   ├── BodyTooLarge            more text than the limit
│   ├── HeaderTooLarge          attributes and destinations do not fit LiveKit's header packet
│   ├── UnsupportedMediaType    a body of a type we do not take
│   └── BodyIdle                the sender stopped sending in the middle of its body
├── Unauthenticated             who is calling is not proved
│   ├── TokenMissing
│   ├── TokenInvalid
│   └── TokenExpired            it was good; a new one is needed
├── Forbidden                   it is proved, and that is not enough
│   ├── RoomMismatch            the token is for another room
│   ├── MissingGrant            the token lacks a grant
│   ├── NotPermitted            LiveKit took the permission away since
│   ├── TokenNotStandard        a token of an agent, a recorder, an ingress...
│   └── TopicReserved           a topic below `lk.` that is not for callers
└── Unavailable                 right, but not now; trying again may help
    ├── Starting                this process has not found out yet whether LiveKit takes its key
    ├── Draining                this process is going away
    ├── TooManyConnections      the process has as many LiveKit connections as it takes
    ├── TooManyEventStreams     the process has as many event streams as it takes
    ├── TooManyTopics           the participant receives as many topics as we let it
    ├── JoinFailed              LiveKit did not let us into the room
    └── LiveKitUnavailable      LiveKit did not take what we had for it

Each class has a stable `code`, which clients may program against; `web/problems.py` owns the HTTP
statuses. `detail` is for a person: it says what to do, and never carries text or tokens of users.
"""

from typing import ClassVar


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


class UnsupportedMediaType(InvalidRequest):
    code = "unsupported_media_type"


class BodyIdle(InvalidRequest):
    code = "body_idle"


class Unauthenticated(GatewayError):
    code = "unauthenticated"


class TokenMissing(Unauthenticated):
    code = "token_missing"


class TokenInvalid(Unauthenticated):
    code = "token_invalid"


class TokenExpired(Unauthenticated):
    code = "token_expired"


class Forbidden(GatewayError):
    code = "forbidden"


class RoomMismatch(Forbidden):
    code = "room_mismatch"


class MissingGrant(Forbidden):
    code = "missing_grant"


class NotPermitted(Forbidden):
    code = "not_permitted"


class TokenNotStandard(Forbidden):
    code = "token_not_standard"


class TopicReserved(Forbidden):
    code = "topic_reserved"


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


class TooManyEventStreams(Unavailable):
    code = "too_many_event_streams"
    retry_after = 30


class TooManyTopics(Unavailable):
    code = "too_many_topics"
    retry_after = 30


class JoinFailed(Unavailable):
    code = "join_failed"
    retry_after = 5


class LiveKitUnavailable(Unavailable):
    code = "livekit_unavailable"
    retry_after = 5
