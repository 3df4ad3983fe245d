"""A request's body, from bytes to text: content coding, then UTF-8, then what its media type says.

Nothing here waits: bytes go in as they arrive, text comes out as soon as it is whole, and what is wrong
is raised where it is found. A body may come in several requests (`uploads.py`); what is left over of
one is kept for the next.
"""

import codecs
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from starlette.requests import Request

from gateway.errors import (
    BodyTooLarge,
    InvalidEncoding,
    InvalidLine,
    InvalidParameter,
    InvalidText,
    UnsupportedEncoding,
    UnsupportedMediaType,
    shown,
)
from gateway.web.parameters import header_values, one_header, string_attributes

PLAIN = "text/plain"
JSON = "application/json"
LINES = "application/x-ndjson"
PARTIAL = "application/partial-upload"
"""Of a part of an upload; what its whole is, its first request says, or text/plain."""

PIECE_BYTES = 14_000
"""How much of a plain text is handed on at a time: a packet of LiveKit's. The server reads 256 KB at once,
which held in one piece would be as much again in each form that a text has on its way."""

INFLATED_BYTES = 64 * 1024
"""How much of a compressed body is expanded at a time: what a small body expands to is never held whole."""

FREE_EXPANSION = 1024 * 1024
"""Bytes that any compressed body may expand to; logs repeat themselves, and short ones a lot."""

MOST_EXPANSION = 100
"""Times that a larger one may expand: text takes 3 to 20, a body made to do harm a thousand."""

MEMBERS = 1_000
"""Most members of a compressed body, each of which costs as much as 10 KB of text: a log that was appended
to has some, a body made to do harm one for each 20 bytes."""

EMPTY_LINES = 10_000
"""Most lines of a body that have no text, blank ones and empty strings: to keep a stream alive for weeks, and
no more work than a millisecond each for who would have us read lines and write nothing."""

LINE_BYTES = 64 * 1024
"""Longest line of a text that is streamed as JSON lines: a piece of text, not a text. It is held until it
is whole, for each stream that is open."""

FORM = "application/x-www-form-urlencoded"
"""What curl -d sends unless it is told otherwise."""


class BodyForm(NamedTuple):
    """What the headers of a body say that it is."""

    media_type: str
    compressed: bool
    """By gzip; no other coding is taken."""


def body_form(request: Request, *, partial: bool = False) -> BodyForm:
    """The form of a request's body; `partial`: of the first part of an upload, which need not say it.

    Raises UnsupportedMediaType.
    """
    values = header_values(request, "content-type")
    if partial:
        # A client that sets headers for all of its requests, and adds this to each with a part, gives both.
        given = (value.strip() for value in ",".join(values).split(","))
        values = [value for value in given if value.lower() not in ("", PARTIAL)]
    if partial and not values:
        media_type, charset = PLAIN, "utf-8"
    else:
        media_type, charset = _parsed_media_type(values[0]) if len(values) == 1 else ("", "")
    if media_type not in (PLAIN, JSON, LINES):
        raise UnsupportedMediaType(_not_taken(request, ", ".join(values)))
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType("The text must be UTF-8; no other charset is taken.")
    coding = one_header(request, "content-encoding")
    if coding is None:
        return BodyForm(media_type, compressed=False)
    if coding.lower() not in ("identity", "gzip", "x-gzip"):
        raise UnsupportedEncoding(
            f"Content-Encoding {shown(coding)} is not supported; use gzip or none."
        )
    return BodyForm(media_type, coding.lower() != "identity")


def _not_taken(request: Request, given: str) -> str:
    if header_values(request, "tus-resumable"):
        return (
            "This is tus 1.0; resumable uploads here are the IETF draft: tus-js-client with protocol"
            " 'ietf-draft-05'."
        )
    what = f"{shown(given)} is not taken." if given.strip() else "There is no Content-Type."
    hint = (
        " (curl -d sends a form unless told: -H 'Content-Type: text/plain')"
        if _parsed_media_type(given)[0] == FORM
        else ""
    )
    return f"{what} Send 'Content-Type: {PLAIN}', '{JSON}' or '{LINES}'{hint}."


