"""A participant of kind agent with nothing of LiveKit Agents: it tells what a test has it tell."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from livekit import api, rtc
from livekit.protocol.agent_pb import agent_session as pb

from gateway.rooms.agent_messages import TOPIC
from gateway.rooms.base import AGENT_STATE, Listener, TextOptions
from gateway.rooms.memory import MemoryRoom, MemoryRooms
from tests.running_gateway import RunningGateway


class BareAgent(ABC):
    async def tell(self, **event: Any) -> None:
        """An event of the framework's wire, by the name of its field."""
        await self.send(pb.AgentSessionMessage(event=event).SerializeToString())

    @abstractmethod
    async def send(self, message: bytes) -> None:
        """On `lk.agent.session`, whatever it is."""

    @abstractmethod
    async def show(self, state: str) -> None:
        """In its attribute."""

    @abstractmethod
    async def say(self, text: str, attributes: Mapping[str, str] | None = None) -> None:
        """On `lk.transcription`."""

    @abstractmethod
    async def leave(self) -> None: ...


class _Twin(BareAgent):
    def __init__(self, room: MemoryRoom) -> None:
        self._room = room

    async def send(self, message: bytes) -> None:
        self._room.tell_of_session(message)

    async def show(self, state: str) -> None:
        self._room.change_attributes({AGENT_STATE: state})

    async def say(self, text: str, attributes: Mapping[str, str] | None = None) -> None:
        options = TextOptions("lk.transcription", attributes=attributes or {})
        await self._room.send_text(text, options)

    async def leave(self) -> None:
        await self._room.leave()


class _OnLiveKit(BareAgent):
    def __init__(self, room: rtc.Room) -> None:
        self._room = room

    async def send(self, message: bytes) -> None:
        participant = self._room.local_participant
        await participant.send_bytes(message, name="message", topic=TOPIC)

    async def show(self, state: str) -> None:
        await self._room.local_participant.set_attributes({AGENT_STATE: state})

    async def say(self, text: str, attributes: Mapping[str, str] | None = None) -> None:
        await self._room.local_participant.send_text(
            text, topic="lk.transcription", attributes=dict(attributes or {})
        )

    async def leave(self) -> None:
        await self._room.disconnect()


@asynccontextmanager
async def bare_agent(
    gateway: RunningGateway, room: str, identity: str = "agent", **grants: Any
) -> AsyncIterator[BareAgent]:
    """In the room by the way that the gateway's rooms are; `grants` beside what an agent has."""
    if isinstance(gateway.rooms, MemoryRooms):
        joined = gateway.rooms.join_as_agent(room, identity, DEAF)
        try:
            yield _Twin(joined)
        finally:
            if joined.connected:
                await joined.leave()
        return
    settings = gateway.settings
    token = (
        api.AccessToken(settings.livekit_api_key, settings.livekit_api_secret)
        .with_identity(identity)
        .with_kind("agent")
        .with_grants(
            api.VideoGrants(room_join=True, room=room, can_update_own_metadata=True, **grants)
        )
        .to_jwt()
    )
    sdk_room = rtc.Room()
    await sdk_room.connect(settings.livekit_url, token)
    try:
        yield _OnLiveKit(sdk_room)
    finally:
        await asyncio.shield(sdk_room.disconnect())


def _nothing(*_: object) -> None:
    pass


DEAF = Listener(_nothing, _nothing, _nothing, _nothing)
