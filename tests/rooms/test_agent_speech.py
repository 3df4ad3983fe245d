"""What agents tell of spoken turns, on event streams: what is heard, and who speaks over whom."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.agent.session_wire import SessionWire
from tests.agent.told import (
    assert_told,
    assert_told_without_helper,
    items,
    of,
    told_to_the_end,
    told_until,
)
from tests.conftest import Play, WireIn
from tests.running_gateway import EventStream, RunningGateway, ServerSentEvent


@asynccontextmanager
async def _overheard(
    gateway: RunningGateway, wire_in: WireIn, room: str
) -> AsyncIterator[tuple[SessionWire, EventStream]]:
    """Alice with a microphone, and who reads unseen: agents listen to the first who comes."""
    token = gateway.token("admin", room, room_admin=True)
    async with (
        wire_in(room, voice=True) as alice,
        gateway.agent_events(room, "admin", token=token, presence="none") as events,
    ):
        await events.until("gateway.opened")
        yield alice, events


async def _speaks_over(alice: SessionWire, events: EventStream) -> list[ServerSentEvent]:
    told = await told_until(events, "agent_state_changed", new_state="speaking")
    alice.is_loud = True
    return told


@pytest.mark.parametrize("helper", [True, False])
async def test_a_spoken_turn_is_told(
    gateway: RunningGateway, play: Play, wire_in: WireIn, room: str, helper: bool
) -> None:
    async with (
        _overheard(gateway, wire_in, room) as (alice, events),
        play(room, voice=True, helper=helper) as session,
    ):
        alice.is_loud = True
        told = await told_until(events, "user_state_changed", new_state="speaking")
        await session.script(
            "stt",
            {"type": "interim_transcript", "text": "how"},
            {"type": "final_transcript", "text": "how are you", "speaker_id": "S1"},
            {"type": "recognition_usage"},
        )
        alice.is_loud = False
        told += await told_until(events, "agent_state_changed", new_state="speaking")
        told += await told_until(events, "agent_state_changed", new_state="listening")
        if helper:
            while not _metrics(told, "vad_metrics"):
                told += await told_until(events, "metrics_collected")
            told += await told_to_the_end(session, events)

    (assert_told if helper else assert_told_without_helper)(told, session)
    heard = of(told, "user_input_transcribed")
    assert ("how", False) in [(one["transcript"], one["is_final"]) for one in heard]
    final = next(one for one in heard if one["is_final"])
    assert (final["transcript"], final["speaker_id"]) == ("how are you", "S1" if helper else None)
    assert [item["content"] for item in items(told, role="user")] == [["how are you"]]
    usage = of(told, "session_usage_updated")[-1]["usage"]["model_usage"]
    assert {one["type"] for one in usage} >= {"llm_usage", "stt_usage", "tts_usage"}
    kinds = {one["metrics"]["type"] for one in of(told, "metrics_collected")}
    of_models = {"stt_metrics", "llm_metrics", "tts_metrics", "vad_metrics", "eou_metrics"}
    assert kinds == (of_models if helper else set())


def _metrics(told: list[ServerSentEvent], kind: str) -> list[object]:
    return [one for one in of(told, "metrics_collected") if one["metrics"]["type"] == kind]


async def test_speech_that_is_not_understood_is_told(
    gateway: RunningGateway, play: Play, wire_in: WireIn, room: str
) -> None:
    async with (
        _overheard(gateway, wire_in, room) as (alice, events),
        play(room, voice=True) as session,
    ):
        alice.is_loud = True
        told = await told_until(events, "user_state_changed", new_state="speaking")
        alice.is_loud = False
        told += await told_until(events, "user_transcription_timeout")
        told += await told_to_the_end(session, events)

    assert_told(told, session)
    [timeout] = of(told, "user_transcription_timeout")
    assert timeout["speech_duration"] > 0
    assert timeout["vad_speech_started_at"] < timeout["created_at"]


@pytest.mark.parametrize("helper", [True, False])
async def test_an_interruption_that_was_none_is_told(
    gateway: RunningGateway, play: Play, wire_in: WireIn, room: str, helper: bool
) -> None:
    """Something was loud and said nothing: the agent stops, and goes on."""
    async with (
        _overheard(gateway, wire_in, room) as (alice, events),
        play(room, voice=True, helper=helper) as session,
    ):
        await session.script("tts", {"seconds": 6})
        await session.tell("say", text="a long story")
        told = await _speaks_over(alice, events)
        told += await told_until(events, "agent_state_changed", new_state="listening")
        alice.is_loud = False
        told += await told_until(events, "agent_false_interruption")
        if helper:
            told += await told_to_the_end(session, events)

    (assert_told if helper else assert_told_without_helper)(told, session)
    assert [one["resumed"] for one in of(told, "agent_false_interruption")] == [True]
    states = [one["new_state"] for one in of(told, "agent_state_changed")]
    assert states[:4] == ["listening", "speaking", "listening", "speaking"]


@pytest.mark.parametrize("helper", [True, False])
async def test_speech_over_the_agents_is_told(
    gateway: RunningGateway, play: Play, wire_in: WireIn, room: str, helper: bool
) -> None:
    """What interrupts it, by LiveKit's barge-in service."""
    async with (
        _overheard(gateway, wire_in, room) as (alice, events),
        play(room, voice=True, helper=helper, bargein="interruption") as session,
    ):
        await session.script("tts", {"seconds": 6})
        await session.tell("say", text="a long story")
        told = await _speaks_over(alice, events)
        told += await told_until(events, "overlapping_speech", is_interruption=True)
        told += await told_until(events, "agent_state_changed", new_state="listening")
        if helper:
            told += await told_to_the_end(session, events)

    (assert_told if helper else assert_told_without_helper)(told, session)
    overlap = of(told, "overlapping_speech")[0]
    assert overlap["overlap_started_at"] < overlap["detected_at"]
    assert overlap["detection_delay"] > 0
    assert overlap.get("probability") == (0.75 if helper else None)


async def test_a_word_of_assent_is_told_as_none_that_interrupts(
    gateway: RunningGateway, play: Play, wire_in: WireIn, room: str
) -> None:
    async with (
        _overheard(gateway, wire_in, room) as (alice, events),
        play(room, voice=True, bargein="backchannel") as session,
    ):
        await session.script("tts", {"seconds": 6})
        await session.tell("say", text="a long story")
        told = await _speaks_over(alice, events)
        told += await told_until(events, "user_state_changed", new_state="speaking")
        alice.is_loud = False
        told += await told_until(events, "overlapping_speech")
        told += await told_to_the_end(session, events)

    assert_told(told, session)
    overlap = of(told, "overlapping_speech")[0]
    assert (overlap["is_interruption"], overlap["agent_ended"]) == (False, False)
