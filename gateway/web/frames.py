"""What the frames of a log say, for who is shown something else than the events as they are."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from gateway.event_log import Entry, LoggedStream
from gateway.events import GapReason, GatewayGap
from gateway.web import sse

Part = bytes | memoryview
"""Of an event. What is large is a view of what the log holds, once for all who read it."""

DATA = b"\ndata: "

TEXT = b',"text":"'
"""What begins a text: within the value of another member, each quote has a backslash."""

_END = b"}\n\n"

TEXT_END = b'"' + _END
"""Where a text is the last member."""


def position(frame: bytes) -> bytes:
    """The id that a block begins with."""
    return frame[len(b"id: ") : frame.index(b"\n")]


def event(entry: Entry) -> dict[str, Any]:
    """Its members, as they are told."""
    made: dict[str, Any] = json.loads(entry.frame.partition(DATA)[2][:-2])
    return made


def members(entry: Entry) -> dict[str, Any]:
    """But for its type."""
    made = event(entry)
    del made["type"]
    return made


def text(chunk: Entry) -> memoryview:
    """Of a chunk, whose last member it is: as JSON, without its quotes."""
    frame = chunk.frame
    return memoryview(frame)[frame.index(TEXT) + len(TEXT) : -len(TEXT_END)]


def begun(name: str, members: dict[str, Any], position: str) -> bytes:
    """A block to which members are still to be added."""
    return sse.block(name, {"type": name, **members}, position).removesuffix(_END)


def with_text(
    name: str, members: dict[str, Any], chunks: Iterable[Entry], position: str
) -> Iterator[Part]:
    """A block with all that chunks say as its last member, of which no copy is made."""
    return chain((begun(name, members, position) + TEXT,), map(text, chunks), (TEXT_END,))


def evicted(stream: LoggedStream, position: str) -> bytes:
    """In the place of what would be made of a stream whose beginning the log has dropped."""
    epoch = position.partition("-")[0]
    gap = GatewayGap(GapReason.EVICTED, f"{epoch}-{stream.opened.seq - 1}", position)
    return sse.encode(gap, position)
