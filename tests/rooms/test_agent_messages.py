"""What an agent's messages may cost, by agents that send as LiveKit Agents never does."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from livekit import api, rtc
from livekit.protocol.agent_pb import agent_session as pb
from livekit.rtc._ffi_client import FfiClient
from livekit.rtc._proto import ffi_pb2

from gateway.agent_session import Ignored
from gateway.rooms import agent_messages
from gateway.rooms.agent_messages import MESSAGE_BYTES, MESSAGE_TIMEOUT, TOPIC
from tests.polling import poll_until
from tests.running_gateway import EventStream, RunningGateway, livekit_token
from tools.livekit_server import LiveKitServer

STATES = (pb.AS_IDLE, pb.AS_LISTENING, pb.AS_THINKING)


class Sender:
    """A participant who sends on the agents' topic."""

    def __init__(self) -> None:
        self.room = rtc.Room()

    async def tell(self, state: int) -> None:
        """A whole message."""
        changed = {"agent_state_changed": {"new_state": state}}
        data = pb.AgentSessionMessage(event=changed).SerializeToString()
        await self.room.local_participant.send_bytes(data, name="message", topic=TOPIC)

    async def begin(self, data: bytes = b"", size: int | None = None) -> rtc.ByteStreamWriter:
        """A message that is not ended."""
        participant = self.room.local_participant
        writer = await participant.stream_bytes("message", topic=TOPIC, total_size=size)
        if data:
            await writer.write(data)
        return writer


@asynccontextmanager
async def _agent(livekit: LiveKitServer, room: str, events: EventStream) -> AsyncIterator[Sender]:
    """One that the gateway knows as an agent."""
    await events.until("gateway.opened")
    token = (
        api.AccessToken(livekit.api_key, livekit.api_secret)
        .with_identity("agent")
        .with_kind("agent")
        .with_grants(api.VideoGrants(room_join=True, room=room, can_update_own_metadata=True))
    )
    sender = Sender()
    await sender.room.connect(livekit.url, token.to_jwt())
    try:
        # A change is told at once; that somebody came, up to 3 s later.
        await sender.room.local_participant.set_attributes({"announced": "now"})
        await events.until("participant.connected")
        yield sender
    finally:
        await sender.room.disconnect()


async def _states(events: EventStream, count: int) -> list[str]:
    return [
        (await events.until("agent.agent_state_changed")).data["new_state"] for _ in range(count)
    ]


async def test_a_message_that_stands_still_holds_up_the_others_for_a_moment_only(
    gateway: RunningGateway, livekit: LiveKitServer, room: str
) -> None:
    """So do several of them, and those behind are told in their order."""
    async with (
        gateway.agent_events(room, "alice", participants="1") as events,
        _agent(livekit, room, events) as agent,
    ):
        for _ in range(2):
            await agent.begin(b"begun")
        async with asyncio.timeout(MESSAGE_TIMEOUT / 2):
            for state in STATES:
                await agent.tell(state)
            told = await _states(events, len(STATES))

    assert told == ["idle", "listening", "thinking"]
    assert gateway.rooms.ignored_messages == {Ignored.BROKEN_OFF: 2}


