"""Reading a request: path, query, credential. What is not understood is refused, never ignored."""

import re
import sys
from collections.abc import Collection, Sequence
from enum import StrEnum
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request

from gateway.auth import IDENTITY_BYTES, Caller, TokenVerifier
from gateway.errors import (
    InvalidParameter,
    NotAcceptable,
    TokenInvalid,
    TokenMissing,
    TopicReserved,
)
from gateway.settings import TOPIC_BYTES
from gateway.transcripts import TRANSCRIPTION_TOPIC

NAME_BYTES = 256
"""LiveKit's limit for the name of a room, in bytes of UTF-8."""

QUERY_FIELDS = 200
"""Destinations and attributes are repeated parameters; the header packet is full long before."""

CHAT_TOPIC = "lk.chat"
_RESERVED = "lk."

ATTRIBUTE_PREFIX = "attr."

TOKEN = "access_token"  # noqa: S105 - the name of a parameter, which every route knows

_COUNT = re.compile("[0-9]{1,15}")

_WEIGHT = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")

_KEY = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\]){1,255})"|([!#-\[\]-~]{1,255})')
"""A String of structured fields (RFC 9651, 3.3.3), as the draft of the header has it, or what is between
its quotes, as most clients send it."""


class Presence(StrEnum):
    """Whether the caller is in the room for the others to see."""

    JOIN = "join"
    NONE = "none"


class _Segment(Convertor[str]):
    """One path segment, percent-decoded after routing."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        try:
            decoded = unquote_to_bytes(value).decode()
        except UnicodeDecodeError:
            raise InvalidParameter("The path is not UTF-8 once it is percent-decoded.") from None
        if decoded in (".", "..") or "\0" in decoded:
            raise InvalidParameter("A path segment may not be '.' or '..', nor contain NUL.")
        return decoded

    def to_string(self, value: str) -> str:
        raise NotImplementedError("paths are not built here")


register_url_convertor("segment", _Segment())


class Query:
    """The query parameters of a request; `allowed` is all that the route knows."""

    def __init__(
        self, request: Request, allowed: Collection[str], prefix: str | None = None
    ) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in _pairs(request.scope["query_string"]):
            if name in self._values:
                self._values[name].append(value)
            elif name in allowed or name == TOKEN or (prefix and name.startswith(prefix)):
                self._values[name] = [value]
            else:
                known = ", ".join(sorted({*allowed, TOKEN}))
                raise InvalidParameter(
                    f"Unknown query parameter {name[:64]!r}; this path knows {known}"
                    + (f", {prefix}NAME." if prefix else ".")
                )

    @property
    def names(self) -> Collection[str]:
        """Of those given."""
        return self._values

    def all(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def one(self, name: str) -> str | None:
        values = self._values.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise InvalidParameter(f"The query parameter {name!r} is given more than once.")
        return values[0]

    def prefixed(self, prefix: str) -> dict[str, str]:
        given = {name: values for name, values in self._values.items() if name.startswith(prefix)}
        if any(len(values) > 1 for values in given.values()):
            raise InvalidParameter(f"A query parameter {prefix}NAME is given more than once.")
        return {name.removeprefix(prefix): values[0] for name, values in given.items()}


def _pairs(query: bytes) -> list[tuple[str, str]]:
    if not query:
        return []
    try:
        return parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=QUERY_FIELDS,
        )
    except UnicodeDecodeError:
        raise InvalidParameter("The query is not UTF-8 once it is percent-decoded.") from None
    except ValueError:
        raise InvalidParameter(f"The query has more than {QUERY_FIELDS} parameters.") from None


def authenticate(request: Request, query: Query, verifier: TokenVerifier) -> Caller:
    """The caller, whose token is for the room in the path.

    Raises InvalidParameter, TokenMissing, TokenInvalid, Forbidden.
    """
    room = checked_name(request.path_params["room"], "room", NAME_BYTES)
    caller = verifier.verify(_token(request, query))
    caller.require_room(room)
    return caller


def header_values(request: Request, name: str) -> list[str]:
    """One for each time that the header is given. Starlette's own look-up decodes all others as well."""
    key = name.lower().encode()
    return [value.decode("latin-1") for given, value in request.scope["headers"] if given == key]


def one_header(request: Request, name: str) -> str | None:
    """The header's value. Raises InvalidParameter where it is given more than once."""
    values = header_values(request, name)
    if not values:
        return None
    if len(values) > 1:
        raise InvalidParameter(f"The header {name!r} is given more than once.")
    return values[0].strip()


def count_header(request: Request, name: str) -> int | None:
    """A number of bytes: an Integer of structured fields (RFC 9651, 3.3.1) that is not negative."""
    value = one_header(request, name)
    if value is None:
        return None
    if not _COUNT.fullmatch(value):
        raise InvalidParameter(f"The header {name!r} must be a number of bytes, in digits.")
    return int(value)


