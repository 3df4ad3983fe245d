"""`view=transcript`: what is said on `lk.transcription`, as LiveKit Agents write it there."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from gateway import event_log
from gateway.event_log import READ_BYTES, EventLog, Evicted, LogBounds, Position, Start
from gateway.events import GatewayGap, StreamChunk, StreamClosed, StreamOpened
from gateway.rooms.base import Listener, TextOptions, TextStreamWriter
from gateway.rooms.memory import MemoryRoom
from gateway.web import sse, transcript
from gateway.web.forms import EVENT_STREAM, FORMS, JSON_LINES, View
from tests.conftest import Serve
from tests.running_gateway import EventStream, RunningGateway

TOPIC = "lk.transcription"

BEGUN = 8
"""Lines of an event stream before its first live event."""


class Agent:
    """Writes as LiveKit Agents do."""

    def __init__(self, room: MemoryRoom) -> None:
        self.room = room

    async def begins(
        self, segment: str | None, stream: str, *, of: str = "agent", final: bool = False
    ) -> TextStreamWriter:
        attributes = {"lk.transcription_final": "true" if final else "false"}
        if segment is not None:
            attributes["lk.segment_id"] = segment
        # What users say is written in their names.
        author = self.room if of == self.room.identity else self.room.present[of]
        options = TextOptions(TOPIC, attributes=attributes, stream_id=stream)
        return await author.open_text_stream(options)

    async def hears(self, text: str, segment: str, stream: str, *, final: bool = False) -> None:
        """A result of what user carol says, interim or final."""
        writer = await self.begins(segment, stream, of="carol", final=final)
        await writer.write(text)
        await writer.close()


async def _agent_in(gateway: RunningGateway, room: str) -> Agent:
    nothing = Listener(_ignore, _ignore, _ignore, _ignore)
    await gateway.rooms.join(room, "carol", "", (), nothing)
    joined = await gateway.rooms.join(room, "agent", "", (), nothing)
    assert isinstance(joined, MemoryRoom)
    return Agent(joined)


def _ignore(*_: object) -> None:
    """Nobody listens."""


def _transcript(
    gateway: RunningGateway, room: str, topic: str | tuple[str, ...] = TOPIC, **query: Any
) -> AbstractAsyncContextManager[EventStream]:
    return gateway.events(room, "bob", topic, view="transcript", **query)


FINAL = {"lk.transcription_final": "true"}


# What is shown


async def test_the_exact_text_of_what_a_user_says(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        agent = await _agent_in(gateway, room)
        async with _transcript(gateway, room) as bob:
            await bob.raw(BEGUN)
            told = []
            for number, text in enumerate(("how", "how are", 'how are "you"\n')):
                await agent.hears(text, "SG_1", f"s{number}")
                told.append(await bob.raw(4))
            await agent.hears('how are "you"\n', "SG_1", "s3", final=True)
            # A partial may come before, where the two are not written at once.
            while "transcript.final" not in (final := await bob.raw(4)):
                pass
            await agent.hears('how are "you"\n', "SG_1", "s4", final=True)
            await agent.hears("and", "SG_2", "s5")
            after = await bob.raw(4)

    head = '"participant_identity":"carol","segment_id":"SG_1"'
    epoch = told[0][4:20]
    assert told == [
        f"id: {epoch}-{seq}\n"
        "event: transcript.partial\n"
        f'data: {{"type":"transcript.partial",{head},"stream_id":"{stream}","words":null,"text":"{text}"}}\n'
        "\n"
        for seq, stream, text in (
            (2, "s0", "how"),
            (5, "s1", "how are"),
            (8, "s2", 'how are \\"you\\"\\n'),
        )
    ]
    assert final == (
        f"id: {epoch}-12\n"
        "event: transcript.final\n"
        f'data: {{"type":"transcript.final",{head},"stream_id":"s3","complete":true,"reason":null,'
        '"words":null,"text":"how are \\"you\\"\\n"}\n'
        "\n"
    )
    assert '"stream_id":"s5","words":null,"text":"and"}' in after


async def test_the_exact_text_of_what_an_agent_says(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        agent = await _agent_in(gateway, room)
        async with _transcript(gateway, room) as bob:
            await bob.raw(BEGUN)
            writer = await agent.begins("SG_1", "s")
            told = []
            for word in ("You ", "said: ", "ü\u2028"):
                await writer.write(word)
                told.append(await bob.raw(4))
            await writer.close(FINAL)
            told.append(await bob.raw(4))

    head = '"participant_identity":"agent","segment_id":"SG_1","stream_id":"s"'
    epoch = told[0][4:20]
    assert told == [
        *(
            f"id: {epoch}-{seq}\n"
            "event: transcript.partial\n"
            f'data: {{"type":"transcript.partial",{head},"words":null,"text":"{text}"}}\n'
            "\n"
            for seq, text in ((2, "You "), (3, "You said: "), (4, "You said: ü\u2028"))
        ),
        f"id: {epoch}-5\n"
        "event: transcript.final\n"
        f'data: {{"type":"transcript.final",{head},"complete":true,"reason":null,'
        '"words":null,"text":"You said: ü\u2028"}\n'
        "\n",
    ]


async def test_the_exact_lines_of_timed_strings(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        agent = await _agent_in(gateway, room)
        async with _transcript(gateway, room, accept=JSON_LINES) as bob:
            await bob.raw(2)
            writer = await agent.begins("SG_1", "s")
            await writer.write('{"text": "You ", "sta')
            await writer.write('rt_time": 0.25, "end_time": 0.5}\n')
            told = [await bob.raw(1)]
            await writer.write('{"text": "said \\"\\u00fc\\"", "end_time": 1}\n')
            told.append(await bob.raw(1))
            await writer.close(FINAL)
            told.append(await bob.raw(1))
            async with _transcript(gateway, room, accept=JSON_LINES, replay="all") as late:
                replayed = await late.raw(3)

    head = '"participant_identity":"agent","segment_id":"SG_1","stream_id":"s"'
    you = '{"text":"You ","start_time":0.25,"end_time":0.5}'
    both = f'"words":[{you},{{"text":"said \\"ü\\"","start_time":null,"end_time":1.0}}]'
    epoch = told[0][7:23]
    final = f'"type":"transcript.final",{head},"complete":true,"reason":null,{both},"text":"You said \\"ü\\""}}\n'
    assert told == [
        f'{{"id":"{epoch}-3","type":"transcript.partial",{head},"words":[{you}],"text":"You "}}\n',
        f'{{"id":"{epoch}-4","type":"transcript.partial",{head},{both},"text":"You said \\"ü\\""}}\n',
        f'{{"id":"{epoch}-5",{final}',
    ]
    assert replayed.splitlines(keepends=True)[1] == f"{{{final}"


async def test_a_segment_that_breaks_off_ends_and_begins_anew_where_it_is_taken_up(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, _transcript(gateway, room) as bob:
        await bob.until("gateway.opened")
        agent = await _agent_in(gateway, room)
        writer = await agent.begins("SG_1", "s0")
        await writer.write("half a")
        await bob.until("transcript.partial")
        await writer.abort("agent_died")
        broken = await bob.next()
        writer = await agent.begins("SG_1", "s1")
        await writer.write("half a word")
        partial = await bob.next()
        await writer.close(FINAL)
        final = await bob.next()

    assert broken.data == {
        "type": "transcript.final",
        "participant_identity": "agent",
        "segment_id": "SG_1",
        "stream_id": "s0",
        "complete": False,
        "reason": "agent_died",
        "words": None,
        "text": "half a",
    }
    assert (partial.name, partial.data["text"]) == ("transcript.partial", "half a word")
    assert (final.name, final.data["text"]) == ("transcript.final", "half a word")
    assert final.data["complete"] is True


async def test_a_stream_without_a_segment_is_one(serve_memory: Serve, room: str) -> None:
    """Also where its id is used again."""
    async with serve_memory() as gateway, _transcript(gateway, room) as bob:
        await bob.until("gateway.opened")
        agent = await _agent_in(gateway, room)
        for text in ("one", "two"):
            writer = await agent.begins(None, "s")
            await writer.write(text)
            await writer.close()
            final = await bob.until("transcript.final")
            assert final.data["segment_id"] == final.data["stream_id"] == "s"
            assert (final.data["text"], final.data["complete"]) == (text, True)


async def test_other_topics_and_participants_are_shown_as_they_are(
    serve_memory: Serve, room: str
) -> None:
    topics = ("lk.chat", TOPIC)
    async with (
        serve_memory() as gateway,
        _transcript(gateway, room, topics, participants="1") as bob,
    ):
        await bob.until("gateway.opened")
        agent = await _agent_in(gateway, room)
        came = await bob.take(2)
        await gateway.post(room, "bob", "hello")
        chat = await bob.take(3)
        await agent.hears("hello", "SG_1", "s")
        said = await bob.next()

    assert [event.name for event in came] == ["participant.connected"] * 2
    names = ["stream.opened", "stream.chunk", "stream.closed"]
    assert [event.name for event in chat] == names
    assert (said.name, said.data["text"]) == ("transcript.partial", "hello")


# Where a reader begins


@pytest.mark.parametrize("replay", ["none", "open", "all"])
async def test_who_comes_in_the_middle_of_a_segment_is_shown_all_of_it(
    serve_memory: Serve, room: str, replay: str
) -> None:
    async with serve_memory() as gateway, _transcript(gateway, room) as watch:
        await watch.until("gateway.opened")
        agent = await _agent_in(gateway, room)
        await agent.hears("before", "SG_0", "s0", final=True)
        await watch.until("transcript.final")
        writer = await agent.begins("SG_1", "s1")
        await writer.write("one ")
        await writer.write("two ")
        while (last := await watch.until("transcript.partial")).data["text"] != "one two ":
            pass
        async with _transcript(gateway, room, replay=replay) as late:
            begun = (await late.take({"none": 1, "open": 2, "all": 3}[replay]))[1:]
            armed = await late.cursor()
            await writer.write("three ")
            live = await late.next()
            await writer.close(FINAL)
            final = await late.next()

    assert [(event.name, event.data["text"], event.id) for event in begun] == {
        "none": [],
        "open": [("transcript.partial", "one two ", None)],
        "all": [("transcript.final", "before", None), ("transcript.partial", "one two ", None)],
    }[replay]
    assert armed == last.id
    assert (live.name, live.data["text"]) == ("transcript.partial", "one two three ")
    assert (final.name, final.data["text"]) == ("transcript.final", "one two three ")


async def test_who_comes_back_in_the_middle_of_a_segment_goes_on_there(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        async with _transcript(gateway, room) as bob:
            await bob.until("gateway.opened")
            agent = await _agent_in(gateway, room)
            writer = await agent.begins("SG_1", "s1")
            await writer.write("one ")
            last = (await bob.until("transcript.partial")).id
        await writer.write("two ")
        await writer.write("three ")
        await agent.hears("final", "SG_2", "s2", final=True)
        async with _transcript(gateway, room, last_event_id=last) as bob:
            await bob.until("gateway.opened")
            missed = await bob.take(2)
            await agent.hears("final", "SG_2", "s3", final=True)
            await writer.close(FINAL)
            final = await bob.next()

    assert [(event.name, event.data["text"]) for event in missed] == [
        ("transcript.partial", "one two three "),
        ("transcript.final", "final"),
    ]
    assert (final.data["stream_id"], final.data["text"]) == ("s1", "one two three ")


async def test_a_gap_is_in_the_place_of_what_lost_its_beginning(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory(log_events=4) as gateway, _transcript(gateway, room) as bob:
        await bob.until("gateway.opened")
        agent = await _agent_in(gateway, room)
        writer = await agent.begins("SG_1", "s1")
        for number in range(6):
            await writer.write(f"{number} ")
            await asyncio.sleep(0)
        await writer.close(FINAL)
        while (gap := await bob.next()).name == "transcript.partial":
            pass
        await agent.hears("small", "SG_2", "s2", final=True)
        final = await bob.until("transcript.final")

    epoch, end = str(gap.id).split("-")
    assert gap.data == {
        "type": "gateway.gap",
        "reason": "evicted",
        "from": f"{epoch}-{int(end) - 8}",
        "to": gap.id,
        "presence": None,
    }
    assert final.data["text"] == "small"


# Its bounds


class Said:
    """A log, and what a reader of it is written."""

    def __init__(self, **bounds: Any) -> None:
        self.log = EventLog(sse.encode, LogBounds(**bounds), [TOPIC])
        self._form = FORMS[JSON_LINES, View.TRANSCRIPT]
        self._seq = 0
        self._chunks: dict[str, int] = {}

    def open(self, stream: str, **attributes: str) -> None:
        named = {f"lk.{name}": value for name, value in attributes.items()}
        self.log.append(StreamOpened(stream, TOPIC, "agent", 0, attributes=named))
        self._chunks[stream] = 0

    def write(self, stream: str, text: str) -> None:
        self.log.append(StreamChunk(stream, TOPIC, "agent", self._chunks[stream], text))
        self._chunks[stream] += 1

    def close(self, stream: str, size: int) -> None:
        attributes = {"lk.transcription_final": "true"}
        chunks = self._chunks[stream]
        closed = StreamClosed(stream, TOPIC, "agent", True, None, attributes, size, chunks)
        self.log.append(closed)

    def shown(self) -> list[dict[str, Any]]:
        """Since it was asked before: some 64 KiB at once."""
        shown = []
        while self._seq < self.log.head.seq:
            read = self.log.read(self._seq, [TOPIC])
            self._seq = read.seq
            shown += [json.loads(line) for line in self._form.entries(read.entries).splitlines()]
        return shown


def test_of_what_is_written_at_once_the_last_partial_of_a_segment_is_enough() -> None:
    said = Said()
    said.open("a", segment_id="A")
    said.open("b", segment_id="B")
    for text in ("1", "2", "3"):
        said.write("a", text)
        said.write("b", text)
    partials = said.shown()
    for number, text in enumerate(("1", "12")):
        said.open(f"c{number}", segment_id="C")
        said.write(f"c{number}", text)
    interims = said.shown()
    said.write("a", "4")
    said.close("a", 4)
    said.open("again", segment_id="A")
    said.write("again", "123")
    final = said.shown()

    assert [(each["segment_id"], each["text"]) for each in partials] == [("A", "123"), ("B", "123")]
    assert [(each["stream_id"], each["text"]) for each in interims] == [("c1", "12")]
    assert [(each["type"], each["text"]) for each in final] == [("transcript.final", "1234")]


def test_who_is_behind_is_shown_what_was_said_until_there() -> None:
    said = Said()
    said.open("a", segment_id="A")
    for text in ("1", "2", "3"):
        said.write("a", text)
    entries = said.log.read(0, [TOPIC]).entries
    form = FORMS[JSON_LINES, View.TRANSCRIPT]

    shown = [json.loads(form.entries(entries[:end]))["text"] for end in (4, 2, 3, 4)]
    assert shown == ["123", "1", "12", "123"]


def test_a_text_that_grows_on_and_on_is_not_repeated_on_and_on() -> None:
    said = Said()
    said.open("a", segment_id="A")
    word = 1_000 * "x"
    lengths = []
    for _ in range(100):
        said.write("a", word)
        lengths += [len(each["text"]) for each in said.shown()]
    said.close("a", 100_000)
    (final,) = said.shown()

    assert lengths == list(range(1_000, transcript.PARTIAL_CHARACTERS + 1, 1_000))
    assert final["text"] == 100 * word
    assert (final["type"], final["words"]) == ("transcript.final", None)


def test_what_a_stream_says_is_not_held_once_it_is_closed() -> None:
    said = Said()
    said.open("a", segment_id="A")
    said.write("a", "text")
    assert said.shown()
    (stream,) = said.log.streams(TOPIC)
    assert stream.folded is not None
    said.close("a", 4)
    said.shown()

    assert stream.folded is None


@pytest.mark.parametrize("more", [0, 1])
def test_timed_strings_beyond_the_bound_are_shown_as_they_were_written(more: int) -> None:
    line = '{"text":"' + 988 * "x" + '"}\n'
    last = '{"text":"' + (60 + more) * "x" + '"}\n'
    lines = 131 * line + last
    assert len(lines) == transcript.TIMED_BYTES + more
    said = Said()
    said.open("a", segment_id="A")
    said.write("a", lines)
    said.close("a", len(lines))
    (final,) = said.shown()

    assert final["text"] == (lines if more else (131 * 988 + 60) * "x")
    assert (final["words"] is None) == bool(more)


# Over random schedules

WORD = {"text": "wörd ", "end_time": 1.5}

RAW = [
    "Hello, how are you?",
    '{"not": "ours"} and more',
    '{"not": "ours"}\nand more',
    "".join(json.dumps(WORD | {"start_time": float(number)}) + "\n" for number in range(4)),
]


@dataclass
class Stream:
    """One that is being written, and what is known of it."""

    segment: tuple[str, int]
    stream: str
    raw: str
    is_final: bool
    written: int = 0
    chunks: int = 0

    def says(self, *, is_closed: bool = False) -> tuple[str, list[Any] | None]:
        text = self.raw[: self.written]
        whole = text.count("\n")
        if self.raw == RAW[-1] and whole:
            words = [WORD | {"start_time": float(number)} for number in range(whole)]
            return whole * "wörd ", words
        if (
            not is_closed
            and text.startswith(("{", '{"')[:2])
            and text[1:2] in ("", '"')
            and not whole
        ):
            return "", None
        return text, None


State = tuple[str, str, list[Any] | None, bool | None]
"""Stream, text, words; whether it is complete, or None before its end."""


@dataclass
class Model:
    """What is to be known of each segment, from what was written."""

    log: EventLog
    streams: list[Stream] = field(default_factory=list)
    states: dict[tuple[str, int], State] = field(default_factory=dict)
    known_at: dict[tuple[str, int], int] = field(default_factory=dict)
    until: dict[tuple[str, int], int] = field(default_factory=dict)
    """Where the stream that it is known from was closed, or was written to last."""
    at: dict[int, State] = field(default_factory=dict)
    """What events, by their sequence numbers, may be shown as."""
    runs: Counter[str] = field(default_factory=Counter)
    """How often a segment has begun anew."""
    ended: set[tuple[str, int]] = field(default_factory=set)
    number: int = 0

    def begin(self, segment: str, raw: int, is_final: bool) -> None:
        self.number += 1
        name = f"s{self.number}"
        attributes = {"lk.transcription_final": "false"}
        key = name, 0
        if segment:
            attributes["lk.segment_id"] = segment
            kept = (stream.segment for stream in self.log.streams(TOPIC))
            if all(each is None or each.segment_id != segment for each in kept):
                self.runs[segment] += 1  # nothing is known of it any more
            key = segment, self.runs[segment]
        self.log.append(StreamOpened(name, TOPIC, "agent", 0, attributes=attributes))
        self.streams.append(Stream(key, name, RAW[raw], is_final or not segment))

    def write(self, which: int, size: int) -> None:
        if not self.streams:
            return
        stream = self.streams[which % len(self.streams)]
        text = stream.raw[stream.written : stream.written + size]
        if not text:
            return
        self.log.append(StreamChunk(stream.stream, TOPIC, "agent", stream.chunks, text))
        stream.chunks += 1
        stream.written += len(text)
        said, words = stream.says()
        if said:
            self._know(stream, said, words, None)

    def end(self, which: int, complete: bool) -> None:
        if not self.streams:
            return
        index = which % len(self.streams)
        if complete:
            self.write(index, len(self.streams[index].raw))
        stream = self.streams.pop(index)
        attributes = {"lk.transcription_final": "true" if stream.is_final else "false"}
        size = len(stream.raw[: stream.written].encode())
        reason = None if complete else "broken"
        self.log.append(
            StreamClosed(
                stream.stream, TOPIC, "agent", complete, reason, attributes, size, stream.chunks
            )
        )
        if stream.is_final or not complete:
            self._know(stream, *stream.says(is_closed=True), complete)
            if not complete and stream.segment not in self.ended:
                self.runs[stream.segment[0]] = stream.segment[1] + 1
            self.ended.add(stream.segment)
        elif self.states.get(stream.segment, ("",))[0] == stream.stream:
            self.until[stream.segment] = self.log.head.seq

    def _know(
        self, stream: Stream, text: str, words: list[Any] | None, complete: bool | None
    ) -> None:
        if stream.segment not in self.ended:
            self.states[stream.segment] = (stream.stream, text, words, complete)
            self.known_at[stream.segment] = self.until[stream.segment] = self.log.head.seq
            self.at[self.log.head.seq] = self.states[stream.segment]


class Reader:
    """One that keeps the last that it was told of each segment."""

    def __init__(self, log: EventLog, media_type: str) -> None:
        self.log = log
        self.form = FORMS[media_type, View.TRANSCRIPT]
        self.seq = 0
        self.told: dict[str, dict[str, Any]] = {}
        self.finals: list[tuple[str, str, bool]] = []
        self.gaps: list[tuple[int, int]] = []
        self.shown: list[tuple[int, State]] = []
        """By their ids, gaps aside."""

    def read(self) -> None:
        """Some of what it has not read."""
        try:
            read = self.log.read(self.seq, [TOPIC])
        except Evicted:
            self.come_back()
            return
        self.seq = read.seq
        for event in self._events(self.form.entries(read.entries)):
            self._take(event)
            if event["type"] != GatewayGap.type:
                self.shown.append((_seq(event["id"]), _state(event)))

    @property
    def has_all(self) -> bool:
        return self.seq == self.log.head.seq

    def come(self, replay: str) -> None:
        match replay:
            case "none":
                self._begin(self.log.replay_none())
            case "open":
                self._begin(self.log.replay_open([TOPIC]))
            case _:
                self._begin(self.log.replay_all([TOPIC]))

    def come_back(self) -> None:
        self._begin(self.log.resume(Position(self.log.epoch, self.seq), [TOPIC]))

    def _begin(self, start: Start) -> None:
        if start.gap is not None:
            self._take(json.loads(_data(sse.encode(start.gap))))
        self.seq = start.seq
        parts = chain.from_iterable(self.form.replayed(start.replay))
        for event in self._events(b"".join(bytes(part) for part in parts)):
            assert "id" not in event
            self._take(event)

    def _events(self, data: bytes) -> list[dict[str, Any]]:
        if self.form is FORMS[JSON_LINES, View.TRANSCRIPT]:
            return [json.loads(line) for line in data.splitlines()]
        events = []
        for block in data.decode().removesuffix("\n\n").split("\n\n") if data else ():
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            event = json.loads(fields["data"])
            assert event["type"] == fields["event"]
            events.append(event | ({"id": fields["id"]} if "id" in fields else {}))
        return events

    def _take(self, event: dict[str, Any]) -> None:
        if event["type"] == GatewayGap.type:
            self.gaps.append((_seq(event["from"]), _seq(event["to"])))
            return
        if event["type"] == transcript.FINAL:
            self.finals.append((event["segment_id"], event["stream_id"], event["complete"]))
        self.told[event["segment_id"]] = event

    def knows(self, segment: str) -> State | None:
        return _state(self.told[segment]) if segment in self.told else None

    def was_told_of_a_gap(self, first: int, last: int) -> bool:
        """Somewhere between these."""
        return any(begin < last and first <= end for begin, end in self.gaps)


def _state(event: dict[str, Any]) -> State:
    return event["stream_id"], event["text"], event["words"], event.get("complete")


def _data(frame: bytes) -> bytes:
    return frame.partition(b"data: ")[2]


def _seq(position: str) -> int:
    return int(position.partition("-")[2])


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("begin"),
            st.sampled_from(["", "A", "B"]),
            st.integers(0, len(RAW) - 1),
            st.booleans(),
        ),
        st.tuples(st.just("write"), st.integers(0, 5), st.integers(1, 30)),
        st.tuples(st.just("write"), st.integers(0, 5), st.integers(1, 30)),
        st.tuples(st.just("end"), st.integers(0, 5), st.sampled_from([True, True, False])),
        st.tuples(st.just("read"), st.integers(0, 1), st.integers(1, 4)),
        st.tuples(st.just("read"), st.integers(0, 1), st.integers(1, 4)),
        st.tuples(st.just("leave"), st.integers(0, 1)),
    ),
    max_size=60,
)


@settings(max_examples=500, deadline=None)
@given(
    steps=STEPS,
    kept=st.sampled_from([4, 12, 1_000]),
    replay=st.sampled_from(["none", "open", "all"]),
    after=st.integers(0, 60),
    at_once=st.sampled_from([1, 500, READ_BYTES]),
)
def test_every_reader_knows_what_was_said_or_is_told_of_a_gap(
    steps: Sequence[tuple[Any, ...]], kept: int, replay: str, after: int, at_once: int
) -> None:
    """Two that read from the beginning, when they like, and one that comes in the middle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_log, "READ_BYTES", at_once)
        _play(steps, kept, replay, after)


