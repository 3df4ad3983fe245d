"""The memory of one LiveKit connection: an append-only, bounded log, read by cursors.

A subscriber owns nothing but a number, the sequence number that it has read up to: resuming,
catching up and following live are the same read. Events are encoded once, when they are appended,
however many subscribers there are.

A position is written `<epoch>-<seq>`. The epoch is drawn when the log begins, so that an id of an
earlier log (the process restarted, the gateway had left the room) is never taken for one of this.
"""

import math
import re
import secrets
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from gateway.errors import InvalidParameter
from gateway.events import (
    AGENTS,
    PARTICIPANTS,
    GapReason,
    GatewayClosing,
    GatewayGap,
    LogEvent,
    Presence,
    StreamChunk,
    StreamClosed,
    StreamOpened,
)
from gateway.transcripts import TRANSCRIPTION_TOPIC, Folded, Segment, Segments

EPOCH_BYTES = 8
"""64 random bits: two logs never share an epoch, and nobody guesses one."""

_POSITION = re.compile(r"([0-9a-f]{16})-(0|[1-9][0-9]{0,18})")

INTERRUPTIONS = 100
"""Interruptions that are remembered beside the log, for the replay of a stream that is older than what
the log keeps."""

ALWAYS = (PARTICIPANTS, AGENTS)
"""Topics of what is no text: received from the beginning, by every log."""

READ_BYTES = 64 * 1024
"""What one read hands out at most, so that a subscriber far behind does not fill memory with one write."""

Encode = Callable[[LogEvent, str], bytes]
"""An event and its id to the frame that goes to subscribers."""


Watch = Callable[["Entry | None"], None]
"""Is called with each entry that is added, and with None at the log's end."""

_StreamKey = tuple[str, str]
"""A sender's identity and its stream's id."""


class Position(NamedTuple):
    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"


def parse_position(value: str, name: str = "Last-Event-ID") -> Position:
    match = _POSITION.fullmatch(value)
    if match is None:
        raise InvalidParameter(
            f"{name} is not an id of this gateway; it looks like 9f86d081884c7d65-42."
        )
    return Position(match[1], int(match[2]))


@dataclass(frozen=True, slots=True)
class LogBounds:
    """How much one log keeps; the oldest events go first."""

    events: int = 10_000
    """A busy transcript is some 20 events/s: about eight minutes of it."""
    bytes: int = 8 * 1024 * 1024
    """Of encoded events; all logs together have a bound of their own."""
    age: float = 3600.0
    """Seconds; a laptop that slept through lunch still resumes."""


class Entry(NamedTuple):
    """An event as it is sent. Itself it is not kept: a text with one emoji has four bytes for each of its
    characters, and the SDK leaves its UTF-8 with it."""

    seq: int
    time: float
    topic: str | None
    """None for an entry that everybody is shown, empty for one that nobody is."""
    frame: bytes
    stream: "LoggedStream | None" = None
    """What it belongs to."""

    def is_for(self, topics: Collection[str]) -> bool:
        return self.topic is None or self.topic in topics


@dataclass(slots=True, eq=False)
class LoggedStream:
    """A stream as far as the log keeps it: its beginning for as long as it is open, all of it or nothing
    once it is closed."""

    participant_identity: str
    stream_id: str
    opened: Entry = field(init=False)
    chunks: deque[Entry] | tuple[Entry, ...] = field(default_factory=deque)
    """A deque costs 600 bytes: only those that are open have one."""
    dropped: int = 0
    """Chunks that eviction has dropped, from the beginning on."""
    evicted_to: int = 0
    """The last of them, as a sequence number; 0 while there is none."""
    closed: Entry | None = None
    earlier: "LoggedStream | None" = None
    """The one before of this stream id: an id may be used again, and by others."""
    later: "LoggedStream | None" = None
    segment: Segment | None = None
    """Of a transcript, that which it is a part of."""
    folded: Folded | None = None
    """Likewise, what it says so far, where somebody has asked; not kept once it is closed."""

    @property
    def is_whole(self) -> bool:
        """Whether its text is here from the beginning."""
        return not self.evicted_to

    @property
    def size(self) -> int:
        """Bytes of its chunks as they are kept."""
        return sum(len(chunk.frame) for chunk in self.chunks)


