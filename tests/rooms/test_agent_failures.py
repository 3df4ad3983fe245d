"""What agents tell of their errors and ends, on event streams."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.agent.played_session import SESSION_PROGRAM, played_session
from tests.agent.running_agent import AgentProgram
from tests.agent.told import (
    assert_told,
    assert_told_without_helper,
    of,
    told_to_the_end,
    told_until,
)
from tests.conftest import Play, Serve, WireIn
from tests.running_gateway import EventStream, RunningGateway, ServerSentEvent
from tools.livekit_server import LiveKitServer

REFUSED = {"error": {"status_code": 503, "body": {"said": "a secret"}}}

KILLED_NOTICED = 40.0
"""Seconds; LiveKit waits for a participant whose connection broke, some 24."""


def _unseen(gateway: RunningGateway, room: str) -> AbstractAsyncContextManager[EventStream]:
    """Who reads without being there: agents listen to one who is."""
    token = gateway.token("admin", room, room_admin=True)
    return gateway.agent_events(room, "admin", token=token, presence="none")


@pytest.mark.parametrize("helper", [True, False])
async def test_errors_are_told_those_that_are_made_good_and_those_that_are_not(
    gateway: RunningGateway, play: Play, room: str, helper: bool
) -> None:
    """A turn ends by the latter, and the session does not."""
    async with gateway.agent_events(room, "alice") as events, play(room, helper=helper) as session:
        await session.script("llm", REFUSED, {"text": "Here."}, {"error": "all is lost"})
        await gateway.post(room, "alice", "once")
        told = await told_until(events, "agent_state_changed", old_state="speaking")
        await gateway.post(room, "alice", "twice")
        while not [one for one in of(told, "error") if not one["error"]["recoverable"]]:
            told += await told_until(events, "error")
        await gateway.post(room, "alice", "again")
        told += await told_until(events, "agent_state_changed", new_state="speaking")
        if helper:
            told += await told_to_the_end(session, events)

    (assert_told if helper else assert_told_without_helper)(told, session)
    made_good, final = of(told, "error")
    assert made_good["source"] == ({"model": "llm", "provider": "scripted"} if helper else None)
    assert made_good["error"] | {"timestamp": None} == {
        "type": "llm_error",
        "timestamp": None,
        "label": "tests.agent.scripted_models.ScriptedLLM",
        "recoverable": True,
        "message": "the provider is out of order",
        "exception": "APIStatusError",
        "status_code": 503 if helper else None,
    }
    assert (final["error"]["message"], final["error"]["recoverable"]) == ("all is lost", False)
    assert "secret" not in str(told)


@pytest.mark.parametrize("helper", [True, False])
async def test_errors_of_ears_and_voice_are_told(
    gateway: RunningGateway, play: Play, wire_in: WireIn, room: str, helper: bool
) -> None:
    """With the helper also when they come back, or are replaced by no other."""
    async with (
        wire_in(room, voice=True) as alice,
        _unseen(gateway, room) as events,
        play(room, voice=True, helper=helper) as session,
    ):
        await events.until("gateway.opened")
        await session.script("stt", {"error": "connection"})
        told = await told_until(events, "error")
        await session.script("tts", {"error": {"status_code": 401, "body": None}})
        await alice.write("speak")
        told += await told_until(events, "error")
        if helper:
            told += await told_to_the_end(session, events)

    (assert_told if helper else assert_told_without_helper)(told, session)
    deaf, dumb = (one["error"] for one in of(told, "error"))
    assert (deaf["type"], deaf["recoverable"]) == ("stt_error", True)
    assert (dumb["type"], dumb["recoverable"]) == ("tts_error", False)
    assert (deaf["exception"], dumb["exception"]) == ("APIConnectionError", "APIStatusError")


@pytest.mark.parametrize("helper", [True, False])
async def test_the_fourth_error_in_a_row_closes(
    gateway: RunningGateway, play: Play, room: str, helper: bool
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room, helper=helper) as session:
        told: list[ServerSentEvent] = []
        for number in range(4):
            await session.script("llm", {"error": f"failure {number}"})
            await gateway.post(room, "alice", f"attempt {number}")
            told += await told_until(events, "error")
        if helper:
            told += await told_until(events, "close")

    (assert_told if helper else assert_told_without_helper)(told, session)
    messages = [one["error"]["message"] for one in of(told, "error")]
    assert messages == [f"failure {number}" for number in range(4)]
    if helper:
        [close] = of(told, "close")
        assert (close["reason"], close["error"]["message"]) == ("error", "failure 3")


async def test_models_that_take_over_and_come_back_are_told(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room, fallback=True) as session:
        await session.script("llm", {"error": "connection"})
        await gateway.post(room, "alice", "hello")
        told = await told_until(events, "availability_changed", available=True)
        told += await told_to_the_end(session, events)

    assert_told(told, session)
    changes = of(told, "availability_changed")
    assert [(one["kind"], one["model"], one["available"]) for one in changes] == [
        ("llm", "llm", False),
        ("llm", "llm", True),
    ]
    assert not of(told, "error")


async def test_an_agent_whose_session_closed_is_still_there(
    gateway: RunningGateway, play: Play, wire_in: WireIn, room: str
) -> None:
    """Its session ends with who leaves for good; the agent does not."""
    async with (
        wire_in(room) as alice,
        _unseen(gateway, room) as events,
        play(room) as session,
    ):
        await events.until("gateway.opened")
        await alice.write("hello")
        told = await told_until(events, "speech_finished")
        await alice.leave()
        told += await told_until(events, "close")
        there = await gateway.client.get(
            f"/rooms/{room}/participants", headers=gateway.admin_bearer(room)
        )

    assert_told(told, session)
    assert [(one["reason"], one["error"]) for one in of(told, "close")] == [
        ("participant_disconnected", None)
    ]
    kinds = {one["identity"]: one["kind"] for one in there.json()["participants"]}
    assert "alice" not in kinds
    assert kinds["agent"] == "agent"


async def test_an_agent_that_is_killed_is_told_of_when_livekit_has_noticed(
    serve_livekit: Serve, livekit: LiveKitServer, agent_python: Path, tmp_path: Path, room: str
) -> None:
    with AgentProgram(agent_python, tmp_path, SESSION_PROGRAM) as program:
        async with (
            serve_livekit(heartbeat=1) as gateway,
            gateway.agent_events(room, "alice", participants="1") as events,
        ):
            async with played_session(program, livekit, room):
                await gateway.post(room, "alice", "hello")
                await told_until(events, "speech_finished")
                program.kill()
            left = await events.until("participant.disconnected", within=KILLED_NOTICED)

    assert left.data["participant_identity"] == "agent"
