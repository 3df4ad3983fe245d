"""What readers of events are written, over random schedules: the log from where they began, or a gap that says
from where to where.

Requests go through the whole app, over the in-process twin; in the place of the socket there is one that is
blocked, let go and lost at will, and time passes when the schedule says so.
"""

import asyncio
import json
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from livekit import api

from gateway import delivery, event_log
from gateway.delivery import Follower
from gateway.event_log import EventLog, LogBounds, Position, parse_position
from gateway.events import PARTICIPANTS, LogEvent
from gateway.hub import Hub
from gateway.rooms.base import Listener, LostReason, TextOptions, TextStreamWriter
from gateway.rooms.memory import MemoryRoom, MemoryRooms
from gateway.settings import Settings
from gateway.web import forms, sse
from gateway.web.app import make_app

KEPT = 12
"""Events that a log keeps; few, so that schedules get past them."""

SETTINGS = Settings(
    "ws://in-process", "devkey", "secret", max_age=200.0, heartbeat=15.0, write_timeout=30.0
)

ROOM = "r"
LATE = "late"
"""A topic that is received from the first one on who reads it."""

TOPICS = ("lk.chat", "lk.transcription")

READERS = 5

SCHEDULES = 1_000
BLOCK = 100

CLOSED_WITH_THE_LOG = {"drain", "idle", "disconnected"}
"""Reasons of an end that comes behind all that there was."""


@pytest.fixture(scope="module", autouse=True)
def _small_turns() -> Iterator[None]:
    """What is written at once is little, so that something happens in between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "TURN_WRITES", 1)
        patch.setattr(delivery, "TURN_CHANNELS", 1)
        patch.setattr(event_log, "READ_BYTES", 300)
        patch.setattr(forms, "READ_BYTES", 300)
        yield


# What a schedule consists of


@dataclass(frozen=True, slots=True)
class Say:
    """The next thing of this stream of bob's: it is opened, has two chunks, is closed, and is opened again."""

    stream: int
    topic: str


@dataclass(frozen=True, slots=True)
class Mood:
    """Bob's attributes change."""


@dataclass(frozen=True, slots=True)
class Read:
    reader: int
    topics: tuple[str, ...]
    participants: bool
    view: str
    lines: bool
    replay: str
    resumes: bool
    """With the last id that this reader has seen."""


@dataclass(frozen=True, slots=True)
class Leave:
    reader: int
    told: bool
    """Else it is noticed with the next write."""


@dataclass(frozen=True, slots=True)
class Block:
    reader: int
    writes: int
    """So many it still takes."""


@dataclass(frozen=True, slots=True)
class Unblock:
    reader: int


@dataclass(frozen=True, slots=True)
class Turns:
    count: int


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


@dataclass(frozen=True, slots=True)
class Break:
    """LiveKit is lost, and comes back."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Of the gateway."""


Step = Say | Mood | Read | Leave | Block | Unblock | Turns | Wait | Break | Restart


def drawn(number: int) -> list[Step]:
    """A schedule; always the same for the same number."""
    draw = random.Random(number)  # noqa: S311 - to be drawn again
    weights = {kind: weight * draw.choice((0.2, 1, 1, 3)) for kind, weight in _WEIGHTS.items()}
    kinds = draw.choices(list(weights), list(weights.values()), k=draw.randint(20, 200))
    alike = draw.random() < 0.5
    topics, view, lines = _shown_to(draw)
    steps = []
    for kind in kinds:
        step = _step(draw, kind)
        if isinstance(step, Read) and alike:
            # Those who are shown the same are written to together.
            step = replace(step, topics=topics, participants=not topics, view=view, lines=lines)
        steps.append(step)
    return steps


def _shown_to(draw: random.Random) -> tuple[tuple[str, ...], str, bool]:
    topics = draw.choice(((), TOPICS[:1], TOPICS[1:], TOPICS, (LATE,), (TOPICS[0], LATE)))
    return topics, draw.choice(("streams", "messages")), draw.random() < 0.3