async def test_a_message_that_comes_slowly_is_waited_for(
    gateway: RunningGateway, livekit: LiveKitServer, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when one behind it is whole before it."""
    monkeypatch.setattr(agent_messages, "OVERTAKEN_TIMEOUT", 0.4)
    slow = {"error": {"message": "x" * 60_000}}
    data = pb.AgentSessionMessage(event=slow).SerializeToString()
    async with (
        gateway.agent_events(room, "alice", participants="1") as events,
        _agent(livekit, room, events) as agent,
    ):
        writer = await agent.begin()
        await agent.tell(pb.AS_THINKING)
        written = 0
        until = asyncio.get_running_loop().time() + 3 * 0.4
        while asyncio.get_running_loop().time() < until:
            await writer.write(data[written : written + 1])
            written += 1
        assert written < len(data)
        await writer.write(data[written:])
        await writer.aclose()
        told = [await events.next() for _ in range(2)]

    assert [event.name for event in told] == ["agent.error", "agent.agent_state_changed"]


async def test_what_is_declared_too_long_is_refused_at_once_and_the_rest_when_it_is(
    gateway: RunningGateway, livekit: LiveKitServer, room: str
) -> None:
    ignored = gateway.rooms.ignored_messages
    async with (
        gateway.agent_events(room, "alice", participants="1") as events,
        _agent(livekit, room, events) as agent,
    ):
        await agent.begin(size=MESSAGE_BYTES + 1)
        await poll_until(lambda: ignored[Ignored.TOO_LONG] == 1)
        await agent.begin(os.urandom(MESSAGE_BYTES + 1))
        await poll_until(lambda: ignored[Ignored.TOO_LONG] == 2)
        await agent.tell(pb.AS_IDLE)
        told = await _states(events, 1)

    assert told == ["idle"]
    assert ignored == {Ignored.TOO_LONG: 2}


async def test_the_messages_that_wait_hold_so_many_bytes_together(
    gateway: RunningGateway, livekit: LiveKitServer, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it one is let go, and there is room again; headers count, too."""
    monkeypatch.setattr(agent_messages, "WAITING_BYTES", 40_000)
    monkeypatch.setattr(agent_messages, "OVERTAKEN_TIMEOUT", MESSAGE_TIMEOUT)
    ignored = gateway.rooms.ignored_messages
    async with (
        gateway.agent_events(room, "alice", participants="1") as events,
        _agent(livekit, room, events) as agent,
    ):
        kept = [await agent.begin(bytes(size)) for size in (1, 30_000)]
        for _ in range(2):
            await agent.begin(bytes(12_000))
        participant = agent.room.local_participant
        await participant.stream_bytes("message", topic=TOPIC, attributes={"a": "a" * 12_000})
        await poll_until(lambda: ignored[Ignored.TOO_MANY] == 1)
        kept.append(await agent.begin(bytes(5_000)))
        await agent.tell(pb.AS_IDLE)
        for writer in kept:
            await writer.aclose()
        told = await _states(events, 1)

    assert told == ["idle"]
    assert ignored == {Ignored.TOO_MANY: 3, Ignored.MALFORMED: 3}


async def test_so_many_messages_wait(
    gateway: RunningGateway, livekit: LiveKitServer, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_messages, "MAX_WAITING", 20)
    ignored = gateway.rooms.ignored_messages
    async with (
        gateway.agent_events(room, "alice", participants="1") as events,
        _agent(livekit, room, events) as agent,
    ):
        for _ in range(23):
            await agent.begin()
        await poll_until(lambda: ignored[Ignored.TOO_MANY] == 3)


async def test_what_an_agent_told_before_it_left_is_told(
    gateway: RunningGateway, livekit: LiveKitServer, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a message that it did not end."""
    monkeypatch.setattr(agent_messages, "OVERTAKEN_TIMEOUT", MESSAGE_TIMEOUT)
    async with gateway.agent_events(room, "alice", participants="1") as events:
        async with _agent(livekit, room, events) as agent, gateway.agent_events(room, "bob") as bob:
            await bob.until("gateway.opened")
            await agent.begin(b"begun")
            await agent.begin(size=MESSAGE_BYTES + 1)
            await agent.tell(pb.AS_IDLE)
            # Both who read have been sent all of it.
            await poll_until(lambda: gateway.rooms.ignored_messages[Ignored.TOO_LONG] == 2)
        told = await _states(events, 1)

    assert told == ["idle"]


async def test_a_message_in_which_another_has_written_is_not_told(
    gateway: RunningGateway, livekit: LiveKitServer, room: str
) -> None:
    """LiveKit's SDKs take a piece, and an end, for the stream whose id it has, whoever sends it."""
    changed = {"agent_state_changed": {"new_state": pb.AS_SPEAKING}}
    data = pb.AgentSessionMessage(event=changed).SerializeToString()
    begun: asyncio.Queue[rtc.ByteStreamReader] = asyncio.Queue()
    async with (
        gateway.agent_events(room, "alice", participants="1") as events,
        _agent(livekit, room, events) as agent,
    ):
        mallory = rtc.Room()
        mallory.register_byte_stream_handler(TOPIC, lambda reader, _: begun.put_nowait(reader))
        await mallory.connect(livekit.url, livekit_token(livekit, room, "mallory"))
        try:
            # Its first packet is the slow one: a channel is opened for it.
            await mallory.local_participant.send_text("here I am", topic="lk.chat")
            await agent.begin(data[:2])
            reader = await begun.get()
            await anext(reader)
            _end_stream_of_another(mallory, reader.info.stream_id, data[2:])
            await agent.tell(pb.AS_IDLE)
            told = await _states(events, 1)
        finally:
            await mallory.disconnect()

    assert told == ["idle"]
    assert gateway.rooms.ignored_messages[Ignored.BROKEN_OFF] == 1


def _end_stream_of_another(sender: rtc.Room, stream_id: str, rest: bytes) -> None:
    """What no face of the SDK offers, and its library does."""
    piece, end = ffi_pb2.FfiRequest(), ffi_pb2.FfiRequest()
    piece.send_stream_chunk.chunk.stream_id = stream_id
    piece.send_stream_chunk.chunk.chunk_index = 1
    piece.send_stream_chunk.chunk.content = rest
    end.send_stream_trailer.trailer.stream_id = stream_id
    end.send_stream_trailer.trailer.reason = ""
    for request, body in ((piece, piece.send_stream_chunk), (end, end.send_stream_trailer)):
        body.local_participant_handle = sender.local_participant._ffi_handle.handle
        body.sender_identity = sender.local_participant.identity
        FfiClient.instance.request(request)