def _parsed_media_type(value: str) -> tuple[str, str]:
    """The media type and its charset. Written out: the standard library's parser for mail headers
    fails on hostile ones, and costs more than all else of a short POST."""
    media_type, *parameters = value.split(";")
    charset = "utf-8"
    for parameter in parameters:
        name, _, given = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = given.strip().strip('"').lower()
    return media_type.strip().lower(), charset


class TextDecoder(ABC):
    """The text of a body of one media type, whose content coding is undone."""

    trailer: Mapping[str, str]
    """Attributes for the end of the stream."""

    @abstractmethod
    def feed(self, data: bytes) -> Iterator[str]:
        """The text that is whole with these bytes; an empty one where there was work and no text, for others
        to have their turn. Raises InvalidText or InvalidLine."""

    @abstractmethod
    def finish(self) -> Iterator[str]:
        """What is left at the end of the body. Raises likewise."""


class PlainDecoder(TextDecoder):
    """A character cut by a border waits for its rest."""

    def __init__(self) -> None:
        self.trailer = {}
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def feed(self, data: bytes) -> Iterator[str]:
        for start in range(0, len(data), PIECE_BYTES):
            if text := checked_text(self._utf8.decode, data[start : start + PIECE_BYTES]):
                yield text

    def finish(self) -> Iterator[str]:
        checked_text(lambda rest: self._utf8.decode(rest, True), b"")
        yield from ()


class LinesDecoder(TextDecoder):
    """Each line a JSON string, or `{"text": "…"}`; `{"close": {"attributes": {…}}}` as the last one."""

    def __init__(self) -> None:
        self.trailer = {}
        self._rest = b""
        self._number = 0
        self._empty = 0
        self._closed = False
        self._last: list[str] | None = None

    def feed(self, data: bytes) -> Iterator[str]:
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = self._rest + lines[0]
            self._rest = b""
        # Held before the lines are handed on: what is made of them may not be asked for to the end.
        self._rest += rest
        for line in lines:
            yield from self._line(line)
        self._require_short(self._rest)

    def finish(self) -> Iterator[str]:
        if self._last is None:  # it may be asked for again
            self._last = list(self._line(self._rest)) if self._rest else []
        yield from self._last

    def _line(self, line: bytes) -> Iterator[str]:
        self._number += 1
        self._require_short(line)
        if not line.strip():
            yield self._nothing()
            return
        if self._closed:
            raise self._invalid("comes after the line with 'close', which is the last one")
        match self._value(line):
            case str(text):
                yield require_encodable(text) or self._nothing()
            case {"text": str(text), **others} if not others:
                yield require_encodable(text) or self._nothing()
            case {"close": {**end}, **others} if not others and end.keys() <= {"attributes"}:
                self._closed = True
                self.trailer = self._attributes(end.get("attributes", {}))
            case _:
                raise self._invalid(
                    'is neither a string nor {"text": "…"} nor {"close": {"attributes": {…}}}'
                )

    def _value(self, line: bytes) -> Any:
        try:
            return _JSON.decode(checked_text(bytes.decode, line))
        except (ValueError, RecursionError):
            raise self._invalid("is not JSON") from None
        except InvalidParameter:
            raise self._invalid("has a member twice") from None

    def _nothing(self) -> str:
        self._empty += 1
        if self._empty > EMPTY_LINES:
            raise self._invalid(f"is one of more than {EMPTY_LINES} without text")
        return ""

    def _attributes(self, given: object) -> dict[str, str]:
        try:
            return string_attributes(given)
        except InvalidParameter as error:
            raise InvalidLine(f"Line {self._number} of the body: {error.detail}") from None

    def _require_short(self, line: bytes) -> None:
        if len(line) > LINE_BYTES:
            raise BodyTooLarge(f"A line has more than {LINE_BYTES} bytes, the limit for one.")

    def _invalid(self, what: str) -> InvalidLine:
        return InvalidLine(f"Line {self._number} of the body {what}.")


