"""What agents in the room tell of their sessions: byte streams, told in the order in which they began.

All that are open are read at the same time. What has come of one that waits is held in any case; so it is counted,
and one that stands still takes no longer because there are others like it.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from livekit import rtc

from gateway.agent_session import Agents, Ignored

TOPIC = "lk.agent.session"

MESSAGE_BYTES = 1024 * 1024
"""Longest message; the output of a tool may be a page, and is not more."""

MESSAGE_TIMEOUT = 10.0
"""Seconds for one message, which is sent whole: one that does not end must not hold up those behind it."""

OVERTAKEN_TIMEOUT = 1.0
"""Seconds without a piece of a message when one behind it is over. Agents send them one after another, so
little will come of it any more."""

ANNOUNCED_WITHIN = 4.0
"""Seconds in which LiveKit tells of who is there: of those without tracks after up to 3."""

MAX_WAITING = 1_000
"""Messages of one agent that wait to be told; each takes a millisecond."""

WAITING_BYTES = 8 * MESSAGE_BYTES
"""What those hold together, so that a hostile agent takes no more."""


class AgentMessages:
    def __init__(
        self,
        is_agent: Callable[[str], bool | None],
        agents: Agents,
        ignored: Counter[str],
    ) -> None:
        """`is_agent`: whether that participant is of kind agent, for others could play one; None while LiveKit
        has not told of it. `ignored` counts the messages that become no event."""
        self._ignored = ignored
        self._come = asyncio.Event()
        self._is_agent = is_agent
        self._agents = agents
        self._senders: dict[str, _Sender] = {}
        self._told_last: dict[str, asyncio.Task[None]] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def open(self, reader: rtc.ByteStreamReader, sender: str) -> None:
        """What the SDK calls for each message that begins."""
        if (is_agent := self._is_agent(sender)) is False:
            self._ignore(reader, Ignored.NOT_AN_AGENT)
            return
        if (reader.info.size or 0) > MESSAGE_BYTES:
            self._ignore(reader, Ignored.TOO_LONG)
            return
        if (messages := self._senders.get(sender)) is None:
            messages = self._senders[sender] = _Sender()
            # What it told before it left, and came back, is told first.
            before = self._told_last.get(sender)
            task = asyncio.create_task(self._tell_all(sender, messages, before))
            self._told_last[sender] = task
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        if not messages.add(reader, is_known=is_agent is True):
            self._ignore(reader, Ignored.TOO_MANY)

    def piece(self, stream_id: str, sender: str) -> None:
        """Somebody's, or the end, of any stream. The SDK takes it for a stream of that id, whoever began it; a
        message in which another has written is not its sender's. Not known where the SDK is another than we
        know, and, in theory, of a piece that comes together with the end."""
        for agent, messages in self._senders.items():
            if agent != sender:
                messages.spoil(stream_id)

    def came(self) -> None:
        """Somebody did."""
        self._come.set()
        self._come = asyncio.Event()

    def left(self, sender: str) -> None:
        """Once what has come of it is told, so is that."""
        if (messages := self._senders.pop(sender, None)) is not None:
            messages.has_left = True
        else:
            self._agents.left(sender)

    async def end(self) -> None:
        """The connection is over."""
        for task in self._telling:
            task.cancel()
        if self._telling:
            await asyncio.wait(self._telling)

    async def _tell_all(
        self, sender: str, messages: "_Sender", before: "asyncio.Task[None] | None"
    ) -> None:
        """All that waits, in the order in which it began."""
        try:
            if before is not None:
                await asyncio.wait({before})
            while messages.waiting:
                message = messages.waiting[0]
                if (failed := await messages.first_is_over()) is not None:
                    self._ignored[failed] += 1
                elif await self._is_known_agent(sender, message):
                    self._agents.told(sender, bytes(message.data))
                else:
                    self._ignored[Ignored.NOT_AN_AGENT] += 1
                messages.remove_first()
        finally:
            if self._senders.get(sender) is messages:
                del self._senders[sender]
            if self._told_last.get(sender) is asyncio.current_task():
                del self._told_last[sender]
            messages.close()
        if messages.has_left:
            self._agents.left(sender)

    async def _is_known_agent(self, sender: str, message: "_Message") -> bool:
        """It need not be there any more: what it told before it left is told."""
        if message.is_known:
            return True
        try:
            async with asyncio.timeout_at(message.begun_at + ANNOUNCED_WITHIN):
                while (known := self._is_agent(sender)) is None:
                    await self._come.wait()
        except TimeoutError:
            return False
        return known

    def _ignore(self, reader: rtc.ByteStreamReader, reason: Ignored) -> None:
        self._ignored[reason] += 1
        reader.close()


@dataclass(slots=True, eq=False)
class _Message:
    """One that is read while it waits for those before it."""

    reader: rtc.ByteStreamReader
    is_known: bool
    """Its sender was known as an agent when it began."""
    begun_at: float
    header: int
    """Bytes."""
    data: bytearray = field(default_factory=bytearray)
    is_spoilt: bool = False
    """Another than its sender has written in it, or ended it."""


class _Sender:
    """The messages of one participant that have not been told."""

    def __init__(self) -> None:
        self.waiting: deque[_Message] = deque()
        self.has_left = False
        """Nothing more comes; that it left is told behind what it told."""
        self._readings: dict[_Message, asyncio.Task[Ignored | None]] = {}
        self._held = 0
        self._one_is_over = asyncio.Event()

    def add(self, reader: rtc.ByteStreamReader, *, is_known: bool) -> bool:
        """Begin to read it; False, and nothing is done, where too much waits already."""
        header = _header_bytes(reader.info)
        if len(self.waiting) >= MAX_WAITING or self._held + header > WAITING_BYTES:
            return False
        now = asyncio.get_running_loop().time()
        message = _Message(reader, is_known, now, header)
        self._held += header
        self.waiting.append(message)
        self._readings[message] = reading = asyncio.create_task(self._read(message))
        reading.add_done_callback(lambda _: self._one_is_over.set())
        return True

    def spoil(self, stream_id: str) -> None:
        for message in self.waiting:
            if message.reader.info.stream_id == stream_id:
                message.is_spoilt = True

    async def first_is_over(self) -> Ignored | None:
        """Returns why the first that waits is to be ignored, or None, once it is whole or given up."""
        message = self.waiting[0]
        reading = self._readings[message]
        while not any(each.done() for each in self._readings.values()):
            self._one_is_over.clear()
            await self._one_is_over.wait()
        had = -1
        while not reading.done():
            if len(message.data) == had:
                reading.cancel()
            had = len(message.data)
            await asyncio.wait({reading}, timeout=OVERTAKEN_TIMEOUT)
        if reading.cancelled() or message.is_spoilt:
            return Ignored.BROKEN_OFF
        return reading.result()

    def remove_first(self) -> None:
        message = self.waiting.popleft()
        del self._readings[message]
        self._held -= message.header + len(message.data)

    def close(self) -> None:
        for message, reading in self._readings.items():
            reading.cancel()
            message.reader.close()

    async def _read(self, message: _Message) -> Ignored | None:
        """Returns why it is not whole."""
        failed: Ignored | None = Ignored.BROKEN_OFF
        try:
            with suppress(TimeoutError, rtc.StreamError):
                async with asyncio.timeout(MESSAGE_TIMEOUT):
                    failed = await self._take(message)
        finally:
            message.reader.close()
            if failed is not None:
                self._held -= len(message.data)
                message.data.clear()
        return failed

    async def _take(self, message: _Message) -> Ignored | None:
        async for piece in message.reader:
            message.data += piece
            self._held += len(piece)
            if len(message.data) > MESSAGE_BYTES:
                return Ignored.TOO_LONG
            if self._held > WAITING_BYTES:
                return Ignored.TOO_MANY
        return None


def _header_bytes(info: rtc.ByteStreamInfo) -> int:
    texts = [info.stream_id, info.name, info.mime_type]
    for name, value in (info.attributes or {}).items():
        texts += (name, value)
    return sum(map(len, texts))
