"""Events to bytes: the Server-Sent Events of the HTML standard, 9.2."""

import json
import random
from json.encoder import encode_basestring
from typing import Any

from sse_starlette import ServerSentEvent

from gateway.events import Event, members

LINE_END = "\n"
"""The shortest of the three that the standard allows."""

RETRY = range(1_000, 3_001)
"""Milliseconds that a browser waits before it comes back, one of these for each, so that those that a crash
cut off do not all come at once; Chromium's own is 3 s, Firefox's 5."""


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode(event: Event, position: str | None = None) -> bytes:
    """One event as one block. Without a position it leaves the client's last event id alone.

    Written out here, where sse-starlette would split and check every field once more: neither
    names, positions nor JSON, which escapes CR and LF, contain a line end.
    """
    return block(event.type, members(event), position)


def opening() -> bytes:
    """Sent with the headers: a proxy that waits for a first byte passes both on at once."""
    wait = random.choice(RETRY)  # noqa: S311 - no secret
    return ServerSentEvent(comment="livekit gateway", retry=wait, sep=LINE_END).encode()


def block(name: str, data: dict[str, Any], position: str | None = None) -> bytes:
    object_ = ",".join([f'"{member}":{_written(value)}' for member, value in data.items()])
    written = f"event: {name}\ndata: {{{object_}}}\n\n"
    return (written if position is None else f"id: {position}\n{written}").encode()


def _written(value: object) -> str:
    """As JSON. What most values are is written at once: the encoder takes longer to begin than to write."""
    if isinstance(value, str):
        return encode_basestring(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not value and isinstance(value, dict | list | tuple):
        return "{}" if isinstance(value, dict) else "[]"
    return _json(value)


def without_id(frame: bytes) -> memoryview:
    """The block of a frame that begins with an id, for a replay: ids would be out of sequence there."""
    return memoryview(frame)[frame.index(b"\n") + 1 :]


def cursor(position: str) -> bytes:
    """A block that sets the client's last event id and fires no event."""
    return ServerSentEvent(id=position, sep=LINE_END).encode()


def heartbeat(position: str) -> bytes:
    """A sign of life that also moves the cursor past events that were not for this client."""
    return ServerSentEvent(comment="heartbeat", id=position, sep=LINE_END).encode()


def comment(text: str) -> bytes:
    """A sign of life, and nothing else."""
    return ServerSentEvent(comment=text, sep=LINE_END).encode()


def retry(seconds: int) -> bytes:
    return ServerSentEvent(retry=seconds * 1_000, sep=LINE_END).encode()
