"""The log against a plain model of it, and its bounds one by one."""

import json
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings, strategies as st

from gateway.errors import InvalidParameter
from gateway.event_log import (
    READ_BYTES,
    Entry,
    EventLog,
    Evicted,
    LogBounds,
    LogBudget,
    Position,
    parse_position,
)
from gateway.events import (
    ClosingReason,
    GapReason,
    GatewayGap,
    LogEvent,
    StreamChunk,
    StreamClosed,
    StreamEvent,
    StreamOpened,
    closing,
)


def _encode(event: LogEvent, position: str) -> bytes:
    assert isinstance(event, StreamEvent)
    return json.dumps([position, event.type, event.topic, event.stream_id]).encode()


def _opened(stream: str, topic: str = "t") -> StreamOpened:
    return StreamOpened(stream, topic, "bob", 0)


def _chunk(stream: str, index: int, topic: str = "t") -> StreamChunk:
    return StreamChunk(stream, topic, "bob", index, "x")


def _closed(stream: str, chunks: int, topic: str = "t") -> StreamClosed:
    return StreamClosed(stream, topic, "bob", True, None, {}, chunks, chunks)


def _log(**bounds: float) -> EventLog:
    return EventLog(_encode, LogBounds(**bounds), "tu")  # type: ignore[arg-type]


def _seqs(entries: list[Entry]) -> list[int]:
    return [int(json.loads(entry.frame)[0].partition("-")[2]) for entry in entries]


def _frames(entries: list[Entry]) -> list[bytes]:
    return [entry.frame for entry in entries]


def test_positions_are_written_and_read() -> None:
    log = _log()
    log.append(_opened("a"))

    assert parse_position(str(log.head)) == log.head == Position(log.epoch, 1)


