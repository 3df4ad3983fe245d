"""Events as bytes."""

import json

import pytest

from gateway.events import Event, GapReason, GatewayGap, StreamChunk, StreamClosed, StreamOpened
from gateway.web import sse

NASTY = 'é"\\\n\r\0\x7f\u2028😀'


@pytest.mark.parametrize(
    "event",
    [
        StreamOpened(NASTY, NASTY, NASTY, 1),
        StreamOpened("id", "t", "bob", 1, 0, attributes={}, destination_identities=(), local=True),
        StreamOpened("id", "t", "bob", 1, attributes={NASTY: NASTY}, attached_stream_ids=(NASTY,)),
        StreamChunk("id", "t", "bob", 0, NASTY),
        StreamClosed("id", "t", "bob", True, None, {}, 0, 0),
        GatewayGap(GapReason.EVICTED, "from", "to"),
    ],
)
def test_an_event_is_written_as_the_json_encoder_writes_it(event: Event) -> None:
    data = sse.encode(event, "epoch-1").decode().partition("\ndata: ")[2]

    written = json.dumps(json.loads(data), ensure_ascii=False, separators=(",", ":"))
    assert data == f"{written}\n\n"