_DROPPED = Entry(0, 0.0, "", b"")
"""In the place of an entry that is not kept any more, until the list is cut: what is behind `_start`
would hold as much memory as the bounds allow once more."""


class Read(NamedTuple):
    entries: list[Entry]
    seq: int
    """The cursor after this read: also past events of other topics, which are not in `entries`."""


class Start(NamedTuple):
    """Where a subscriber begins."""

    gap: GatewayGap | None
    seq: int
    replay: list[Entry]
    """To be sent, without their ids, before following from `seq`."""


class Evicted(Exception):
    """The log has dropped events that this cursor had not read yet."""


class EvictedBy(StrEnum):
    """What an event was dropped for."""

    AGE = "age"
    COUNT = "count"
    SIZE = "size"
    TOTAL = "total"
    """All logs together held too much, and this one the most."""


class LogBudget:
    """How much all logs of the process may keep together; the one that keeps most gives way first."""

    RELIEF = 64
    """What is given up at once is such a part of the whole, so that it is not looked for with every event."""

    def __init__(self, most: float = math.inf) -> None:
        """`most`: bytes of encoded events."""
        self.most = most
        self.held = 0
        self._logs: set[EventLog] = set()

    def join(self, log: "EventLog") -> None:
        self._logs.add(log)

    def leave(self, log: "EventLog") -> None:
        if log in self._logs:
            self._logs.discard(log)
            self.held -= log.size

    def relieve(self) -> None:
        """The logs that keep most drop their oldest, down to the same size: one alone would lose all of it
        where many are alike."""
        excess = self.held - (self.most - self.most / self.RELIEF)
        logs = sorted(self._logs, key=lambda log: log.size, reverse=True)
        together = 0
        for number, log in enumerate(logs, 1):
            together += log.size
            level = (together - excess) / number
            if number == len(logs) or level >= logs[number].size:
                for larger in logs[:number]:
                    larger.shrink(int(level))
                return


