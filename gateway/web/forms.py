"""How events are written on the wire: as Server-Sent Events or as JSON lines, all of them, or what a view makes
of them."""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from functools import partial
from itertools import chain
from typing import Any

from gateway.delivery import Piece
from gateway.event_log import READ_BYTES, Entry, LoggedStream
from gateway.events import Event
from gateway.web import frames, sse
from gateway.web.frames import Part
from gateway.web.transcript import transcripts

EVENT_STREAM = "text/event-stream"
JSON_LINES = "application/x-ndjson"

MOST_BYTES = 2 * READ_BYTES
"""Of one piece: who takes nothing holds that, and not all of a text that is large."""


class View(StrEnum):
    """What a stream's events become."""

    STREAMS = "streams"
    MESSAGES = "messages"
    """One event, when the stream is closed: plain `onmessage` shows a chat."""
    TRANSCRIPT = "transcript"
    """Of those on `lk.transcription`: what is said, and what of it is final."""


class EventStreamForm:
    """Server-Sent Events (HTML standard, 9.2)."""

    media_type = f"{EVENT_STREAM}; charset=utf-8"

    def __init__(self, view: View) -> None:
        self._shown = _SHOWN[view]

    def opening(self) -> bytes:
        return sse.opening()

    def entries(self, entries: Iterable[Entry]) -> bytes:
        return b"".join(chain.from_iterable(self._shown(entries)))

    def pieces(self, entries: Iterable[Entry]) -> Iterator[Piece]:
        return pieces(self._shown(entries))

    def replayed(self, entries: Iterable[Entry]) -> Iterator[Iterable[Part]]:
        """Without their ids, which would be out of sequence."""
        return map(_without_id, self._shown(entries))

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
        return b"".join(chain.from_iterable(map(_line, self._shown(entries))))

    def pieces(self, entries: Iterable[Entry]) -> Iterator[Piece]:
        return pieces(map(_line, self._shown(entries)))

    def replayed(self, entries: Iterable[Entry]) -> Iterator[Iterable[Part]]:
        return map(partial(_line, with_id=False), self._shown(entries))

    def event(self, event: Event, position: str | None = None) -> bytes:
        frame = sse.encode(event, position)
        return b"".join(_line((frame,), with_id=position is not None))

    def cursor(self, position: str) -> bytes:
        return b'{"id":"%b","type":"gateway.position"}\n' % position.encode()

    heartbeat = cursor


def _without_id(parts: Iterable[Part]) -> Iterator[Part]:
    parts = iter(parts)
    for first in parts:
        yield sse.without_id(bytes(first))
        yield from parts


def _line(parts: Iterable[Part], *, with_id: bool = True) -> Iterator[Part]:
    """A block as a line. Its first part reaches into its data."""
    held: Part | None = None
    for part in parts:
        if held is None:
            frame = bytes(part)
            begin = frame.index(frames.DATA) + len(frames.DATA)
            if with_id:
                yield b'{"id":"%b",' % frames.position(frame)
                begin += len(b"{")
            held = memoryview(frame)[begin:]
        else:
            yield held
            held = part
    if held is not None:
        yield held[:-1]  # a block ends with two


def _all(entry: Entry) -> Iterable[Part]:
    return (entry.frame,)


def _messages(entry: Entry) -> Iterable[Part]:
    stream = entry.stream
    if stream is None:
        # An end whose beginning was before the log is of no message.
        is_end = entry.frame.startswith(_STREAM, entry.frame.index(b"\n"))
        return () if is_end else (entry.frame,)
    if entry is not stream.closed:
        return ()
    position = frames.position(entry.frame).decode()
    if not stream.is_whole:
        return (frames.evicted(stream, position),)
    members = {**frames.members(stream.opened), **frames.members(entry)}
    return frames.with_text("message", members, stream.chunks, position)


_STREAM = b"\nevent: stream."

_SHOWN: dict[View, Callable[[Iterable[Entry]], Iterator[Iterable[Part]]]] = {
    View.STREAMS: partial(map, _all),
    View.MESSAGES: partial(map, _messages),
    View.TRANSCRIPT: transcripts,
}

FORMS: dict[tuple[str, View], EventStreamForm | LinesForm] = {
    (form.media_type.partition(";")[0], view): form(view)
    for form in (EventStreamForm, LinesForm)
    for view in View
}
"""One of each: who is written in the same form is written the same bytes."""


def message(stream: LoggedStream) -> dict[str, Any]:
    """A stream as far as it is: its header, its text, and how it ended if it did."""
    header = frames.members(stream.opened)
    end = {} if stream.closed is None else frames.members(stream.closed)
    text = "".join(frames.members(chunk)["text"] for chunk in stream.chunks)
    return {**header, **end, "text": text}


def pieces(events: Iterable[Iterable[Part]]) -> Iterator[Piece]:
    """Small ones are joined to READ_BYTES at least, but for the last; large ones are cut."""
    pending: list[Part] = []
    size = 0
    for parts in events:
        is_cut = False
        for part in parts:
            rest = part
            while size + len(rest) > MOST_BYTES:
                here = MOST_BYTES - size
                data = b"".join((*pending, memoryview(rest)[:here]))
                rest = memoryview(rest)[here:]
                pending.clear()
                size = 0
                is_cut = True
                yield Piece(data, ends_event=False)
            pending.append(rest)
            size += len(rest)
        if is_cut or size >= READ_BYTES:
            data = b"".join(pending)
            pending.clear()
            size = 0
            yield Piece(data, ends_event=True)
    if pending:
        yield Piece(b"".join(pending), ends_event=True, is_last=True)
