"""How a streamed text ends that is not whole: at readers of event streams, at participants with LiveKit's
own SDK, and for its sender."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import Serve
from tests.guests import sdk_listener
from tests.running_gateway import ChunkedUpload, RunningGateway

Answer = tuple[int, dict[str, Any]] | None
"""Status and JSON of an answer that a cause has waited for."""


@dataclass(frozen=True)
class End:
    """One way in which it ends, once a first piece has been read."""

    cause: Callable[[RunningGateway, str, ChunkedUpload], Awaitable[Answer]]
    reason: str
    answer: tuple[int, str] | None
    """Status and code; None where nobody is there to be told."""
    settings: dict[str, Any] = field(default_factory=dict)
    lives: float = 60.0
    """Seconds that the sender's token is good for."""
    content_type: str = "text/plain"


async def _break_off(gateway: RunningGateway, room: str, upload: ChunkedUpload) -> Answer:
    upload.break_off()
    return None


async def _wait(gateway: RunningGateway, room: str, upload: ChunkedUpload) -> Answer:
    return None


def _sending(
    data: bytes, *, last: bool = False
) -> Callable[[RunningGateway, str, ChunkedUpload], Awaitable[Answer]]:
    async def send(gateway: RunningGateway, room: str, upload: ChunkedUpload) -> Answer:
        upload.send(data)
        if last:
            upload.finish()
        return None

    return send


async def _drain(gateway: RunningGateway, room: str, upload: ChunkedUpload) -> Answer:
    gateway.server.should_exit = True
    return None


async def _remove(gateway: RunningGateway, room: str, upload: ChunkedUpload) -> Answer:
    await gateway.remove(room, "carol")
    return None


async def _mute(gateway: RunningGateway, room: str, upload: ChunkedUpload) -> Answer:
    await gateway.forbid_sending(room, "carol")
    # LiveKit drops in silence what comes before it has told us.
    return await upload.send_until_answered(b"-")


ENDS = {
    "the client is gone": End(_break_off, "client_disconnected", None),
    "it is idle": End(_wait, "body_idle", (408, "body_idle"), {"body_idle_timeout": 0.5}),
    "it is too long": End(
        _sending(b"x" * 20), "body_too_large", (413, "body_too_large"), {"max_stream_bytes": 16}
    ),
    "it is not UTF-8": End(_sending(b"\xff"), "invalid_text", (400, "invalid_text")),
    "a line is wrong": End(
        _sending(b"{}\n"),
        "invalid_line",
        (400, "invalid_line"),
        content_type="application/x-ndjson",
    ),
    "the end's attributes are too large": End(
        _sending(b'{"close": {"attributes": {"a": "' + b"x" * 14_000 + b'"}}}\n', last=True),
        "header_too_large",
        (413, "header_too_large"),
        content_type="application/x-ndjson",
    ),
    "the gateway drains": End(_drain, "drain", (503, "draining")),
    "the token expires": End(_wait, "token_expired", (401, "token_expired"), lives=2.0),
    "the participant is removed": End(_remove, "sender_disconnected", (503, "livekit_unavailable")),
    "the right to send is taken away": End(_mute, "not_permitted", (403, "not_permitted")),
}


@pytest.mark.parametrize("name", ENDS)
async def test_each_way_is_told_to_all(serve_livekit: Serve, room: str, name: str) -> None:
    end = ENDS[name]
    first = b'"first"\n' if end.content_type.endswith("ndjson") else b"first"
    async with (
        serve_livekit() as other,
        serve_livekit(**end.settings) as gateway,
        sdk_listener(gateway, room, "dave") as dave,
        # Of another gateway, for this one may be the one that drains.
        other.events(room, "bob") as bob,
        gateway.upload(
            room,
            "carol",
            token=gateway.token_that_lives("carol", room, end.lives),
            content_type=end.content_type,
        ) as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(first)
        assert (await bob.until("stream.chunk")).data["text"] == "first"
        told = await end.cause(gateway, room, upload)
        closed = (await bob.until("stream.closed")).data
        _, at_sdk, _ = await dave.end()
        if end.answer is not None and told is None:
            told = await upload.answer()

    assert (closed["complete"], closed["reason"]) == (False, end.reason)
    assert at_sdk is not None
    if end.reason == "sender_disconnected":
        assert "disconnected" in at_sdk  # the SDK's own words
    else:
        assert at_sdk == end.reason
    assert (None if told is None else (told[0], told[1]["code"])) == end.answer
