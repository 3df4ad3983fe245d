"""How events are written on the wire: as Server-Sent Events or as JSON lines, all of them or messages."""

import json
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any

from gateway.event_log import READ_BYTES, Entry, LoggedStream
from gateway.events import Event, GapReason, GatewayGap
from gateway.web import sse

EVENT_STREAM = "text/event-stream"
JSON_LINES = "application/x-ndjson"


class View(StrEnum):
    """What a stream's events become."""

    STREAMS = "streams"
    MESSAGES = "messages"
    """One event, when the stream is closed: plain `onmessage` shows a chat."""


class EventStreamForm:
    """Server-Sent Events (HTML standard, 9.2)."""

    media_type = f"{EVENT_STREAM}; charset=utf-8"

    def __init__(self, view: View) -> None:
        self._shown = _SHOWN[view]

    def opening(self) -> bytes:
        return sse.opening()

    def entries(self, entries: Iterable[Entry]) -> bytes:
        return b"".join(map(self._shown, entries))

    def replayed(self, entry: Entry) -> bytes:
        """Without its id, which would be out of sequence."""
        return sse.without_id(frame) if (frame := self._shown(entry)) else b""

    def event(self, event: Event, position: str | None = None) -> bytes:
        return sse.encode(event, position)

    def cursor(self, position: str) -> bytes:
        return sse.cursor(position)

    def heartbeat(self, position: str) -> bytes:
        return sse.heartbeat(position)


class LinesForm:
    """The same events as JSON lines, their ids in a member `id`."""

    media_type = JSON_LINES

    def __init__(self, view: View) -> None:
        self._shown = _SHOWN[view]

    def opening(self) -> bytes:
        return b""

    def entries(self, entries: Iterable[Entry]) -> bytes:
        return b"".join(_line(frame) for entry in entries if (frame := self._shown(entry)))

    def replayed(self, entry: Entry) -> bytes:
        return _data(frame) + b"\n" if (frame := self._shown(entry)) else b""

    def event(self, event: Event, position: str | None = None) -> bytes:
        frame = sse.encode(event, position)
        return _data(frame) + b"\n" if position is None else _line(frame)

    def cursor(self, position: str) -> bytes:
        return b'{"id":"%b","type":"gateway.position"}\n' % position.encode()

    heartbeat = cursor


def _data(frame: bytes) -> bytes:
    """The JSON object of a block."""
    return frame.partition(b"\ndata: ")[2][:-2]


def _line(frame: bytes) -> bytes:
    """A block that begins with an id."""
    return b'{"id":"%b",%b\n' % (frame[4 : frame.index(b"\n")], _data(frame)[1:])


def _all(entry: Entry) -> bytes:
    return entry.frame


def _messages(entry: Entry) -> bytes:
    stream = entry.stream
    if stream is None:
        # An end whose beginning was before the log is of no message.
        return b"" if entry.frame.startswith(_STREAM, entry.frame.index(b"\n")) else entry.frame
    if entry is not stream.closed:
        return b""
    position = entry.frame[4 : entry.frame.index(b"\n")].decode()
    if not stream.is_whole:
        epoch = position.partition("-")[0]
        gap = GatewayGap(GapReason.EVICTED, f"{epoch}-{stream.opened.seq - 1}", position)
        return sse.encode(gap, position)
    return sse.block("message", {"type": "message", **message(stream)}, position)


_STREAM = b"\nevent: stream."

_SHOWN: dict[View, Callable[[Entry], bytes]] = {View.STREAMS: _all, View.MESSAGES: _messages}

FORMS: dict[tuple[str, View], EventStreamForm | LinesForm] = {
    (form.media_type.partition(";")[0], view): form(view)
    for form in (EventStreamForm, LinesForm)
    for view in View
}
"""One of each: who is written in the same form is written the same bytes."""


def message(stream: LoggedStream) -> dict[str, Any]:
    """A stream as far as it is: its header, its text, and how it ended if it did."""
    header = _members(stream.opened)
    end = {} if stream.closed is None else _members(stream.closed)
    text = "".join(_members(chunk)["text"] for chunk in stream.chunks)
    return {**header, **end, "text": text}


def _members(entry: Entry) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(_data(entry.frame))
    del members["type"]
    return members


def pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Joined, so that each but the last has READ_BYTES at least."""
    pending: list[bytes] = []
    size = 0
    for block in blocks:
        pending.append(block)
        size += len(block)
        if size >= READ_BYTES:
            yield b"".join(pending)
            pending.clear()
            size = 0
    if pending:
        yield b"".join(pending)