_WEIGHTS = {
    Say: 40,
    Mood: 3,
    Read: 8,
    Leave: 2,
    Block: 8,
    Unblock: 8,
    Turns: 25,
    Wait: 3,
    Break: 0.7,
    Restart: 0.4,
}


def _step(draw: random.Random, kind: type[Step]) -> Step:
    reader = draw.randrange(READERS)
    if kind is Say:
        return Say(draw.randrange(3), draw.choice((*TOPICS, LATE)))
    if kind is Read:
        topics, view, lines = _shown_to(draw)
        return Read(
            reader,
            topics,
            participants=not topics or draw.random() < 0.3,
            view=view,
            lines=lines,
            replay=draw.choice(("none", "open", "all")),
            resumes=draw.random() < 0.7,
        )
    if kind is Leave:
        return Leave(reader, told=draw.random() < 0.5)
    if kind is Block:
        return Block(reader, draw.randrange(4))
    if kind is Unblock:
        return Unblock(reader)
    if kind is Turns:
        return Turns(draw.choice((1, 1, 2, 3, 10, 30)))
    if kind is Wait:
        return Wait(draw.choice((1.0, 10.0, 10.0, 40.0)))
    if kind is Mood:
        return Mood()
    return Break() if kind is Break else Restart()


# What is read


class Shown(NamedTuple):
    """An event, a cursor or a heartbeat, in whatever form it came."""

    id: str | None
    data: dict[str, Any]
    heads: dict[str, int]
    """Where the logs stood when it was written."""

    @property
    def type(self) -> str:
        return str(self.data["type"])


def _shown(data: bytes, *, lines: bool) -> Iterator[tuple[str | None, dict[str, Any]]]:
    text = data.decode()
    if lines:
        for line in text.splitlines():
            members = json.loads(line)
            yield members.pop("id", None), members
        return
    assert text.endswith("\n\n")
    for block in text.removesuffix("\n\n").split("\n\n"):
        fields = dict(each.split(": ", 1) for each in block.splitlines() if each[0] != ":")
        if "data" in fields:
            yield fields.get("id"), json.loads(fields["data"])
        elif "id" in fields:
            yield fields["id"], {"type": "gateway.position"}


def _as_it_is(data: bytes) -> bytes:
    return data


class Socket:
    """In the place of a client's; see `gateway.delivery.Outlet`."""

    def __init__(self, world: "World", read: Read, last: Position | None) -> None:
        self.read = read
        self.last = last
        self.blocks: list[Shown] = []
        self.is_blocked = False
        self.is_gone = False
        self.frame: Callable[[bytes], bytes] = _as_it_is
        self.heads: dict[str, int] | None = None
        """Where the logs stood when it began."""
        self._world = world
        self._listener: Follower | None = None
        self._takes: int | None = None

    @property
    def topics(self) -> set[str]:
        return {*self.read.topics, *([PARTICIPANTS] if self.read.participants else [])}

    @property
    def last_id(self) -> Position | None:
        ids = [block.id for block in self.blocks if block.id is not None]
        return parse_position(ids[-1]) if ids else self.last

    @property
    def is_over(self) -> bool:
        return bool(self.blocks) and self.blocks[-1].type == "gateway.closing"

    def follow(self, listener: Follower) -> None:
        self._listener = listener
        self.heads = self._world.heads()
        if self.is_gone:
            listener.lost()

    def write(self, data: bytes) -> None:
        if self.is_gone:
            raise RuntimeError("the socket is closed")
        if self.is_blocked:
            self._world.faults.append("written to who takes nothing")
        heads = self._world.heads()
        for position, members in _shown(data, lines=self.read.lines):
            self.blocks.append(Shown(position, members, heads))
        if self._takes is not None:
            self._takes -= 1
            if self._takes == 0:
                self._block()

    def unsent(self) -> int:
        return 1

    def abort(self) -> None:
        self.is_gone = True

    def block(self, writes: int) -> None:
        """A real one is never blocked before the head is out."""
        self._takes = writes or None
        if not writes and self._listener is not None:
            self._block()

    def unblock(self) -> None:
        self._takes = None
        if self.is_blocked:
            self.is_blocked = False
            if self._listener is not None:
                self._listener.writable()

    def leave(self, *, told: bool) -> None:
        self.is_gone = True
        if told and self._listener is not None:
            self._listener.lost()

    def _block(self) -> None:
        if not self.is_blocked:
            self.is_blocked = True
            if self._listener is not None:
                self._listener.blocked()


