"""What agents of LiveKit Agents tell of their sessions, as event streams show it."""

import asyncio
from typing import Any

from livekit import api, rtc
from livekit.protocol.agent_pb import agent_session as pb

from gateway.agent_session import Ignored
from gateway.rooms.agent_messages import TOPIC
from tests.agent.told import (
    assert_told,
    assert_told_without_helper,
    items,
    of,
    told_to_the_end,
    told_until,
)
from tests.conftest import Play
from tests.leaving import leave_for_good
from tests.polling import poll_until
from tests.running_gateway import RunningGateway, livekit_token
from tools.livekit_server import LiveKitServer


async def test_a_session_is_told_in_full_and_in_order_where_its_agent_has_the_helper(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room) as session:
        await gateway.post(room, "alice", "hello")
        told = await told_until(events, "agent_state_changed", old_state="speaking")
        told += await told_to_the_end(session, events)

    assert_told(told, session)
    assert {event.data["participant_identity"] for event in told} == {"agent"}
    [created] = of(told, "speech_created")
    assert of(told, "metrics_collected")[0]["metrics"]["speech_id"] == created["speech_id"]
    [closed] = of(told, "close")
    assert (closed["reason"], closed["error"]) == ("user_initiated", None)


async def test_without_the_helper_the_words_are_the_same_and_what_is_not_carried_is_null(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room, helper=False) as session:
        await gateway.post(room, "alice", "hello")
        told = await told_until(events, "agent_state_changed", old_state="speaking")

    assert_told_without_helper(told, session)
    assert [item["content"] for item in items(told, role="user")] == [["hello"]]
    assert {event.data["created_at_is"] for event in told} == {"happened", "sent"}


async def test_only_agents_are_heard_and_garbage_of_theirs_breaks_nothing(
    gateway: RunningGateway, livekit: LiveKitServer, room: str
) -> None:
    async with gateway.agent_events(room, "alice") as events:
        await events.until("gateway.opened")
        agent = await _joined(livekit, _agent_token(livekit, room))
        mallory = await _joined(livekit, livekit_token(livekit, room, "mallory"))
        try:
            for sender, data in (
                (mallory, _state(pb.AS_SPEAKING)),
                (agent, b"\xff\xff"),
                (agent, b""),
                (agent, _state(pb.AS_THINKING)),
            ):
                await sender.local_participant.send_bytes(data, name="message", topic=TOPIC)
            event = await events.next()
        finally:
            await asyncio.gather(agent.disconnect(), mallory.disconnect())

    assert event.name == "agent.agent_state_changed"
    assert event.data["participant_identity"] == "agent"
    assert event.data["new_state"] == "thinking"
    ignored = gateway.rooms.ignored_messages
    assert ignored[Ignored.MALFORMED] == ignored[Ignored.OTHER] == 1


async def test_nobody_speaks_as_an_agent_who_is_not_that_agent(
    gateway: RunningGateway, livekit: LiveKitServer, room: str
) -> None:
    """Not with the grant alone, which makes no agent, nor as another agent, nor unseen: LiveKit lets agents
    name another sender of a text, and tells the true one of bytes."""
    async with gateway.agent_events(room, "alice") as events:
        await events.until("gateway.opened")
        senders = [
            await _joined(livekit, token)
            for token in (
                livekit_token(livekit, room, "plain"),
                _token(livekit, room, "granted", kind=None, agent=True),
                _token(livekit, room, "hidden", hidden=True),
                _agent_token(livekit, room),
                _token(livekit, room, "second"),
            )
        ]
        try:
            for sender in senders:
                await _send_as("agent", sender, _state(pb.AS_THINKING))
            told = [(await events.next()).data["participant_identity"] for _ in range(2)]
            await poll_until(
                lambda: gateway.rooms.ignored_messages == {Ignored.NOT_AN_AGENT: 3}, within=10
            )
        finally:
            await asyncio.gather(*(sender.disconnect() for sender in senders))

    assert sorted(told) == ["agent", "second"]


