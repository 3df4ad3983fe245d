"""What a channel writes to those who stand level with its log."""

from itertools import count

from gateway.delivery import Channel, Deadline, Follower
from gateway.event_log import EventLog, LogBounds
from gateway.events import ClosingReason, ParticipantDisconnected, StreamOpened
from gateway.metrics import Metrics
from gateway.web import sse
from gateway.web.forms import EventStreamForm, View
from tests.outlets import Socket


async def test_the_position_of_a_heartbeat_does_not_go_back() -> None:
    """An event has come and is not written yet: the reader has all up to it, and was told so."""
    log = EventLog(sse.encode, LogBounds(), ["quiet"])
    hurried: list[Channel] = []
    topics = frozenset({"quiet"})
    form = EventStreamForm(View.STREAMS)
    channel = Channel(log, topics, form, bytes, Metrics(), hurried.append, lambda: None)
    outlet = Socket()
    deadline = Deadline(3600.0, ClosingReason.MAX_AGE)
    reader = Follower(channel, outlet, iter(()), 0, deadline, 30.0)
    channel.add(reader)
    numbers = count()
    while hurried:
        hurried.clear()
        list(channel.deliver(float(next(numbers))))
    for _ in range(3):
        log.append(ParticipantDisconnected("carol", None))  # on a topic of others

    before = channel.heartbeat_of(reader)
    log.append(StreamOpened("s", "quiet", "carol", 0))

    assert before is not None
    assert before.endswith(f"id: {log.epoch}-3\n\n".encode())
    assert channel.heartbeat_of(reader) == before