# What it is held against


@dataclass
class History:
    """All that was ever in one log."""

    log: EventLog
    events: dict[int, tuple[str | None, dict[str, Any]]] = field(default_factory=dict)
    """Topic and members; what is missing in between is where a topic was registered."""

    def on(self, topics: Collection[str], after: int, to: int) -> list[int]:
        return [
            seq
            for seq, (topic, _) in self.events.items()
            if after < seq <= to and (topic is None or topic in topics)
        ]

    def data(self, seq: int) -> dict[str, Any]:
        return self.events[seq][1]

    def stream(self, seq: int) -> list[int]:
        """The numbers of the stream's events that this one is of, up to it."""
        of = _key(self.data(seq))
        numbers = [each for each in self.events if each <= seq and _key(self.data(each)) == of]
        begun = max(each for each in numbers if self.data(each)["type"] == "stream.opened")
        return [each for each in numbers if each >= begun]

    def open_streams(self, topics: Collection[str], head: int) -> list[list[int]]:
        streams: dict[object, list[int]] = {}
        for seq in self.on(topics, 0, head):
            match self.data(seq)["type"]:
                case "stream.opened":
                    streams[_key(self.data(seq))] = [seq]
                case "stream.chunk":
                    streams[_key(self.data(seq))].append(seq)
                case "stream.closed":
                    del streams[_key(self.data(seq))]
                case _:
                    pass
        return list(streams.values())

    def is_reconnecting(self, head: int) -> bool:
        told = [self.data(seq)["type"] for seq in self.on((), 0, head)]
        return [each for each in told if each.startswith("room.")][-1:] == ["room.reconnecting"]

    def registered(self, topic: str, head: int) -> int:
        """From where it is received."""
        if topic != LATE:
            return 0
        return next((seq for seq in range(1, head + 1) if seq not in self.events), head)


def _key(data: dict[str, Any]) -> object:
    return data.get("stream_id"), data.get("participant_identity")


def _first(head: int) -> int:
    """The oldest event that is kept."""
    return max(1, head - KEPT + 1)


def _gap(reason: str, epoch: str, begin: Position | int, to: int) -> dict[str, Any]:
    last = begin if isinstance(begin, Position) else Position(epoch, begin)
    return {
        "type": "gateway.gap",
        "reason": reason,
        "from": str(last),
        "to": f"{epoch}-{to}",
        "presence": None,
    }


