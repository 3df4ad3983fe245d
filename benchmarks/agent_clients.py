"""Who asks agents, and reads what they tell: over HTTP, and by the SDK alone."""

import asyncio
import hashlib
import json
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from livekit import rtc

from benchmarks.connections import Newcomers, token
from benchmarks.http_client import HttpError, KeptConnection, event, is_event
from benchmarks.receivers import subscribe
from gateway.agent_session.decoding import Decoder, Ignored
from gateway.events import members
from gateway.rooms.agent_messages import TOPIC as SESSION_TOPIC
from gateway.transcripts import TRANSCRIPTION_TOPIC

AGENT = "agent"

CHAT_TOPIC = "lk.chat"

FIRST_TEXT = "hello"

ANSWER_SECONDS = 3.0
"""An answer takes some 20 ms. A text of somebody whom the agent does not know yet has none, ever."""

CLOSE_SECONDS = 15.0
"""For the end of a session: LiveKit tells up to 3 s late that an agent has left."""


# Events


@dataclass(frozen=True, slots=True)
class Heard:
    """An event of an agent."""

    digest: str
    """Of all that it says: no two events say the same, for each has its time."""
    at: int
    """Nanoseconds, when it was there."""


class SseEvents:
    """What an event stream has brought. It is looked at when the measuring is over."""

    def __init__(self) -> None:
        self._blocks: list[tuple[bytes, int]] = []

    def take_block(self, block: bytes, now: int) -> None:
        self._blocks.append((block, now))

    async def take(self) -> list[Heard]:
        """Since the last time."""
        taken, self._blocks = self._blocks, []
        told = [(event(block), at) for block, at in taken]
        return [_heard(data, at) for (name, data), at in told if name.startswith("agent.")]


class SdkEvents:
    """What a participant of LiveKit's SDK is told, each message when it is whole."""

    def __init__(self, room: rtc.Room) -> None:
        self._messages: list[asyncio.Task[tuple[bytes, int]]] = []
        """In the order in which they began."""
        self._decoder = Decoder()
        room.register_byte_stream_handler(SESSION_TOPIC, self._opened)

    async def take(self) -> list[Heard]:
        """Since the last time, in the gateway's words: the same event says the same by both ways."""
        taken, self._messages = self._messages, []
        messages = await asyncio.gather(*taken)
        decoded = [(self._decoder.decode(AGENT, data), at) for data, at in messages]
        return [_heard(members(told), at) for told, at in decoded if not isinstance(told, Ignored)]

    def _opened(self, reader: rtc.ByteStreamReader, sender: str) -> None:
        self._messages.append(asyncio.create_task(_read(reader)))


async def _read(reader: rtc.ByteStreamReader) -> tuple[bytes, int]:
    data = b"".join([chunk async for chunk in reader])
    return data, time.monotonic_ns()


def _heard(data: dict[str, Any], at: int) -> Heard:
    canonical = json.dumps(data, sort_keys=True).encode()
    return Heard(hashlib.sha256(canonical).hexdigest()[:16], at)


