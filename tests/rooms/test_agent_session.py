"""What agents of LiveKit Agents tell of their sessions, as event streams show it."""

import asyncio
from typing import Any

import pytest
from livekit import api, rtc
from livekit.protocol.agent_pb import agent_session as pb

from gateway.agent_session import Ignored
from gateway.rooms.agent_messages import TOPIC
from tests.agent.played_session import PlayedSession
from tests.conftest import Play
from tests.running_gateway import EventStream, RunningGateway, ServerSentEvent, livekit_token
from tools.livekit_server import LiveKitServer

OF_HELPER = {"speech_created", "speech_finished", "metrics_collected", "close"}
"""What the framework itself does not send."""


async def _told_until(events: EventStream, name: str, **members: Any) -> list[ServerSentEvent]:
    """All until the first of that name that has these members."""
    told = [await events.next()]
    while told[-1].name != name or not members.items() <= told[-1].data.items():
        told.append(await events.next())
    return told


async def _turn(events: EventStream) -> list[ServerSentEvent]:
    """From what the user says until the agent listens again; not how the session began."""
    begun = await _told_until(events, "agent.user_state_changed", new_state="speaking")
    rest = await _told_until(events, "agent.agent_state_changed", new_state="listening")
    return [begun[-1], *rest]


def _in_order(told: list[ServerSentEvent]) -> list[str]:
    # Callbacks of a speech that is done are called in no order.
    names = [event.name.removeprefix("agent.") for event in told]
    return [name for name in names if name != "speech_finished"]


def _seen(session: PlayedSession) -> list[str]:
    return [seen.kind for seen in session.seen if seen.kind != "speech_finished"]


def _holds(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return all(name in whole and _holds(whole[name], part[name]) for name in part)
    return bool(whole == part)


async def test_a_session_is_told_in_full_and_in_order_where_its_agent_has_the_helper(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room) as session:
        session.seen.clear()
        await gateway.post(room, "alice", "hello")
        told = await _turn(events)
        await session.sees("agent_state_changed", lambda to: bool(to["new_state"] == "listening"))
        seen = [one for one in session.seen if one.kind != "speech_finished"]
        kept = [event for event in told if event.name != "agent.speech_finished"]
        await session.tell("close")
        closed = await events.until("agent.close")

    assert _in_order(told) == [one.kind for one in seen]
    assert {event.data["participant_identity"] for event in told} == {"agent"}
    for event, one in zip(kept, seen, strict=True):
        if event.data["created_at_is"] == "happened":
            assert event.data["created_at"] == pytest.approx(
                one.members.pop("created_at"), abs=1e-5
            )
            assert _holds(event.data, one.members)
    assert closed.data["reason"] == "user_initiated"
    assert closed.data["error"] is None


async def test_without_the_helper_the_words_are_the_same_and_what_is_not_carried_is_null(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room, helper=False) as session:
        session.seen.clear()
        await gateway.post(room, "alice", "hello")
        told = await _turn(events)
        await session.sees("agent_state_changed", lambda to: bool(to["new_state"] == "listening"))

    assert _in_order(told) == [name for name in _seen(session) if name not in OF_HELPER]
    items = [event.data["item"] for event in told if event.name.endswith("item_added")]
    assert (items[0]["role"], items[0]["content"]) == ("user", ["hello"])
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
        await agent.disconnect()
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
    return (
        api.AccessToken(livekit.api_key, livekit.api_secret)
        .with_identity("agent")
        .with_kind("agent")
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .to_jwt()
    )


async def _joined(livekit: LiveKitServer, token: str) -> rtc.Room:
    room = rtc.Room()
    await room.connect(livekit.url, token)
    return room
