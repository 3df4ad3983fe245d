"""`view=transcript` of sessions of LiveKit Agents, which hear and speak."""

from typing import Any

import pytest

from tests.agent.played_session import PlayedSession
from tests.agent.session_wire import SessionWire
from tests.conftest import Play, WireIn
from tests.running_gateway import EventStream, RunningGateway, ServerSentEvent

TOPIC = "lk.transcription"


async def _turn(
    events: EventStream, wire: SessionWire, session: PlayedSession, *interims: str, final: str
) -> list[ServerSentEvent]:
    """Alice has a tone, the agent is told what it was, and answers: what is shown of that."""
    session.seen.clear()
    wire.is_loud = True
    await session.sees("user_state_changed", lambda to: bool(to["new_state"] == "speaking"))
    told = []
    for text in interims:
        await session.script("stt", {"type": "interim_transcript", "text": text})
        told.append(await events.next())
    await session.script("stt", {"type": "final_transcript", "text": final})
    wire.is_loud = False
    return told + await _until_final(events, "agent")


async def _until_final(events: EventStream, identity: str) -> list[ServerSentEvent]:
    """What is said by all, until something of this participant is final."""
    told = [await events.next()]
    while (told[-1].name, told[-1].data["participant_identity"]) != ("transcript.final", identity):
        told.append(await events.next())
    return told


def _of(told: list[ServerSentEvent], identity: str) -> list[dict[str, Any]]:
    return [event.data for event in told if event.data["participant_identity"] == identity]


async def test_what_a_user_and_an_agent_say_is_read_as_they_say_it(
    gateway: RunningGateway, play: Play, wire_in: WireIn, room: str
) -> None:
    async with (
        wire_in(room, voice=True) as wire,
        play(room, voice=True) as session,
        gateway.admin_events(room, TOPIC, view="transcript") as events,
    ):
        await events.until("gateway.opened")
        told = await _turn(events, wire, session, "how", "how are", final="how are you")
        told += await _turn(events, wire, session, final="and now")

    users, agents = _of(told, "alice"), _of(told, "agent")
    first = [each["text"] for each in users if each["segment_id"] == users[0]["segment_id"]]
    # What is final comes as an interim result first, which need not be shown.
    assert list(dict.fromkeys(first)) == ["how", "how are", "how are you"]
    assert [each.name for each in told[:2]] == ["transcript.partial"] * 2
    finals = [each for each in told if each.name == "transcript.final"]
    assert [(each.data["participant_identity"], each.data["text"].strip()) for each in finals] == [
        ("alice", "how are you"),
        ("agent", "You said: how are you"),
        ("alice", "and now"),
        ("agent", "You said: and now"),
    ]
    assert len({each.data["segment_id"] for each in finals}) == 4
    answer = [each for each in agents if each["segment_id"] == finals[1].data["segment_id"]]
    partials = [each["text"] for each in answer if each["type"] == "transcript.partial"]
    assert partials == sorted(partials, key=len)
    assert all(answer[-1]["text"].startswith(text) for text in partials)
    assert {each["words"] for each in users + agents} == {None}
    assert {(each.data["complete"], each.data["reason"]) for each in finals} == {(True, None)}


@pytest.mark.parametrize("voice", [True, False])
async def test_timed_strings_of_an_agent_are_read_as_text_with_times(
    gateway: RunningGateway, play: Play, wire_in: WireIn, room: str, voice: bool
) -> None:
    """Without a voice nothing has a time."""
    async with (
        wire_in(room) as wire,
        play(room, voice=voice, timed=True) as session,
        gateway.admin_events(room, TOPIC, view="transcript") as events,
        gateway.admin_events(room, TOPIC) as as_written,
    ):
        await as_written.until("gateway.opened")
        await events.until("gateway.opened")
        await session.script("llm", {"text": '{"one": "two"} three'})
        await wire.write("say it")
        told = await _until_final(events, "agent")
        written = await as_written.text()

    final = told[-1].data
    assert written.text.startswith('{"text": ')
    assert final["text"].strip() == '{"one": "two"} three'
    assert "".join(word["text"] for word in final["words"]) == final["text"]
    assert len(final["words"]) > 1
    ends = [word["end_time"] for word in final["words"]]
    if voice:
        timed = [end for end in ends if end is not None]
        assert timed
        assert timed == sorted(timed)
    else:
        assert set(ends) == {None}
    for event in told[:-1]:
        count = len(event.data["words"])
        assert event.data["words"] == final["words"][:count]
        assert event.data["text"] == "".join(word["text"] for word in final["words"][:count])


async def test_an_answer_that_is_interrupted_is_final_as_far_as_it_went(
    gateway: RunningGateway, play: Play, wire_in: WireIn, room: str
) -> None:
    async with (
        wire_in(room) as wire,
        play(room) as session,
        gateway.admin_events(room, TOPIC, view="transcript") as events,
    ):
        await events.until("gateway.opened")
        await session.tell("hold")
        await wire.write("tell me all")
        partial = await events.until("transcript.partial")
        await session.tell("interrupt")
        final = (await _until_final(events, "agent"))[-1]

    assert final.data["segment_id"] == partial.data["segment_id"]
    assert final.data["text"].strip() == "You"