class EventLog:
    def __init__(
        self,
        encode: Encode,
        bounds: LogBounds,
        topics: Collection[str] = (),
        budget: "LogBudget | None" = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`topics` are received from the log's beginning. `budget`: shared with others."""
        self.epoch = secrets.token_hex(EPOCH_BYTES)
        self.ended: GatewayClosing | None = None
        """Set when nothing more will be appended; subscribers leave with it."""
        self.gaps: Counter[str] = Counter()
        """Interruptions so far, by their reasons."""
        self.evicted: Counter[str] = Counter()
        """Events dropped so far, by what for."""
        self._encode = encode
        self._bounds = bounds
        self._budget = LogBudget() if budget is None else budget
        self._budget.join(self)
        self._now = now
        # Kept entries are _entries[_start:]; the list is cut when half of it is behind _start,
        # which makes eviction and access by sequence number O(1) where a deque would scan.
        self._entries: list[Entry] = []
        self._start = 0
        self._head = 0
        self._bytes = 0
        self._registered = {**dict.fromkeys(ALWAYS, 0), **dict.fromkeys(topics, 0)}
        self._open: dict[_StreamKey, LoggedStream] = {}
        self._segments = Segments()
        # Those that are open, and those that are closed and kept whole, the older first.
        self._listed: dict[str, dict[int, LoggedStream]] = {}
        self._by_id: dict[str, LoggedStream] = {}
        self._interruptions: deque[Entry] = deque(maxlen=INTERRUPTIONS)
        # Copied when they change, so that whoever is called may come and go.
        self._watchers: dict[str, tuple[Watch, ...]] = {}
        self._all_watchers: tuple[Watch, ...] = ()

    @property
    def head(self) -> Position:
        """The position of the newest event; sequence number 0 before the first."""
        return Position(self.epoch, self._head)

    @property
    def kept(self) -> int:
        """Events that are remembered now."""
        return len(self._entries) - self._start

    @property
    def size(self) -> int:
        """Their bytes."""
        return self._bytes

    def append(self, event: LogEvent) -> None:
        """Adds the event, and wakes whoever follows. Nothing is added once the log has ended."""
        if self.ended is not None:
            return
        seq = self._head + 1
        frame = self._encode(event, f"{self.epoch}-{seq}")
        stream = self._stream_of(event)
        entry = Entry(seq, self._now(), event.topic, frame, stream)
        if stream is not None:
            self._track(entry, event, stream)
        self._add(entry)

    def interrupt(
        self,
        noticed_within: float,
        reason: GapReason = GapReason.UNKNOWN,
        presence: Presence | None = None,
    ) -> None:
        """Tells everybody that something may be missing, here and up to `noticed_within` seconds back."""
        if self.ended is not None:
            return
        since = self._now() - noticed_within
        index = bisect_right(self._entries, since, lo=self._start, key=lambda entry: entry.time)
        before = Position(self.epoch, self._first() + index - self._start - 1)
        here = str(Position(self.epoch, self._head + 1))
        gap = GatewayGap(reason, str(before), here, presence)
        self.gaps[reason] += 1
        entry = Entry(self._head + 1, self._now(), None, self._encode(gap, here))
        self._interruptions.append(entry)
        self._add(entry)

    def end(self, event: GatewayClosing) -> None:
        """Ends the log: subscribers read what is left, are told, and leave."""
        if self.ended is None:
            self.ended = event
            for watch in self._all_watchers:
                watch(None)

    def is_registered(self, topic: str) -> bool:
        return topic in self._registered

    @property
    def topics(self) -> list[str]:
        """Those that are received."""
        return [topic for topic in self._registered if topic not in ALWAYS]

    def register_topic(self, topic: str) -> None:
        """From now on the topic is received; a resume from before cannot be proved whole.

        Takes a sequence number, which nobody is shown, so that before and after are told apart even
        where nothing else happens in between.
        """
        if topic not in self._registered:
            self._registered[topic] = self._head + 1
            self._add(Entry(self._head + 1, self._now(), "", b""))

    def unregister_topic(self, topic: str) -> None:
        """From now on the topic is not received; a resume after this is told so if it comes back."""
        self._registered.pop(topic, None)

    def watch(self, watch: Watch, topics: Collection[str]) -> None:
        """Calls it with what is added on these topics and for everybody, and at the end, until `unwatch`."""
        self._all_watchers += (watch,)
        for topic in topics:
            self._watchers[topic] = (*self._watchers.get(topic, ()), watch)

    def unwatch(self, watch: Watch, topics: Collection[str]) -> None:
        self._all_watchers = tuple(each for each in self._all_watchers if each != watch)
        for topic in topics:
            left = tuple(each for each in self._watchers.get(topic, ()) if each != watch)
            if left:
                self._watchers[topic] = left
            else:
                self._watchers.pop(topic, None)

    def resume(self, last: Position, topics: Collection[str], *, whole: bool = False) -> Start:
        """Goes on after `last`, or says from where to where something may be missing.

        After a gap the subscriber stands at the head, with what is kept of the streams that are
        open replayed; the gap covers whatever of them is not. With `whole`, all that is kept of a log
        of which it has seen nothing.
        """
        reason = self._lost_since(last, topics)
        if reason is None:
            return Start(None, last.seq, [])
        gap = GatewayGap(reason, str(last), str(self.head))
        unseen = whole and reason is GapReason.RESTARTED
        start = self.replay_all(topics) if unseen else self.replay_open(topics)
        return start._replace(gap=gap)

    def replay_none(self) -> Start:
        return Start(None, self._head, [])

    def replay_open(self, topics: Collection[str]) -> Start:
        """The events of streams that are still open, so that nobody reads one from its middle; with
        the interruptions since then, for pieces may be missing there."""
        streams = [stream for stream in self._open.values() if stream.opened.topic in topics]
        entries = [entry for stream in streams for entry in (stream.opened, *stream.chunks)]
        if streams:
            begun = min(stream.opened.seq for stream in streams)
            entries += [entry for entry in self._interruptions if entry.seq > begun]
        entries.sort(key=lambda entry: entry.seq)
        gap = None
        if cut := [stream for stream in streams if stream.evicted_to]:
            gap = GatewayGap(
                GapReason.EVICTED,
                str(Position(self.epoch, min(stream.opened.seq for stream in cut))),
                str(Position(self.epoch, max(stream.evicted_to for stream in cut))),
            )
        return Start(gap, self._head, entries)

    def replay_all(self, topics: Collection[str]) -> Start:
        """Everything that is kept. Streams whose beginning was dropped are told as a gap."""
        self._evict()
        first = self._first()
        gap = None
        if first > 1:
            gap = GatewayGap(
                GapReason.EVICTED,
                str(Position(self.epoch, 0)),
                str(Position(self.epoch, first - 1)),
            )
        pinned = [
            stream.opened
            for stream in self._open.values()
            if stream.opened.seq < first and stream.opened.topic in topics
        ]
        kept = [entry for entry in self._kept(first) if entry.is_for(topics)]
        return Start(gap, self._head, [*pinned, *kept])

    def streams(self, topic: str, before: int | None = None) -> Iterator[LoggedStream]:
        """Those that are open, and those that are closed and kept whole; the newest first, of those that were
        opened before the event of that sequence number."""
        self._evict()
        of_topic = self._listed.get(topic, {})
        return (
            stream for seq, stream in reversed(of_topic.items()) if before is None or seq < before
        )

    def streams_with_id(self, stream_id: str) -> list[LoggedStream]:
        """Likewise, the latest of each sender."""
        self._evict()
        latest: dict[str, LoggedStream] = {}
        stream = self._by_id.get(stream_id)
        while stream is not None:
            latest.setdefault(stream.participant_identity, stream)
            stream = stream.earlier
        return list(latest.values())

    def read(self, seq: int, topics: Collection[str]) -> Read:
        """What came after `seq` on the topics, up to READ_BYTES.

        Raises Evicted when some of it is gone: the reader was too slow for the log's bounds.
        """
        if not self.keeps_after(seq):
            raise Evicted
        entries = []
        size = 0
        for entry in self._kept(seq + 1):
            seq = entry.seq
            if entry.is_for(topics):
                entries.append(entry)
                size += len(entry.frame)
                if size >= READ_BYTES:
                    break
        return Read(entries, seq)

    def keeps_after(self, seq: int) -> bool:
        """Whether a reader that has all up to `seq` can go on."""
        return seq >= self._first() - 1

    def _lost_since(self, last: Position, topics: Collection[str]) -> GapReason | None:
        if last.epoch != self.epoch:
            return GapReason.RESTARTED
        if last.seq > self._head:
            return GapReason.UNKNOWN
        self._evict()
        if not self.keeps_after(last.seq):
            return GapReason.EVICTED
        if any(last.seq < self._registered.get(topic, self._head) for topic in topics):
            return GapReason.UNKNOWN
        return None

    def _first(self) -> int:
        """The sequence number of the oldest event kept; that of the next one if none is."""
        return self._head - (len(self._entries) - self._start) + 1

    def _kept(self, seq: int) -> Iterator[Entry]:
        for index in range(self._start + seq - self._first(), len(self._entries)):
            yield self._entries[index]

    def _add(self, entry: Entry) -> None:
        self._head = entry.seq
        self._entries.append(entry)
        self._bytes += len(entry.frame)
        self._budget.held += len(entry.frame)
        self._evict()
        if self._budget.held > self._budget.most:
            self._budget.relieve()
        if entry.topic is None:
            for watch in self._all_watchers:
                watch(entry)
        else:
            for watch in self._watchers.get(entry.topic, ()):
                watch(entry)

    def _stream_of(self, event: LogEvent) -> LoggedStream | None:
        match event:
            case StreamOpened():
                return LoggedStream(event.participant_identity, event.stream_id)
            case StreamChunk() | StreamClosed():
                return self._open.get((event.participant_identity, event.stream_id))
            case _:
                return None

    def _track(self, entry: Entry, event: LogEvent, stream: LoggedStream) -> None:
        match event:
            case StreamOpened():
                stream.opened = entry
                key = stream.participant_identity, stream.stream_id
                if (unclosed := self._open.get(key)) is not None:
                    self._unlist(unclosed)
                self._open[key] = stream
                self._list(stream)
                if event.topic == TRANSCRIPTION_TOPIC:
                    stream.segment = self._segments.begin(event)
            case StreamClosed():
                del self._open[stream.participant_identity, stream.stream_id]
                stream.chunks = tuple(stream.chunks)
                stream.closed = entry
                stream.folded = None
                if stream.segment is not None:
                    self._segments.close(stream.segment, event, entry.seq)
                if stream.opened.seq < self._first():
                    self._forget(stream)
            case _:
                stream.chunks.append(entry)  # type: ignore[union-attr]  # it is open

    def evict(self) -> None:
        """Drops what is too old, which else waits for somebody to add or to read."""
        self._evict()

    def shrink(self, size: int) -> None:
        """Drops the oldest beyond so many bytes, for other logs; the newest stays."""
        while self._bytes > size and self.kept > 1:
            self._drop_oldest(EvictedBy.TOTAL)
        self._cut()

    def discard(self) -> None:
        """Nobody comes back to it: it counts no more."""
        self._budget.leave(self)
        self._budget = LogBudget()

    def _evict(self) -> None:
        while (reason := self._surplus()) is not None:
            self._drop_oldest(reason)
        self._cut()

    def _surplus(self) -> EvictedBy | None:
        """What the oldest event is to be dropped for."""
        kept = self.kept
        if not kept:
            return None
        if kept > self._bounds.events:
            return EvictedBy.COUNT
        # The newest stays however large it is: else nobody would ever be handed it.
        if self._bytes > self._bounds.bytes and kept > 1:
            return EvictedBy.SIZE
        if self._entries[self._start].time <= self._now() - self._bounds.age:
            return EvictedBy.AGE
        return None

    def _drop_oldest(self, reason: EvictedBy) -> None:
        self._drop(self._entries[self._start])
        self._entries[self._start] = _DROPPED
        self._start += 1
        self.evicted[reason] += 1

    def _cut(self) -> None:
        if self._start > len(self._entries) // 2:
            del self._entries[: self._start]
            self._start = 0

    def _drop(self, entry: Entry) -> None:
        self._bytes -= len(entry.frame)
        self._budget.held -= len(entry.frame)
        stream = entry.stream
        if stream is None:
            return
        if stream.closed is None:
            if entry is not stream.opened:
                stream.chunks.popleft()  # type: ignore[union-attr]  # it is open
                stream.dropped += 1
                stream.evicted_to = entry.seq
        elif entry is stream.opened:
            self._forget(stream)

    def _list(self, stream: LoggedStream) -> None:
        of_topic = self._listed.setdefault(stream.opened.topic or "", {})
        of_topic[stream.opened.seq] = stream
        if (earlier := self._by_id.get(stream.stream_id)) is not None:
            stream.earlier, earlier.later = earlier, stream
        self._by_id[stream.stream_id] = stream

    def _unlist(self, stream: LoggedStream) -> None:
        topic = stream.opened.topic or ""
        of_topic = self._listed.get(topic, {})
        if of_topic.pop(stream.opened.seq, None) is None:
            return
        if not of_topic:
            del self._listed[topic]
        earlier, later = stream.earlier, stream.later
        if earlier is not None:
            earlier.later = later
        if later is not None:
            later.earlier = earlier
        elif earlier is not None:
            self._by_id[stream.stream_id] = earlier
        else:
            del self._by_id[stream.stream_id]
        stream.earlier = stream.later = None
        if stream.segment is not None:
            self._segments.forget(stream.segment)

    def _forget(self, stream: LoggedStream) -> None:
        """A closed stream whose beginning is gone; what is left of it must not be held by its end."""
        self._unlist(stream)
        if stream.chunks:
            stream.evicted_to = stream.chunks[-1].seq
            stream.chunks = ()
