"""What a channel writes to those who stand level with its log."""

from itertools import count

import pytest

from gateway import delivery
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


async def test_who_joins_those_that_are_lost_by_that_is_written_what_comes_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last of a channel's readers to get level, when the others turn out to have gone."""
    monkeypatch.setattr(delivery, "TURN_WRITES", 2)
    log = EventLog(sse.encode, LogBounds(), ["t"])
    emptied: list[bool] = []
    topics = frozenset({"t"})
    form = EventStreamForm(View.STREAMS)
    channel = Channel(
        log, topics, form, bytes, Metrics(), lambda _: None, lambda: emptied.append(True)
    )
    socket = Socket()

    def follower(outlet: Socket) -> Follower:
        deadline = Deadline(3600.0, ClosingReason.MAX_AGE)
        return Follower(channel, outlet, iter(()), 0, deadline, 30.0)

    leaving, silent, last = (
        follower(each) for each in (Socket(RuntimeError()), Socket(RuntimeError()), socket)
    )
    for each in (leaving, silent, last):
        channel.add(each)
    round_ = channel.deliver(0.0)
    next(round_)
    leaving.lost()
    log.append(StreamOpened("first", "t", "carol", 0))
    list(round_)
    log.append(StreamOpened("second", "t", "carol", 0))
    list(channel.deliver(1.0))

    assert silent.over.done()
    written = socket.taken()
    assert [b"first" in each for each in written] == [True, False]
    assert b"second" in written[1]
    assert not emptied
    last.lost()
    assert emptied == [True]