class World:
    """A gateway, who reads there, and bob, whom they hear."""

    def __init__(self, clock: "Clock") -> None:
        self.faults: list[str] = []
        self.histories: dict[str, History] = {}
        self.rooms = MemoryRooms()
        self.sockets: list[Socket] = []
        self._clock = clock
        self._current: dict[int, Socket] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._writers: dict[int, tuple[TextStreamWriter, int]] = {}
        self._said = 0
        token = (
            api.AccessToken("devkey", "secret")
            .with_identity("alice")
            .with_grants(api.VideoGrants(room_join=True, room=ROOM))
            .to_jwt()
        )
        self._authorization = f"Bearer {token}".encode()
        self._start()

    def heads(self) -> dict[str, int]:
        return {epoch: history.log.head.seq for epoch, history in self.histories.items()}

    async def play(self, steps: list[Step]) -> None:
        nothing = Listener(_ignore, _ignore, _ignore, _ignore)
        self._bob: MemoryRoom = await self.rooms.join(ROOM, "bob", "", (), nothing)
        for step in steps:
            await self._do(step)
        for socket in self._current.values():
            socket.unblock()
        await self.turns(100)
        self.check(settled=True)
        self._clock.now += SETTINGS.heartbeat
        await self.turns(100)
        self.check(settled=True)
        await self._drain()
        self.check(settled=True)
        for history in self.histories.values():
            assert history.log._all_watchers == ()
        assert not self.faults

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def _do(self, step: Step) -> None:
        match step:
            case Say():
                await self._say(step)
            case Mood():
                self._said += 1
                self.rooms.change_attributes(ROOM, "bob", {"mood": str(self._said)})
            case Read():
                await self._read(step)
            case Leave():
                if socket := self._current.pop(step.reader, None):
                    socket.leave(told=step.told)
            case Block():
                if socket := self._current.get(step.reader):
                    socket.block(step.writes)
            case Unblock():
                if socket := self._current.get(step.reader):
                    socket.unblock()
            case Turns():
                await self.turns(step.count)
            case Wait():
                self._clock.now += step.seconds
                await self.turns(3)
            case Break():
                if alice := self.rooms._rooms[ROOM].get("alice"):
                    alice.lose(LostReason.DISCONNECTED)
            case Restart():
                await self._drain()
                self._start()

    async def _say(self, say: Say) -> None:
        self._said += 1
        if say.stream not in self._writers:
            options = TextOptions(say.topic, stream_id=f"stream-{say.stream}")
            self._writers[say.stream] = await self._bob.open_text_stream(options), 0
            return
        writer, chunks = self._writers[say.stream]
        if chunks < 2:
            await writer.write(f"{self._said} ")
            self._writers[say.stream] = writer, chunks + 1
        else:
            del self._writers[say.stream]
            await writer.close()

    async def _read(self, read: Read) -> None:
        last = None
        if earlier := self._current.get(read.reader):
            earlier.leave(told=True)
            last = earlier.last_id if read.resumes else None
        socket = self._current[read.reader] = Socket(self, read, last)
        self.sockets.append(socket)
        task = asyncio.create_task(self._request(socket))
        self._requests.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        if (error := task.exception()) is not None:
            self.faults.append(repr(error))

    async def _request(self, socket: Socket) -> None:
        read = socket.read
        query = [("topic", topic) for topic in read.topics]
        query += [("view", read.view), ("replay", read.replay)]
        query += [("participants", str(int(read.participants)))]
        headers = [(b"authorization", self._authorization)]
        if read.lines:
            headers.append((b"accept", forms.JSON_LINES.encode()))
        if socket.last is not None:
            headers.append((b"last-event-id", str(socket.last).encode()))
        path = f"/rooms/{ROOM}/events"
        scope = {
            "type": "http",
            "method": "GET",
            "http_version": "1.1",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": urlencode(query).encode(),
            "headers": headers,
            "state": {"open_outlet": lambda: socket},
        }

        async def receive() -> Any:
            await asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] not in (200, 503):
                self.faults.append(f"answered {message['status']}")

        await self._app(scope, receive, send)

    def _start(self) -> None:
        self._hub = Hub(
            self.rooms,
            self._new_log,
            topics=TOPICS,
            linger=60.0,
            max_connections=10,
            max_rooms_of_identity=10,
            drain_spread=0.1,
        )
        self._app = make_app(self._hub, SETTINGS)

    def _new_log(self, topics: Collection[str]) -> EventLog:
        def encode(event: LogEvent, position: str) -> bytes:
            frame = sse.encode(event, position)
            ((_, data),) = _shown(frame, lines=False)
            history.events[parse_position(position).seq] = event.topic, data
            return frame

        log = EventLog(encode, LogBounds(events=KEPT), topics)
        history = self.histories[log.epoch] = History(log)
        return log

    async def _drain(self) -> None:
        """As at the end of the process: all that is being read is over, of those who take it."""
        draining = asyncio.create_task(self._hub.drain())
        await self._pass_until(draining.done)
        for socket in self._current.values():
            socket.unblock()
        await self.turns(100)
        for socket in self._current.values():
            if not socket.is_over:
                socket.leave(told=True)
        await self._pass_until(lambda: not self._requests)

    async def _pass_until(self, true: Callable[[], object]) -> None:
        for _ in range(10_000):
            if true():
                return
            self._clock.now += 0.01
            await self.turns(1)
        raise AssertionError("Something hangs.")

    # What was read is held against what happened

    def check(self, *, settled: bool = False) -> None:
        for socket in self.sockets:
            if socket.heads is not None and socket.blocks:
                self._check(socket, settled=settled and not socket.is_gone)

    def _check(self, socket: Socket, *, settled: bool) -> None:
        opened, *blocks = socket.blocks
        assert opened.type == "gateway.opened"
        epoch, head = parse_position(opened.data["position"])
        assert socket.heads is not None
        assert socket.heads[epoch] <= head <= opened.heads[epoch]
        history = self.histories[epoch]
        closing = blocks.pop() if blocks and blocks[-1].type == "gateway.closing" else None
        assert closing is None or closing.id is None
        with_the_log = closing is not None and closing.data["reason"] in CLOSED_WITH_THE_LOG
        if blocks and history.is_reconnecting(head):
            condition = blocks.pop(0)
            assert (condition.id, condition.type) == (None, "room.reconnecting")
        complete = (settled and closing is None) or with_the_log

        begun, seq = self._beginning(socket, history)
        count = 0
        for block, (position, allowed) in zip(blocks, begun, strict=False):
            assert block.id == position
            assert block.data in allowed(block.heads[epoch])
            count += 1
        if count < len(begun):
            assert not complete
            return

        cursor = seq
        for block in blocks[count:]:
            assert block.id is not None
            at = parse_position(block.id)
            assert at.epoch == epoch
            between = self._visible(socket, history, cursor, at.seq)
            if block.type == "gateway.position":
                assert at.seq <= block.heads[epoch]
                assert at.seq >= cursor
                assert between == []
            else:
                assert between == [at.seq]
                assert block.data in self._renderings(socket, history, at.seq, block.heads[epoch])
            cursor = at.seq
        if complete:
            assert self._visible(socket, history, cursor, history.log.head.seq) == []
        if closing is not None and closing.data["reason"] == "slow":
            assert cursor < _first(closing.heads[epoch]) - 1

    def _beginning(
        self, socket: Socket, history: History
    ) -> tuple[list[tuple[str | None, Callable[[int], list[dict[str, Any]]]]], int]:
        """What a reader is shown before its first live event, the cursor last; and where it stands then."""
        epoch = history.log.epoch
        assert socket.heads is not None
        head = socket.heads[epoch]
        last, replay, topics = socket.last, socket.read.replay, socket.topics
        gap: dict[str, Any] | None = None
        shown: list[int] = []
        seq = head
        reason = None if last is None else self._lost(last, history, topics, head)
        if last is not None and reason is None:
            seq = last.seq
        elif replay == "all" and reason in (None, "restarted"):
            gap, shown = self._replay_all(history, topics, head)
        elif replay != "none" or reason is not None:
            gap, shown = self._replay_open(history, topics, head)
        if last is not None and reason is not None:
            gap = _gap(reason, epoch, last, head)
        position = f"{epoch}-{seq}"
        begun: list[tuple[str | None, Callable[[int], list[dict[str, Any]]]]] = []
        if gap is not None:
            begun.append((None if shown else position, _exactly(gap)))
        begun += [
            (None, self._at(socket, history, each))
            for each in shown
            if self._is_visible(socket, history, each)
        ]
        begun.append((position, _exactly({"type": "gateway.position"})))
        return begun, seq

    def _lost(self, last: Position, history: History, topics: set[str], head: int) -> str | None:
        if last.epoch != history.log.epoch:
            return "restarted"
        if last.seq < _first(head) - 1:
            return "evicted"
        if any(last.seq < history.registered(topic, head) for topic in topics):
            return "unknown"
        return None

    def _replay_open(
        self, history: History, topics: set[str], head: int
    ) -> tuple[dict[str, Any] | None, list[int]]:
        first = _first(head)
        streams = history.open_streams(topics, head)
        shown = [
            seq for begun, *rest in streams for seq in (begun, *(s for s in rest if s >= first))
        ]
        if streams:
            begun = min(stream[0] for stream in streams)
            shown += [
                seq
                for seq in history.on((), begun, head)
                if history.data(seq)["type"] == "gateway.gap"
            ]
        cut = [
            (s[0], max(e for e in s[1:] if e < first)) for s in streams if s[1:] and s[1] < first
        ]
        gap = None
        if cut:
            begin, to = min(begun for begun, _ in cut), max(lost for _, lost in cut)
            gap = _gap("evicted", history.log.epoch, begin, to)
        return gap, sorted(shown)

    def _replay_all(
        self, history: History, topics: set[str], head: int
    ) -> tuple[dict[str, Any] | None, list[int]]:
        first = _first(head)
        gap = _gap("evicted", history.log.epoch, 0, first - 1) if first > 1 else None
        streams = history.open_streams(topics, head)
        pinned = [stream[0] for stream in streams if stream[0] < first]
        return gap, pinned + history.on(topics, first - 1, head)

    def _visible(self, socket: Socket, history: History, after: int, to: int) -> list[int]:
        numbers = history.on(socket.topics, after, to)
        return [seq for seq in numbers if self._is_visible(socket, history, seq)]

    def _is_visible(self, socket: Socket, history: History, seq: int) -> bool:
        kind = history.data(seq)["type"]
        return socket.read.view == "streams" or kind not in ("stream.opened", "stream.chunk")

    def _at(
        self, socket: Socket, history: History, seq: int
    ) -> Callable[[int], list[dict[str, Any]]]:
        return lambda head: self._renderings(socket, history, seq, head)

    def _renderings(
        self, socket: Socket, history: History, seq: int, head: int
    ) -> list[dict[str, Any]]:
        """What it may be shown as while the log stands there."""
        data = history.data(seq)
        if socket.read.view == "streams" or data["type"] != "stream.closed":
            return [data]
        begun, *chunks, _ = history.stream(seq)
        text = "".join(history.data(each)["text"] for each in chunks)
        message = {**history.data(begun), **data, "type": "message", "text": text}
        if chunks and begun < _first(head):
            return [message, _gap("evicted", history.log.epoch, begun - 1, seq)]
        return [message]


def _exactly(data: dict[str, Any]) -> Callable[[int], list[dict[str, Any]]]:
    return lambda head: [data]


def _ignore(*_: object) -> None:
    pass


class Clock(asyncio.SelectorEventLoop):
    """Whose time passes when a test says so."""

    now = 0.0

    def time(self) -> float:
        return self.now


@pytest.mark.parametrize("first", range(0, SCHEDULES, BLOCK))
def test_every_reader_is_written_exactly_the_log_or_a_gap(first: int) -> None:
    for number in range(first, first + BLOCK):
        try:
            play(drawn(number))
        except AssertionError as error:
            error.add_note(f"This was schedule {number}.")
            raise


def play(steps: list[Step]) -> None:
    random.seed(0)  # for what the gateway draws
    clock = Clock()
    errors: list[dict[str, Any]] = []
    clock.set_exception_handler(lambda _, context: errors.append(context))
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(World(clock).play(steps))
    assert not errors
