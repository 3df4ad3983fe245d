"""What agents in the room tell of their sessions: byte streams, read one after another, to their end."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from livekit import rtc

from gateway.agent_session import Agents, Ignored

TOPIC = "lk.agent.session"

MESSAGE_BYTES = 1024 * 1024
"""Longest message; the output of a tool may be a page, and is not more."""

MESSAGE_TIMEOUT = 10.0
"""Seconds for one message, which is sent whole: one that does not end must not hold up those behind it."""

ANNOUNCED_WITHIN = 4.0
"""Seconds in which LiveKit tells of who is there: of those without tracks after up to 3."""

MAX_WAITING = 1_000
"""Messages of one agent that wait to be read; each takes a millisecond."""


class _Message(NamedTuple):
    """One that has come and is not read yet."""

    reader: rtc.ByteStreamReader
    is_of_agent: bool
    """Else LiveKit has not told who the sender is; an agent may have left by the time that this is read."""
    until: float
    """Time of the loop by which it has."""


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
        self._waiting: dict[str, deque[_Message | None]] = {}
        """Of each sender; None in the place where it left."""
        self._reading: set[asyncio.Task[None]] = set()

    def open(self, reader: rtc.ByteStreamReader, sender: str) -> None:
        """What the SDK calls for each message that begins."""
        is_agent = self._is_agent(sender)
        if is_agent is False:
            self._ignore(reader, Ignored.NOT_AN_AGENT)
            return
        until = asyncio.get_running_loop().time() + ANNOUNCED_WITHIN
        message = _Message(reader, is_agent is True, until)
        if (waiting := self._waiting.get(sender)) is None:
            self._waiting[sender] = deque([message])
            task = asyncio.create_task(self._read(sender))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
        elif len(waiting) >= MAX_WAITING:
            self._ignore(reader, Ignored.TOO_MANY)
        else:
            waiting.append(message)

    def came(self) -> None:
        """Somebody did."""
        self._come.set()
        self._come = asyncio.Event()

    def left(self, sender: str) -> None:
        """Once what has come of it is told, so is that."""
        if (waiting := self._waiting.get(sender)) is not None:
            waiting.append(None)
        else:
            self._agents.left(sender)

    async def end(self) -> None:
        """The connection is over."""
        for task in self._reading:
            task.cancel()
        if self._reading:
            await asyncio.wait(self._reading)

    async def _read(self, sender: str) -> None:
        """All that waits, in the order in which it was sent."""
        waiting = self._waiting[sender]
        try:
            while waiting:
                message = waiting[0]
                data = None if message is None else await self._bytes_of(message.reader)
                waiting.popleft()
                if message is None:
                    self._agents.left(sender)
                elif data is None:
                    continue
                elif message.is_of_agent or await self._proves_agent(sender, message.until):
                    self._agents.told(sender, data)
                else:
                    self._ignored[Ignored.NOT_AN_AGENT] += 1
        finally:
            del self._waiting[sender]
            for message in waiting:
                if message is not None:
                    message.reader.close()

    async def _bytes_of(self, reader: rtc.ByteStreamReader) -> bytes | None:
        data = bytearray()
        try:
            async with asyncio.timeout(MESSAGE_TIMEOUT):
                async for piece in reader:
                    data += piece
                    if len(data) > MESSAGE_BYTES:
                        self._ignored[Ignored.TOO_LONG] += 1
                        return None
        except (TimeoutError, rtc.StreamError):
            self._ignored[Ignored.BROKEN_OFF] += 1
            return None
        finally:
            reader.close()
        return bytes(data)

    async def _proves_agent(self, sender: str, until: float) -> bool:
        try:
            async with asyncio.timeout_at(until):
                while (known := self._is_agent(sender)) is None:
                    await self._come.wait()
        except TimeoutError:
            return False
        return known

    def _ignore(self, reader: rtc.ByteStreamReader, reason: Ignored) -> None:
        self._ignored[reason] += 1
        reader.close()