@pytest.mark.parametrize("value", ["", "1", "0123456789abcdef-", "0123456789abcdef-1 ", "-1"])
def test_what_is_not_a_position_is_refused(value: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_position(value)


def test_two_logs_never_share_an_epoch() -> None:
    assert len({_log().epoch for _ in range(100)}) == 100


def test_the_oldest_go_first_when_there_are_too_many() -> None:
    log = _log(events=3)
    for index in range(5):
        log.append(_chunk("a", index))

    assert _seqs(log.read(2, ["t"]).entries) == [3, 4, 5]
    with pytest.raises(Evicted):
        log.read(1, ["t"])


def test_the_oldest_go_first_when_they_are_too_large() -> None:
    log = _log(bytes=3 * len(_encode(_chunk("a", 0), "0123456789abcdef-1")))
    for index in range(5):
        log.append(_chunk("a", index))

    assert _seqs(log.read(2, ["t"]).entries) == [3, 4, 5]


def test_the_oldest_go_first_when_they_are_too_old() -> None:
    now = 0.0
    log = EventLog(_encode, LogBounds(age=10), "t", now=lambda: now)
    log.append(_opened("a"))
    now = 5
    log.append(_chunk("a", 0))
    now = 12
    start = log.resume(Position(log.epoch, 0), ["t"])

    assert start.gap is not None
    assert start.gap.reason is GapReason.EVICTED
    assert _seqs(log.read(1, ["t"]).entries) == [2]


def test_one_event_larger_than_the_bound_is_kept_until_the_next() -> None:
    log = _log(bytes=1)
    log.append(_opened("a"))
    assert _seqs(log.read(0, ["t"]).entries) == [1]
    log.append(_chunk("a", 0))
    assert _seqs(log.read(1, ["t"]).entries) == [2]


def test_what_is_dropped_is_not_held() -> None:
    log = EventLog(lambda event, position: bytes(10_000), LogBounds(bytes=1_000_000), "t")

    assert _held_by(log, (_chunk("a", index) for index in range(190))) < 1_200_000


def test_a_text_is_held_as_what_is_sent_and_no_more() -> None:
    log = EventLog(lambda event, position: bytes(10_000), LogBounds(bytes=1_000_000), "t")
    texts = ("\N{GRINNING FACE}" + "x" * 10_000 for _ in range(190))

    assert _held_by(log, (StreamChunk("a", "t", "bob", 0, text) for text in texts)) < 1_200_000


def _held_by(log: EventLog, events: Iterable[StreamEvent]) -> int:
    """Bytes that are held more than before, of events that are made one after the other."""
    tracemalloc.start()
    try:
        for event in events:
            log.append(event)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_logs_share_a_budget_and_the_one_that_keeps_most_gives_way() -> None:
    budget = LogBudget(most=10_000)
    small, large = (
        EventLog(lambda event, position: bytes(100), LogBounds(), "t", budget) for _ in range(2)
    )
    for index in range(10):
        small.append(_chunk("a", index))
    for index in range(200):
        large.append(_chunk("a", index))
    together = budget.held
    large.discard()
    large.append(_chunk("a", 200))

    assert (small.kept, small.size) == (10, 1_000)
    assert 10_000 - 10_000 / LogBudget.RELIEF - 100 < together <= 10_000
    assert budget.held == small.size


def test_logs_that_are_alike_give_up_alike() -> None:
    budget = LogBudget(most=20_000)
    logs = [
        EventLog(lambda event, position: bytes(100), LogBounds(), "t", budget) for _ in range(10)
    ]
    for index in range(100):
        for log in logs:
            log.append(_chunk("a", index))
            assert budget.held == sum(each.size for each in logs) <= budget.most

    assert {log.kept for log in logs} <= {18, 19, 20}
    assert all(log.evicted == {"total": 100 - log.kept} for log in logs)


def test_each_log_keeps_its_newest_event_whatever_all_hold() -> None:
    budget = LogBudget(most=150)
    logs = [
        EventLog(lambda event, position: bytes(100), LogBounds(), "t", budget) for _ in range(5)
    ]
    for log in logs:
        log.append(_opened("a"))
        log.append(_chunk("a", 0))

    assert [log.kept for log in logs] == [1] * 5


def test_what_was_dropped_is_counted_by_what_for() -> None:
    now = 0.0
    size = len(_encode(_chunk("a", 0), "0123456789abcdef-1"))
    bounds = LogBounds(events=3, bytes=4 * size, age=10)
    log = EventLog(_encode, bounds, "t", now=lambda: now)
    for index in range(4):
        log.append(_chunk("a", index))
    log.append(StreamChunk("a" * 2 * size, "t", "bob", 4, ""))
    now = 10.0
    log.evict()

    assert log.evicted == {"count": 2, "size": 1, "age": 2}
    assert (log.kept, log.size, log.head.seq) == (0, 0, 5)


def test_streams_are_listed_while_they_are_open_or_kept_whole() -> None:
    log = _log(events=6)
    log.append(_opened("a"))
    log.append(_closed("a", 0))
    log.append(_opened("b"))
    log.append(_opened("a"))
    listed = [stream.stream_id for stream in log.streams("t")]
    for index in range(6):
        log.append(_chunk("b", index))
    left = [stream.stream_id for stream in log.streams("t")]
    (again,) = log.streams_with_id("a")

    assert listed == ["a", "b", "a"]
    assert left == ["a", "b"]
    assert (again.opened.seq, again.earlier, again.later) == (4, None, None)
    assert list(log.streams("u")) == log.streams_with_id("c") == []


def test_an_open_stream_keeps_its_header_when_its_beginning_is_dropped() -> None:
    log = _log(events=3)
    log.append(_opened("a"))
    for index in range(4):
        log.append(_chunk("a", index))
    start = log.replay_open(["t"])

    assert start.gap is not None
    assert (start.gap.from_, start.gap.to) == (f"{log.epoch}-1", f"{log.epoch}-2")
    assert _seqs(start.replay) == [1, 3, 4, 5]


def test_an_interruption_is_told_to_readers_of_every_topic() -> None:
    now = 0.0
    log = EventLog(_encode_any, LogBounds(), "tu", now=lambda: now)
    log.append(_opened("a"))
    now = 10.0
    log.append(_chunk("a", 0))
    now = 25.0
    log.interrupt(20.0)
    log.append(_chunk("a", 1))
    expected = GatewayGap(GapReason.UNKNOWN, f"{log.epoch}-1", f"{log.epoch}-3")

    assert _frames(log.read(2, ["u"]).entries) == [repr(expected).encode()]
    assert log.resume(Position(log.epoch, 2), ["u"]).gap is None
    events = [_opened("a"), _chunk("a", 0), expected, _chunk("a", 1)]
    frames = [repr(event).encode() for event in events]
    assert _frames(log.replay_all(["t"]).replay) == frames
    assert _frames(log.replay_open(["t"]).replay) == frames
    assert log.replay_open(["u"]).replay == []


def _encode_any(event: LogEvent, position: str) -> bytes:
    return repr(event).encode()


def test_nothing_is_added_to_a_log_that_has_ended() -> None:
    log = _log()
    woken = []
    log.watch(lambda entry: woken.append(entry and entry.seq), ["t"])
    log.append(_opened("a"))
    log.end(closing(ClosingReason.DRAIN))
    log.end(closing(ClosingReason.REMOVED))
    log.append(_chunk("a", 0))

    assert log.head.seq == 1
    assert log.ended == closing(ClosingReason.DRAIN)
    assert woken == [1, None]


def test_a_read_is_bounded_and_the_next_one_goes_on() -> None:
    log = _log(bytes=1 << 30)
    large = "x" * (READ_BYTES // 2)
    for index in range(5):
        log.append(StreamChunk("a", large, "bob", index, ""))
    log.register_topic(large)
    first = log.read(0, [large])
    second = log.read(first.seq, [large])

    assert _seqs(first.entries) == [1, 2]
    assert _seqs(second.entries) == [3, 4]


def test_a_topic_registered_late_is_told_from_one_received_all_along() -> None:
    log = _log()
    log.append(_opened("a"))
    before = log.head
    log.register_topic("late")
    after = log.head
    log.register_topic("late")

    assert log.head == after != before
    assert _reason(log, before, "late") is GapReason.UNKNOWN
    assert _reason(log, after, "late") is None
    assert _reason(log, before, "t") is None
    assert log.read(before.seq, ["t", "late"]).entries == []


def _reason(log: EventLog, position: Position, topic: str) -> GapReason | None:
    gap = log.resume(position, [topic]).gap
    return gap.reason if gap is not None else None


@dataclass
class _Model:
    """The log without any cleverness: everything that was ever appended, and where it begins."""

    events: list[StreamEvent] = field(default_factory=list)
    kept: int = 8

    @property
    def first(self) -> int:
        return max(1, len(self.events) - self.kept + 1)

    def open_streams(self) -> dict[str, list[int]]:
        streams: dict[str, list[int]] = {}
        for seq, event in enumerate(self.events, 1):
            if isinstance(event, StreamOpened):
                streams[event.stream_id] = [seq]
            elif isinstance(event, StreamClosed):
                streams.pop(event.stream_id, None)
            elif event.stream_id in streams:
                streams[event.stream_id].append(seq)
        return streams


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from("abc"), st.sampled_from(["t", "u"])),
        st.tuples(st.just("read"), st.integers(0, 2), st.sampled_from(["t", "u", "tu"])),
        st.tuples(st.just("resume"), st.integers(0, 40), st.sampled_from(["t", "u", "tu"])),
        st.tuples(st.just("replay"), st.just(0), st.sampled_from(["t", "u", "tu"])),
        st.tuples(st.just("history"), st.integers(0, 40), st.sampled_from(["t", "u"])),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(steps=STEPS)
def test_every_reader_sees_exactly_the_log_or_is_told(steps: list[tuple[str, object, str]]) -> None:
    model = _Model()
    log = _log(events=model.kept)
    chunks: dict[str, int] = {}
    topic_of: dict[str, str] = {}
    cursors = {0: 0, 1: 0, 2: 0}
    for kind, what, topics in steps:
        if kind == "append":
            event = _next_event(str(what), topics, chunks, topic_of)
            log.append(event)
            model.events.append(event)
        elif kind == "read":
            assert isinstance(what, int)
            _check_read(log, model, cursors, what, topics)
        elif kind == "resume":
            assert isinstance(what, int)
            _check_resume(log, model, what, topics)
        elif kind == "history":
            assert isinstance(what, int)
            _check_history(log, model, what, topics)
        else:
            _check_replay_open(log, model, topics)


def _next_event(
    stream: str, topic: str, chunks: dict[str, int], topic_of: dict[str, str]
) -> StreamEvent:
    """Each stream opens, has two chunks, closes, and opens again."""
    if stream not in chunks:
        chunks[stream] = 0
        topic_of[stream] = topic
        return _opened(stream, topic)
    if chunks[stream] < 2:
        chunks[stream] += 1
        return _chunk(stream, chunks[stream] - 1, topic_of[stream])
    return _closed(stream, chunks.pop(stream), topic_of[stream])


def _check_read(
    log: EventLog, model: _Model, cursors: dict[int, int], reader: int, topics: str
) -> None:
    seq = cursors[reader]
    if seq < model.first - 1:
        with pytest.raises(Evicted):
            log.read(seq, topics)
        cursors[reader] = len(model.events)
        return
    read = log.read(seq, topics)
    assert _seqs(read.entries) == [
        number
        for number, event in enumerate(model.events, 1)
        if number > seq and event.topic in topics
    ]
    assert read.seq == len(model.events)
    cursors[reader] = read.seq


def _check_resume(log: EventLog, model: _Model, seq: int, topics: str) -> None:
    start = log.resume(Position(log.epoch, seq), topics)
    if seq > len(model.events):
        assert start.gap is not None
        assert start.gap.reason is GapReason.UNKNOWN
    elif seq < model.first - 1:
        assert start.gap is not None
        assert start.gap.reason is GapReason.EVICTED
    else:
        assert start.gap is None
        assert (start.seq, start.replay) == (seq, [])
        return
    assert start.gap.to == str(log.head)
    assert start.seq == len(model.events)
    assert len(start.replay) == len(log.replay_open(topics).replay)


def _check_history(log: EventLog, model: _Model, before: int, topic: str) -> None:
    """What is open, as far as it is kept, and what is closed and kept whole."""
    listed: list[tuple[int, list[int], bool, int]] = []
    latest: dict[str, int] = {}
    for begun, event in enumerate(model.events, 1):
        if not isinstance(event, StreamOpened):
            continue
        seqs: list[int] = []
        for seq, other in enumerate(model.events[begun:], begun + 1):
            if other.stream_id == event.stream_id:
                if isinstance(other, StreamOpened):
                    break
                seqs.append(seq)
        is_closed = bool(seqs) and isinstance(model.events[seqs[-1] - 1], StreamClosed)
        if is_closed and begun < model.first:
            continue
        latest[event.stream_id] = begun
        if event.topic == topic and begun < before:
            chunks = seqs[:-1] if is_closed else seqs
            kept = [seq for seq in chunks if seq >= model.first]
            listed.append((begun, kept, is_closed, len(chunks) - len(kept)))
    found = [
        (
            stream.opened.seq,
            [chunk.seq for chunk in stream.chunks],
            stream.closed is not None,
            stream.dropped,
        )
        for stream in log.streams(topic, before)
    ]
    assert found == listed[::-1]
    for stream_id in "abc":
        kept = [stream.opened.seq for stream in log.streams_with_id(stream_id)]
        assert kept == ([latest[stream_id]] if stream_id in latest else [])


def _check_replay_open(log: EventLog, model: _Model, topics: str) -> None:
    start = log.replay_open(topics)
    expected = []
    lost = []
    for seqs in model.open_streams().values():
        if model.events[seqs[0] - 1].topic in topics:
            expected += [seqs[0], *(seq for seq in seqs[1:] if seq >= model.first)]
            lost += [seq for seq in seqs[1:] if seq < model.first]
    assert _seqs(start.replay) == sorted(expected)
    assert start.seq == len(model.events)
    assert (start.gap is not None) == bool(lost)
    if start.gap is not None:
        assert start.gap.to == str(Position(log.epoch, max(lost)))