def _play(steps: Sequence[tuple[Any, ...]], kept: int, replay: str, after: int) -> None:
    log = EventLog(sse.encode, LogBounds(events=kept), [TOPIC])
    model = Model(log)
    readers = [Reader(log, EVENT_STREAM), Reader(log, JSON_LINES)]
    late, missed = None, 0
    for number, (name, *options) in enumerate(steps):
        if number == after:
            late, missed = Reader(log, JSON_LINES), log.head.seq
            late.come(replay)
        if name == "read":
            reader = readers[options[0]]
            for _ in range(options[1]):
                reader.read()
            _check(reader, model, missed=0)
        elif name == "leave":
            readers[options[0]].come_back()
        else:
            getattr(model, name)(*options)
    while model.streams:
        model.end(0, complete=True)
    for reader in readers:
        while not reader.has_all:
            reader.read()
        _check(reader, model, missed=0, is_over=True)
    if late is not None:
        while not late.has_all:
            late.read()
        # What was said before it came it does not know, but for what was replayed.
        _check(late, model, missed=0 if replay == "all" else missed, is_over=True)


def _check(reader: Reader, model: Model, *, missed: int, is_over: bool = False) -> None:
    for key in {name: (name, run) for name, run in sorted(model.states)}.values():
        at = model.known_at[key]
        if reader.has_all and reader.knows(key[0]) != model.states[key]:
            # That the beginning of a text is gone is told at its end.
            is_waiting = not is_over and any(stream.segment == key for stream in model.streams)
            assert at <= missed or reader.was_told_of_a_gap(at, model.until[key]) or is_waiting
    ids = [seq for seq, _ in reader.shown]
    assert ids == sorted(set(ids))
    assert [state for _, state in reader.shown] == [model.at[seq] for seq in ids]
    assert len(reader.finals) == len(set(reader.finals))
    if model.log.evicted.total() == 0:
        whole = [segment for segment, _, complete in reader.finals if complete]
        assert len(whole) == len(set(whole))
