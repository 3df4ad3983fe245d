"""A participant of kind agent with nothing of LiveKit Agents: it tells what a test has it tell."""

import asyncio
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from livekit import api, rtc
from livekit.protocol.agent_pb import agent_session as pb

from gateway.events import Happening, StreamChunk
from gateway.rooms.agent_messages import TOPIC
from gateway.rooms.base import AGENT_STATE, Listener, TextOptions
from gateway.rooms.memory import MemoryRoom, MemoryRooms
from gateway.settings import Settings
from tests.leaving import leave_for_good
from tests.running_gateway import DEADLINE, RunningGateway


class BareAgent(ABC):
    def __init__(self) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        """What is said to it on `lk.chat`."""

    async def tell(self, **event: Any) -> None:
        """An event of the framework's wire, by the name of its field; now."""
        now = time.time()
        at = {"seconds": int(now), "nanos": int(now % 1 * 1e9)}
        message = pb.AgentSessionMessage(event={"created_at": at, **event})
        await self.send(message.SerializeToString())

    async def tells_as_helper(self, type: str, **members: Any) -> None:
        """As our helper has it, whatever it is."""
        payload: Any = {"livekit-sse-gateway": 1, "type": type, "members": json.dumps(members)}
        message = pb.AgentSessionMessage()
        message.event.debug_message.payload.update(payload)
        await self.send(message.SerializeToString())

    async def hears(self, text: str) -> None:
        async with asyncio.timeout(DEADLINE):
            while await self.heard.get() != text:
                pass

    async def is_in(self, state: str) -> None:
        await self.tell(agent_state_changed={"new_state": _STATES[state]})

    async def takes(self, text: str) -> None:
        """Into its conversation, and begins to think."""
        await self.adds("user", text)
        await self.is_in("thinking")

    async def adds(self, role: str, text: str, *, interrupted: bool = False) -> None:
        """An item of its conversation."""
        message = {
            "id": secrets.token_hex(4),
            "role": getattr(pb, role.upper()),
            "content": [{"text": text}],
            "interrupted": interrupted,
        }
        await self.tell(conversation_item_added={"item": {"message": message}})

    async def answers(self, text: str, answer: str, tool: str | None = None) -> None:
        """What it hears next, by that tool if one is named."""
        await self.hears(text)
        await self.answers_now(text, answer, tool)

    async def answers_now(self, text: str, answer: str, tool: str | None = None) -> None:
        """What it has heard."""
        await self.takes(text)
        if tool is not None:
            call = {"call_id": "call-1", "name": tool, "arguments": "{}"}
            output = {"call_id": "call-1", "output": f"{tool} is done"}
            await self.tell(
                function_tools_executed={
                    "function_calls": [call],
                    "function_call_outputs": [output],
                }
            )
        await self.is_in("speaking")
        await self.say(answer)
        await self.adds("assistant", answer)
        await self.is_in("listening")

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
    def __init__(self, rooms: MemoryRooms, room: str, identity: str) -> None:
        super().__init__()
        listener = Listener(self._hear, _nothing, _nothing, _nothing)
        self._room: MemoryRoom = rooms.join_as_agent(room, identity, listener, (CHAT,))

    def _hear(self, event: Happening) -> None:
        if isinstance(event, StreamChunk):
            self.heard.put_nowait(event.text)

    async def send(self, message: bytes) -> None:
        self._room.tell_of_session(message)

    async def show(self, state: str) -> None:
        self._room.change_attributes({AGENT_STATE: state})

    async def say(self, text: str, attributes: Mapping[str, str] | None = None) -> None:
        options = TextOptions("lk.transcription", attributes=attributes or {})
        await self._room.send_text(text, options)

    async def leave(self) -> None:
        if self._room.connected:
            await self._room.leave()


class _OnLiveKit(BareAgent):
    def __init__(self, room: rtc.Room, settings: Settings) -> None:
        super().__init__()
        self._room = room
        self._settings = settings
        self._reading: set[asyncio.Task[None]] = set()
        room.register_text_stream_handler(CHAT, self._hear)

    def _hear(self, reader: rtc.TextStreamReader, sender: str) -> None:
        async def read() -> None:
            self.heard.put_nowait(await reader.read_all())

        task = asyncio.create_task(read())
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

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
        await leave_for_good(self._room, self._settings)


@asynccontextmanager
async def bare_agent(
    gateway: RunningGateway, room: str, identity: str = "agent", **grants: Any
) -> AsyncIterator[BareAgent]:
    """In the room by the way that the gateway's rooms are; `grants` beside what an agent has."""
    if isinstance(gateway.rooms, MemoryRooms):
        twin = _Twin(gateway.rooms, room, identity)
        try:
            yield twin
        finally:
            await twin.leave()
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
    agent = _OnLiveKit(sdk_room, settings)
    await sdk_room.connect(settings.livekit_url, token)
    try:
        yield agent
    finally:
        await asyncio.shield(sdk_room.disconnect())


def _nothing(*_: object) -> None:
    pass


CHAT = "lk.chat"

_STATES = {
    "listening": pb.AS_LISTENING,
    "thinking": pb.AS_THINKING,
    "speaking": pb.AS_SPEAKING,
}