class WholeDecoder(TextDecoder):
    """What is handed on only when it is whole."""

    def __init__(self, hold: Callable[[int], None]) -> None:
        """`hold` is told how many bytes more are held, and may refuse."""
        self.trailer = {}
        self._hold = hold
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[str]:
        self._hold(len(data))
        self._parts.append(data)
        yield from ()

    def finish(self) -> Iterator[str]:
        yield checked_text(bytes.decode, b"".join(self._parts))


class BodyDecoder:
    """The text of a whole body, its coding undone and its length bounded."""

    def __init__(self, form: BodyForm, text: TextDecoder, limit: int) -> None:
        """`limit`: most bytes, of what is inside its coding."""
        self.limit = limit
        self._text = text
        self._size = 0
        self._gzip = _Gunzip() if form.compressed else None

    @property
    def trailer(self) -> Mapping[str, str]:
        return self._text.trailer

    def feed(self, data: bytes) -> Iterator[str]:
        """The text that is whole with these bytes, in pieces: to be asked for to its end.

        Raises BodyTooLarge, InvalidEncoding, InvalidText, InvalidLine.
        """
        for plain in (data,) if self._gzip is None else self._gzip.feed(data):
            self._size += len(plain)
            if self._size > self.limit:
                raise too_large(self.limit)
            yield from self._text.feed(plain)

    def finish(self) -> Iterator[str]:
        """What is left at the end of the body. Raises likewise."""
        if self._gzip is not None:
            self._gzip.finish()
        yield from self._text.finish()


class _Gunzip:
    """RFC 1952: one or more members, one after the other."""

    def __init__(self) -> None:
        self._member = _new_member()
        self._members = 1
        self._begun = False
        self._taken = 0
        self._made = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._taken += len(data)
        while data:
            if self._member.eof:
                self._next_member()
            self._begun = True
            try:
                plain = self._member.decompress(data, INFLATED_BYTES)
            except zlib.error:
                raise InvalidEncoding(
                    "The body is not gzip, as its Content-Encoding says."
                ) from None
            self._made += len(plain)
            if self._made > max(FREE_EXPANSION, MOST_EXPANSION * self._taken):
                raise BodyTooLarge(
                    f"The compressed body expands to more than {FREE_EXPANSION // 1024**2} MiB and more"
                    f" than {MOST_EXPANSION} times its size; send it without compression."
                )
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            yield plain

    def finish(self) -> None:
        if not self._member.eof and self._begun:
            raise InvalidEncoding("The compressed body ends in its middle.")

    def _next_member(self) -> None:
        self._members += 1
        if self._members > MEMBERS:
            raise InvalidEncoding(f"The compressed body has more than {MEMBERS} members.")
        self._member = _new_member()


def _new_member() -> Any:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body has more than {limit} bytes, the limit for one like it; longer ones are streamed:"
        " text/plain with 'Transfer-Encoding: chunked'."
    )


def checked_text(decode: Callable[[bytes], str], data: bytes) -> str:
    try:
        return decode(data)
    except UnicodeDecodeError:
        raise InvalidText("The text is not valid UTF-8.") from None


def require_encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidText("The text has a lone surrogate (\\ud800 to \\udfff).") from None
    return text


def json_members(body: str) -> dict[str, Any]:
    """The members of a JSON object. Raises InvalidParameter."""
    try:
        members = _JSON.decode(body)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidParameter(f"The body is not JSON: {error.msg} at {where}.") from None
    except RecursionError:
        raise InvalidParameter("The body is nested too deeply.") from None
    except ValueError:  # of an integer with more digits than Python reads
        raise InvalidParameter("The body has a number that is too long.") from None
    if not isinstance(members, dict):
        raise InvalidParameter('The body must be a JSON object: {"text": "…"}.')
    return members


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidParameter("A member of the JSON body is given twice.")
    return members


_JSON = json.JSONDecoder(object_pairs_hook=_unique)
"""One for all: `json.loads` makes one for each call that has a hook."""