def flag_header(request: Request, name: str) -> bool | None:
    """A Boolean of structured fields (RFC 9651, 3.3.6)."""
    value = one_header(request, name)
    if value is None:
        return None
    if value not in ("?0", "?1"):
        raise InvalidParameter(f"The header {name!r} must be ?0 or ?1.")
    return value == "?1"


def idempotency_key(request: Request) -> str | None:
    """By which its sender tells requests that may come twice. Raises InvalidParameter."""
    given = one_header(request, "idempotency-key")
    if given is None:
        return None
    match = _KEY.fullmatch(given)
    if match is None:
        raise InvalidParameter(
            "The header 'Idempotency-Key' must be 1 to 255 visible ASCII characters, like a UUID."
        )
    return re.sub(r'\\(["\\])', r"\1", match[1]) if match[1] is not None else match[2]


def negotiated(request: Request, offered: Sequence[str]) -> str:
    """The media type that the client wants most, the first offered where it has no preference (RFC 9110,
    12.5.1). Raises NotAcceptable."""
    accepted = ",".join(request.headers.getlist("accept"))
    if not accepted.strip():
        return offered[0]
    ranges = [_media_range(given) for given in accepted.split(",")]
    best = max(offered, key=lambda media_type: _quality(media_type, ranges))
    if not _quality(best, ranges):
        raise NotAcceptable(
            f"The answer is {' or '.join(dict.fromkeys(offered))}; 'Accept' allows neither."
        )
    return best


def _media_range(given: str) -> tuple[str, float]:
    media_range, *parameters = (part.strip().lower() for part in given.split(";"))
    weight = next((each[2:] for each in parameters if each.startswith("q=")), "1")
    return media_range, float(weight) if _WEIGHT.fullmatch(weight) else 0.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """By the range that says most of it."""
    for wanted in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if weights := [weight for media_range, weight in ranges if media_range == wanted]:
            return max(weights)
    return 0.0


def presence_of(value: str | None) -> Presence:
    try:
        return Presence.JOIN if value is None else Presence(value)
    except ValueError:
        raise InvalidParameter("'presence' must be join or none.") from None


def _token(request: Request, query: Query) -> str:
    headers = header_values(request, "authorization")
    in_query = query.one(TOKEN)
    if in_query is not None and headers:
        raise InvalidParameter(
            "Two credentials: give the token in 'Authorization' or in 'access_token', not in both."
        )
    if len(headers) > 1:
        raise InvalidParameter("The header 'Authorization' is given more than once.")
    if in_query:
        return in_query
    if not headers:
        raise TokenMissing(
            "Give a LiveKit access token: 'Authorization: Bearer …' or '?access_token=…'."
        )
    scheme, _, token = headers[0].partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise TokenInvalid(
            "The header 'Authorization' must be 'Bearer' and a LiveKit access token."
        )
    return token.strip()


def checked_name(value: str, what: str, limit: int) -> str:
    """The name of a room, an identity or a topic, if it is one."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidParameter(f"The {what} is not valid text.") from None
    if not 0 < size <= limit:
        raise InvalidParameter(f"The {what} has {size} bytes of UTF-8; 1 to {limit} are allowed.")
    if "\0" in value:
        raise InvalidParameter(f"The {what} contains NUL.")
    return value


def checked_identity(value: str) -> str:
    return checked_name(value, "identity", IDENTITY_BYTES)


def sending_topic(topic: str) -> str:
    """A topic that callers may send on; on others of LiveKit's, one could drive or play an agent."""
    if checked_name(topic, "topic", TOPIC_BYTES).startswith(_RESERVED) and topic != CHAT_TOPIC:
        raise TopicReserved(
            f"Topics below {_RESERVED!r} are LiveKit's own; send on {CHAT_TOPIC!r} or on a topic of yours."
        )
    return topic


def reading_topic(topic: str) -> str:
    readable = (CHAT_TOPIC, TRANSCRIPTION_TOPIC)
    if checked_name(topic, "topic", TOPIC_BYTES).startswith(_RESERVED) and topic not in readable:
        raise TopicReserved(
            f"Of LiveKit's own topics, {' and '.join(map(repr, readable))} can be read."
        )
    return sys.intern(topic)  # thousands may read one, for hours


def string_attributes(attributes: object) -> dict[str, str]:
    """Attributes of a text stream, as JSON has them. Raises InvalidParameter."""
    if not isinstance(attributes, dict) or not all(
        isinstance(value, str) for value in attributes.values()
    ):
        raise InvalidParameter("'attributes' must be an object whose values are strings.")
    for name, value in attributes.items():
        checked_name(name, "name of an attribute", NAME_BYTES)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidParameter(f"The attribute {name!r} is not valid text.") from None
    return attributes
