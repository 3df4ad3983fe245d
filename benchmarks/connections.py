"""Many LiveKit connections of one process: by the gateway's way to LiveKit, and by the SDK alone."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from datetime import timedelta

from livekit import api, rtc

from benchmarks import machine
from benchmarks.http_client import KeptConnection
from benchmarks.receivers import Receiver, listen
from benchmarks.senders import TOPIC
from gateway.events import Happening, StreamChunk
from gateway.rooms.base import Listener
from gateway.rooms.livekit import LiveKitRooms

AT_ONCE = 4
"""Joins under way at once; more make each slower on a small machine."""

IDENTITY = "resident"

Leave = Callable[[], Awaitable[None]]


def token(api_key: str, api_secret: str, room: str, identity: str, kind: str = "standard") -> str:
    return (
        api.AccessToken(api_key, api_secret)
        .with_identity(identity)
        .with_kind("agent" if kind == "agent" else "standard")
        .with_ttl(timedelta(hours=1))
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .to_jwt()
    )


class Connections(ABC):
    """Connections to rooms NAME-0, NAME-1 and so on; what is sent there comes to one receiver."""

    def __init__(self, url: str, name: str, api_key: str, api_secret: str) -> None:
        self.url = url
        self.receiver = Receiver()
        self._name = name
        self._keys = (api_key, api_secret)
        self._count = 0
        self._open: list[Leave] = []

    @abstractmethod
    async def join(self, room: str, token: str) -> Leave: ...

    async def open(self, count: int) -> None:
        """Joins until so many are open."""
        while len(self._open) < count:
            joining = [self._next() for _ in range(min(AT_ONCE, count - len(self._open)))]
            self._open += await asyncio.gather(*joining)

    async def come_and_go(self, count: int) -> int:
        """Joins and leaves so many times, one after the other; the memory that is held then."""
        for _ in range(count):
            await (await self._next())()
        return await self.memory()

    async def take(self, count: int, within: float) -> int:
        """How many texts have arrived; waits for `count` of them."""
        return len(await self.receiver.take(count, within))

    async def cpu(self) -> float:
        """Seconds of processor time that this process has used."""
        return time.process_time()

    async def memory(self) -> int:
        return machine.memory()

    async def close(self) -> None:
        await asyncio.gather(*(leave() for leave in self._open))

    def _next(self) -> Awaitable[Leave]:
        room = f"{self._name}-{self._count}"
        self._count += 1
        return self.join(room, token(*self._keys, room, IDENTITY))


class GatewayConnections(Connections):
    def __init__(self, url: str, name: str, api_key: str, api_secret: str) -> None:
        super().__init__(url, name, api_key, api_secret)
        self._rooms = LiveKitRooms(url, api_key, api_secret, max_stream_bytes=1 << 20)
        self._listener = Listener(self._emit, lambda: None, lambda: None, lambda reason: None)

    async def join(self, room: str, token: str) -> Leave:
        joined = await self._rooms.join(room, IDENTITY, token, (TOPIC,), self._listener)
        return joined.leave

    async def close(self) -> None:
        await super().close()
        await self._rooms.aclose()

    def _emit(self, event: Happening) -> None:
        if isinstance(event, StreamChunk):
            self.receiver.arrived(event.text, time.monotonic_ns())


class SdkConnections(Connections):
    async def join(self, room: str, token: str) -> Leave:
        joined = rtc.Room()
        listen(self.receiver, joined)
        await joined.connect(self.url, token, rtc.RoomOptions(auto_subscribe=False))
        return joined.disconnect


class Newcomers:
    """Firsts in rooms that nobody has been in: what somebody waits for who was not there before."""

    def __init__(self, url: str, port: int, name: str, api_key: str, api_secret: str) -> None:
        self._url = url
        self._port = port
        self._name = name
        self._keys = (api_key, api_secret)
        self._agents: list[rtc.Room] = []

    async def bring_agent(self, number: int) -> None:
        """An agent joins the room, and stays."""
        room = f"{self._name}-{number}"
        self._agents.append(agent := rtc.Room())
        await agent.connect(self._url, token(*self._keys, room, "agent", "agent"))

    async def join(self, number: int) -> float:
        """Seconds for a join by the SDK."""
        room = f"{self._name}-{number}"
        joined, access = rtc.Room(), token(*self._keys, room, "newcomer")
        started = time.monotonic()
        await joined.connect(self._url, access, rtc.RoomOptions(auto_subscribe=False))
        taken = time.monotonic() - started
        await joined.disconnect()
        return taken

    async def post(self, number: int) -> float:
        """Seconds for the first POST of somebody who is not in the room yet."""
        room = f"{self._name}-{number}"
        path, access = f"/rooms/{room}/text?topic={TOPIC}", token(*self._keys, room, "newcomer")
        connection = await KeptConnection.open(self._port, path, access)
        started = time.monotonic()
        await connection.post("the first")
        taken = time.monotonic() - started
        connection.close()
        return taken

    async def close(self) -> None:
        await asyncio.gather(*(agent.disconnect() for agent in self._agents))