# Turns


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of one text."""

    first: float | None
    """Seconds until the first piece of the answer."""
    whole: float | None
    """Seconds until all of it was there; None where that is not what the agent said."""
    problem: str = ""


class HttpAsker:
    """Asks by POST, each time in the same room."""

    def __init__(self, connection: KeptConnection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, port: int, room: str, token: str) -> "HttpAsker":
        return cls(await KeptConnection.open(port, f"/rooms/{room}/agent/turns", token))

    async def ask(self, text: str, answer: str) -> Answered:
        started = time.monotonic()
        first = None
        block = b""
        try:
            async with aclosing(self._connection.events(text)) as blocks:
                async for block in blocks:
                    if first is None and is_event(block, "stream.chunk"):
                        first = time.monotonic() - started
        except HttpError as error:
            return Answered(None, None, str(error).strip().rpartition("\n")[2])
        whole = time.monotonic() - started
        name, told = event(block)
        if name == "agent.turn_completed" and told["text"] == answer:
            return Answered(first, whole)
        return Answered(first, None, block.decode())

    def close(self) -> None:
        self._connection.close()


class SdkAsker:
    """Asks as a participant does."""

    def __init__(self, room: rtc.Room) -> None:
        self._room = room
        self._answers: asyncio.Queue[tuple[float, float, str]] = asyncio.Queue()
        self._reading: set[asyncio.Task[None]] = set()
        room.register_text_stream_handler(TRANSCRIPTION_TOPIC, self._opened)

    async def ask(self, text: str, answer: str) -> Answered:
        started = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._room.local_participant.send_text(
                    text, topic=CHAT_TOPIC, destination_identities=[AGENT]
                )
                first, whole, said = await self._answers.get()
        except TimeoutError:
            return Answered(None, None, "no answer in time")
        if said.strip() != answer:
            return Answered(first - started, None, said)
        return Answered(first - started, whole - started)

    async def close(self) -> None:
        await self._room.disconnect()

    def _opened(self, reader: rtc.TextStreamReader, sender: str) -> None:
        task = asyncio.create_task(self._read(reader))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _read(self, reader: rtc.TextStreamReader) -> None:
        first = 0.0
        pieces = []
        async for piece in reader:
            first = first or time.monotonic()
            pieces.append(piece)
        self._answers.put_nowait((first, time.monotonic(), "".join(pieces)))


class ColdAskers(Newcomers):
    """Newcomers who ask: each once, in a room where an agent waits."""

    async def turn(self, number: int) -> Answered:
        room, access = self._place(number)
        asker = await HttpAsker.open(self._port, room, access)
        try:
            return await asker.ask(FIRST_TEXT, echo(FIRST_TEXT))
        finally:
            asker.close()

    async def turns(self, count: int, at_once: int) -> list[Answered]:
        """By so many who ask at once, each again and again, in ever other rooms."""
        numbers = iter(range(count))

        async def ask() -> list[Answered]:
            return [await self.turn(number) for number in numbers]

        several = await asyncio.gather(*(ask() for _ in range(at_once)))
        return [answered for each in several for answered in each]

    async def sdk_turn(self, number: int) -> tuple[float, Answered]:
        """Joins, and asks at once; the seconds that the join took, and what came of the text."""
        _, access = self._place(number)
        room = rtc.Room()
        asker = SdkAsker(room)
        started = time.monotonic()
        await room.connect(self._url, access, rtc.RoomOptions(auto_subscribe=False))
        joined = time.monotonic() - started
        answered = await asker.ask(FIRST_TEXT, echo(FIRST_TEXT))
        await asker.close()
        return joined, answered

    def _place(self, number: int) -> tuple[str, str]:
        room = f"{self._name}-{number}"
        return room, token(*self._keys, room, f"newcomer-{number}")


def echo(text: str) -> str:
    """What an agent answers that has no script."""
    return f"You said: {text}"


# Conversations


class Conversations:
    """One in each of many rooms, all at once: turns, and an event stream that is read beside them."""

    def __init__(self, port: int, name: str, api_key: str, api_secret: str) -> None:
        self._port = port
        self._name = name
        self._keys = (api_key, api_secret)
        self._rooms: list[_Conversation] = []

    async def open(self, count: int) -> None:
        for number in range(count):
            room = f"{self._name}-{number}"
            access = token(*self._keys, room, "caller")
            self._rooms.append(await _Conversation.open(self._port, room, access))

    async def converse(self, turns: int) -> list[Answered]:
        several = await asyncio.gather(*(each.converse(turns) for each in self._rooms))
        return [answered for each in several for answered in each]

    async def told(self, number: int) -> list[dict[str, Any]]:
        """All events of a session, once it is closed."""
        return await self._rooms[number].told()

    async def close(self) -> None:
        for each in self._rooms:
            each.close()


class _Conversation:
    def __init__(self, asker: HttpAsker) -> None:
        self._asker = asker
        self._told: list[dict[str, Any]] = []
        self._closed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, port: int, room: str, token: str) -> "_Conversation":
        made = cls(await HttpAsker.open(port, room, token))
        path = f"/rooms/{room}/agent/events"
        made._following = await subscribe(made._take, port, path, token)
        return made

    async def converse(self, turns: int) -> list[Answered]:
        return [
            await self._asker.ask(f"question {turn}", scripted_answer(turn))
            for turn in range(turns)
        ]

    async def told(self) -> list[dict[str, Any]]:
        async with asyncio.timeout(CLOSE_SECONDS):
            await self._closed.wait()
        return self._told

    def close(self) -> None:
        self._asker.close()
        if self._following is not None:
            self._following.cancel()

    def _take(self, block: bytes, now: int) -> None:
        name, data = event(block)
        if name.startswith("agent."):
            self._told.append(data)
        if name == "agent.close":
            self._closed.set()


def scripted_answer(turn: int) -> str:
    return f"This is the answer to question {turn}."


def script(turns: int) -> list[dict[str, Any]]:
    """What the agent's model is to do in these turns: it has a tool called in each second one."""
    steps: list[dict[str, Any]] = []
    for turn in range(turns):
        if turn % 2:
            steps.append({"calls": [{"name": "look_up", "query": str(turn)}]})
        steps.append({"text": scripted_answer(turn)})
    return steps