async def test_agents_may_be_followed_beside_texts_and_by_who_reads_unseen(
    gateway: RunningGateway, livekit: LiveKitServer, room: str
) -> None:
    token = gateway.token("admin", room, room_admin=True)
    async with (
        gateway.events(room, "alice", agent="1") as beside,
        gateway.agent_events(room, "admin", token=token, presence="none") as unseen,
    ):
        await unseen.until("gateway.opened")
        agent = await _joined(livekit, _agent_token(livekit, room))
        await agent.local_participant.send_bytes(
            _state(pb.AS_THINKING), name="message", topic=TOPIC
        )
        told = [await each.until("agent.agent_state_changed") for each in (beside, unseen)]
        async with gateway.agent_events(
            room, "alice", last_event_id=beside.last_event_id
        ) as resumed:
            await resumed.until("gateway.opened")
            await gateway.post(room, "carol", "not for it")
            await agent.local_participant.send_bytes(
                _state(pb.AS_IDLE), name="message", topic=TOPIC
            )
            after = await resumed.next()
        await agent.disconnect()

    assert told[0].data == told[1].data
    assert (after.name, after.data["new_state"]) == ("agent.agent_state_changed", "idle")


async def test_an_agent_that_leaves_in_the_middle_of_a_message_is_told_whole_and_comes_back(
    gateway: RunningGateway, livekit: LiveKitServer, room: str
) -> None:
    """What it has told behind that message is told, then that it left, then what it tells when it is back."""
    async with gateway.agent_events(room, "alice") as events:
        agent = await _joined(livekit, _agent_token(livekit, room))
        await _send(agent, _state(pb.AS_IDLE))
        told = [await events.until("agent.agent_state_changed")]
        writer = await agent.local_participant.stream_bytes("message", topic=TOPIC)
        await writer.write(b"the beginning")
        for _ in range(2):
            await _send(agent, _state(pb.AS_THINKING))
        await leave_for_good(agent, livekit)
        told += await events.take(3)
        back = await _joined(livekit, _agent_token(livekit, room))
        await _send(back, _state(pb.AS_LISTENING))
        told.append(await events.next())
        await back.disconnect()

    assert [(event.name, event.data.get("new_state")) for event in told] == [
        ("agent.agent_state_changed", "idle"),
        ("agent.agent_state_changed", "thinking"),
        ("agent.agent_state_changed", "thinking"),
        ("agent.close", None),
        ("agent.agent_state_changed", "listening"),
    ]


async def _send(agent: rtc.Room, message: bytes) -> None:
    await agent.local_participant.send_bytes(message, name="message", topic=TOPIC)


def _state(state: int) -> bytes:
    changed = {"agent_state_changed": {"new_state": state}}
    return pb.AgentSessionMessage(event=changed).SerializeToString()


def _agent_token(livekit: LiveKitServer, room: str) -> str:
    return _token(livekit, room, "agent")


def _token(
    livekit: LiveKitServer, room: str, identity: str, kind: Any = "agent", **grants: Any
) -> str:
    token = (
        api.AccessToken(livekit.api_key, livekit.api_secret)
        .with_identity(identity)
        .with_grants(api.VideoGrants(room_join=True, room=room, **grants))
    )
    return (token if kind is None else token.with_kind(kind)).to_jwt()


async def _send_as(identity: str, sender: rtc.Room, data: bytes) -> None:
    """What no face of the SDK offers for bytes, and its library takes."""
    writer = rtc.ByteStreamWriter(sender.local_participant, name="message", topic=TOPIC)
    writer._options.sender_identity = identity
    await writer._send_header()
    await writer.write(data)
    await writer.aclose()


async def _joined(livekit: LiveKitServer, token: str) -> rtc.Room:
    room = rtc.Room()
    await room.connect(livekit.url, token)
    return room
