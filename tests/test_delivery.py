"""What a channel writes to those who stand level with its log."""

import asyncio
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from gateway import delivery
from gateway.delivery import Channel, Deadline, Follower, Pump
from gateway.event_log import EventLog, LogBounds
from gateway.events import PARTICIPANTS, ClosingReason, ParticipantDisconnected, StreamOpened
from gateway.metrics import Metrics
from gateway.web import sse
from gateway.web.forms import EventStreamForm, View
from tests.outlets import Socket


class _ByHand(Pump):
    """Its rounds are a test's to make."""

    def __init__(self) -> None:
        super().__init__(Metrics(), heartbeat=15.0, write_timeout=30.0)

    def hurry(self, channel: Channel) -> None:
        pass


def _nothing() -> None:
    pass


async def test_the_position_of_a_heartbeat_does_not_go_back() -> None:
    """An event has come and is not written yet: the reader has all up to it, and was told so."""
    log = EventLog(sse.encode, LogBounds(), ["quiet"])
    form = EventStreamForm(View.STREAMS)
    channel = Channel(log, frozenset({"quiet"}), form, bytes, Metrics(), _ByHand(), _nothing)
    outlet = Socket()
    reader = Follower(channel, outlet, iter(()), 0, ClosingReason.MAX_AGE, 30.0)
    channel.add(reader)
    list(channel.deliver(0.0))
    assert reader.cohort is not None
    for _ in range(3):
        log.append(ParticipantDisconnected("carol", None))  # on a topic of others

    reader.cohort.tend(1000.0, 15.0)
    log.append(StreamOpened("s", "quiet", "carol", 0))
    reader.cohort.tend(2000.0, 15.0)

    before, after = outlet.taken()
    assert before.endswith(f"id: {log.epoch}-3\n\n".encode())
    assert after == before


async def test_who_joins_those_that_are_lost_by_that_is_written_what_comes_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last of a channel's readers to get level, when the others turn out to have gone."""
    monkeypatch.setattr(delivery, "TURN_WRITES", 2)
    log = EventLog(sse.encode, LogBounds(), ["t"])
    emptied: list[bool] = []
    topics = frozenset({"t"})
    form = EventStreamForm(View.STREAMS)
    channel = Channel(log, topics, form, bytes, Metrics(), _ByHand(), lambda: emptied.append(True))
    socket = Socket()

    def follower(outlet: Socket) -> Follower:
        return Follower(channel, outlet, iter(()), 0, ClosingReason.MAX_AGE, 30.0)

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


class _Readers:
    """Of one channel, whose rounds a test makes."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        form = EventStreamForm(View.STREAMS)
        self.channel = Channel(
            log, frozenset({PARTICIPANTS}), form, bytes, Metrics(), _ByHand(), _nothing
        )

    def join(self, take: Callable[[bytes], object]) -> Follower:
        outlet = Socket(take=take)
        head = self.log.head.seq
        reader = Follower(self.channel, outlet, iter(()), head, ClosingReason.MAX_AGE, 30.0)
        self.channel.add(reader)
        return reader

    def say(self, name: str) -> None:
        self.log.append(ParticipantDisconnected(name, None))


async def test_what_comes_during_a_round_goes_out_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """To those whose turn is still to come in it; the others have it with the next."""
    monkeypatch.setattr(delivery, "TURN_WRITES", 2)
    readers = _Readers(EventLog(sse.encode, LogBounds(), []))
    written: list[list[bytes]] = [[] for _ in range(5)]
    for each in written:
        readers.join(each.append)
    list(readers.channel.deliver(0.0))
    readers.say("first")
    round_ = readers.channel.deliver(1.0)
    next(round_)

    assert [len(each) for each in written] == [1, 1, 0, 0, 0]
    readers.say("second")
    list(round_)
    assert [b"".join(each).count(b"event: ") for each in written] == [1, 1, 2, 2, 2]
    list(readers.channel.deliver(2.0))
    assert [b"".join(each).count(b"event: ") for each in written] == [2] * 5
    assert len({b"".join(each) for each in written}) == 1


async def test_what_all_readers_have_been_written_is_not_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever came and went, and however."""
    monkeypatch.setattr(delivery, "TURN_WRITES", 1)
    readers = _Readers(EventLog(sse.encode, LogBounds(events=1), []))
    there = [readers.join(len) for _ in range(4)]
    tracemalloc.start()
    for number in range(300):
        there.append(readers.join(len))
        round_ = readers.channel.deliver(1.0)
        readers.say(f"{number}{'x' * 10_000}")
        next(round_)
        there.pop(number % 5).lost()
        list(round_)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < 1_000_000


def test_readers_are_tended_on_the_loop_of_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """For it, what is due already has no time."""
    monkeypatch.setattr(delivery, "TURN_WRITES", 1)

    async def beaten() -> list[Socket]:
        pump = Pump(Metrics(), heartbeat=0.02, write_timeout=30.0)
        log = EventLog(sse.encode, LogBounds(), ["t"])
        form = EventStreamForm(View.STREAMS)
        never = Deadline(asyncio.get_running_loop().time() + 3600, ClosingReason.MAX_AGE)
        sockets = []
        for _ in range(500):
            sockets.append(Socket())
            pump.follow(log, frozenset("t"), form, sockets[-1], iter(()), 0, never)
            await asyncio.sleep(0)  # some are due while others come
        for _ in range(2):
            for socket in sockets:
                await socket.until(b"heartbeat")
        return sockets

    errors: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
        await beaten()

    uvloop.run(watched())

    assert errors == []
