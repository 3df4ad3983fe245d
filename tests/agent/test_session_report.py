"""The helper for agents (clients/agent/), in real sessions, by what arrives in their rooms."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.agent.played_session import PlayedSession, Seen
from tests.agent.session_wire import Sent, SessionWire
from tests.conftest import Play, WireIn
from tools.agent_environment import HELPER

FULLER = {
    "user_input_transcribed",
    "conversation_item_added",
    "function_tools_executed",
    "tool_execution_updated",
    "session_usage_updated",
    "overlapping_speech",
    "error",
}
"""What the framework sends too, with less in it."""

ONLY_HERE = {"speech_created", "user_transcription_timeout", "metrics_collected", "close"}
"""What it does not send."""

LIMIT = 64 * 1024


def _events(wire: SessionWire) -> list[Sent]:
    """Each happening once: a native form that the helper's precedes is left out."""
    events: list[Sent] = []
    awaited: list[str] = []
    for sent in wire.sent:
        if sent.replaces:
            assert sent.replaces == sent.kind
            awaited.append(sent.kind)
        if not sent.by_helper and sent.kind in awaited:
            awaited.remove(sent.kind)
        else:
            assert sent.by_helper or sent.kind not in FULLER
            events.append(sent)
    assert not awaited
    return events


def _assert_told(wire: SessionWire, session: PlayedSession) -> None:
    """All that handlers inside the agent saw has arrived, in their order, with the same members.

    Callbacks of a speech that is done are called in no order, so its end is looked at by itself;
    metrics of voice detection are told once in a while, and other models' availability only here.
    """
    events = [event for event in _events(wire) if not _is_apart(event)]
    seen = [seen for seen in session.seen if not _is_apart(seen)]
    assert [event.kind for event in events] == [one.kind for one in seen]
    for event, one in zip(events, seen, strict=True):
        if event.by_helper:
            assert _holds(event.members, one.members), (event.members, one.members)
    created = [created["speech_id"] for created in wire.of_helper("speech_created")]
    finished = [finished["speech_id"] for finished in wire.of_helper("speech_finished")]
    assert sorted(finished) == sorted(created)


def _is_apart(one: Sent | Seen) -> bool:
    apart = one.kind in ("availability_changed", "speech_finished")
    return apart or (one.kind == "metrics_collected" and _is_of_vad(one.members))


def _is_of_vad(told: dict[str, Any]) -> bool:
    return bool(told["metrics"]["type"] == "vad_metrics")


def _holds(whole: Any, part: Any) -> bool:
    """True when all members of `part` are in `whole`, too."""
    if isinstance(part, dict):
        return all(name in whole and _holds(whole[name], part[name]) for name in part)
    return bool(whole == part)


async def _close(session: PlayedSession, wire: SessionWire) -> Sent:
    """Close it while it is in the room: what is sent right before leaving may be lost."""
    await session.tell("close")
    return await wire.until_helper("close")


# What is told


def test_all_events_of_a_session_are_told(agent_python: Path) -> None:
    """By the helper, or by the framework, whose form has all of them; the contract names each."""
    whole = {"agent_state_changed", "user_state_changed", "agent_false_interruption"}
    code = (
        "import json, typing\n"
        "from livekit.agents.voice.events import EventTypes\n"
        "print(json.dumps(typing.get_args(EventTypes)))"
    )
    command: list[str | Path] = [agent_python, "-c", code]
    printed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    contract = (HELPER / "README.md").read_text()

    kinds = set(json.loads(printed)) - {"debug_message"}
    assert kinds == FULLER | ONLY_HERE | whole
    assert [kind for kind in kinds if f"`{kind}`" not in contract] == []


async def test_a_turn_is_told_in_full_and_in_order(play: Play, wire_in: WireIn, room: str) -> None:
    async with wire_in(room) as wire, play(room) as session:
        await wire.write("hello")
        await wire.until_helper("speech_finished")
        await _close(session, wire)

    _assert_told(wire, session)
    [created] = wire.of_helper("speech_created")
    [finished] = wire.of_helper("speech_finished")
    assert finished["speech_id"] == created["speech_id"]
    assert finished["interrupted"] is False
    assert wire.of_helper("metrics_collected")[0]["metrics"]["speech_id"] == created["speech_id"]
    assert wire.of_helper("close")[0]["reason"] == "user_initiated"


async def test_tools_are_told(play: Play, wire_in: WireIn, room: str) -> None:
    """Their outputs and failures, and one that answers before it has ended."""
    async with wire_in(room) as wire, play(room) as session:
        calls = [{"name": "look_up", "query": "this"}, {"name": "fail"}]
        long = [{"name": "search_long", "query": "that"}]
        steps = ({"calls": calls}, {"text": "Both are done."}, {"calls": long})
        await session.script("llm", *steps)
        await wire.write("two, please")
        await wire.until_helper("speech_finished")
        await wire.write("and a long one")
        await wire.until_helper(
            "tool_execution_updated", lambda told: told["update"].get("status") == "completed"
        )
        await _close(session, wire)

    _assert_told(wire, session)
    both, long_one = wire.of_helper("function_tools_executed")
    outputs = [(output["output"], output["is_error"]) for output in both["function_call_outputs"]]
    assert outputs == [("found this", False), ("it does not work", True)]
    assert [call["name"] for call in long_one["function_calls"]] == ["search_long"]


async def test_an_interruption_is_told(play: Play, wire_in: WireIn, room: str) -> None:
    async with wire_in(room) as wire, play(room) as session:
        await session.tell("hold")
        await wire.write("tell me all")
        await wire.until("agent_state_changed", lambda sent: "AS_SPEAKING" in str(sent))
        await session.tell("interrupt")
        await wire.until_helper("speech_finished")
        await _close(session, wire)

    _assert_told(wire, session)
    assert [finished["interrupted"] for finished in wire.of_helper("speech_finished")] == [True]


async def test_a_close_ends_the_speech_that_it_cuts(play: Play, wire_in: WireIn, room: str) -> None:
    async with wire_in(room) as wire, play(room) as session:
        await session.tell("hold")
        await wire.write("tell me all")
        await wire.until("agent_state_changed", lambda sent: "AS_SPEAKING" in str(sent))
        await _close(session, wire)
        finished = await wire.until_helper("speech_finished")

    assert finished.members["interrupted"] is True
    _assert_told(wire, session)


async def test_media_are_told_of_and_not_carried(play: Play, wire_in: WireIn, room: str) -> None:
    url = "https://example.com/cat.png"
    content = [
        "look",
        {"image": url},
        {"image": "data:image/png;base64,iVBORw0KGgo="},
        {"frame": [64, 48]},
        {"audio": "and listen"},
    ]
    async with wire_in(room) as wire, play(room) as session:
        await session.tell("ask", content=content)
        asked = await wire.until_helper(
            "conversation_item_added", lambda told: told["item"].get("role") == "user"
        )
        await _close(session, wire)

    _assert_told(wire, session)
    text, image, inline, frame, audio = asked.members["item"]["content"]
    assert text == "look"
    assert (image["type"], image["image"]) == ("image_content", url)
    assert (inline["image"], inline["mime_type"]) == (None, "image/png")
    assert (frame["type"], frame["image"]) == ("image_content", None)
    assert audio == {"type": "audio_content", "transcript": "and listen"}


# Errors


async def test_errors_are_told_without_the_providers_answer(
    play: Play, wire_in: WireIn, room: str
) -> None:
    """One that the next attempt makes good, and one that ends the turn."""
    refused = {"error": {"status_code": 503, "body": {"said": "a secret"}}}
    async with wire_in(room) as wire, play(room) as session:
        await session.script("llm", refused, {"text": "Here."}, {"error": "all is lost"})
        await wire.write("once")
        await wire.until_helper("speech_finished")
        await wire.write("twice")
        await wire.until_helper("error", lambda told: not told["error"]["recoverable"])
        await _close(session, wire)

    _assert_told(wire, session)
    made_good, final = wire.of_helper("error")
    assert made_good["source"] == {"model": "llm", "provider": "scripted"}
    assert made_good["error"] | {"timestamp": None} == {
        "type": "llm_error",
        "timestamp": None,
        "label": "tests.agent.scripted_models.ScriptedLLM",
        "recoverable": True,
        "message": "the provider is out of order",
        "exception": "APIStatusError",
        "status_code": 503,
    }
    assert (final["error"]["message"], final["error"]["recoverable"]) == ("all is lost", False)
    assert "secret" not in str([sent for sent in wire.sent if sent.by_helper])


async def test_the_fourth_error_in_a_row_closes(play: Play, wire_in: WireIn, room: str) -> None:
    async with wire_in(room) as wire, play(room) as session:
        for number in range(4):
            await session.script("llm", {"error": f"failure {number}"})
            await wire.write(f"attempt {number}")
            await wire.until_helper("error", count=number + 1)
        close = await wire.until_helper("close")
    _assert_told(wire, session)

    assert close.members["reason"] == "error"
    assert close.members["error"]["message"] == "failure 3"
    assert len(wire.of_helper("error")) == 4


async def test_an_event_that_cannot_be_told_is_the_helpers_trouble_alone(
    play: Play, wire_in: WireIn, room: str
) -> None:
    """It is logged once, the framework's own form of it stands, and the agent goes on."""
    async with wire_in(room) as wire, play(room) as session:
        before = session.log().count("An event error could not be reported")
        for number in range(2):
            await session.script("llm", {"error": "unspeakable"})
            await wire.write(f"attempt {number}")
            await wire.until("error", count=number + 1)
        await wire.write("still there?")
        await wire.until_helper(
            "conversation_item_added", lambda told: told["item"].get("role") == "assistant"
        )
        await _close(session, wire)

    assert [sent.by_helper for sent in wire.sent if sent.kind == "error"] == [False, False]
    assert session.log().count("An event error could not be reported") == before + 1


# Models that take over


async def test_a_model_that_goes_and_comes_back_is_told(
    play: Play, wire_in: WireIn, room: str
) -> None:
    """No error of the session tells of it."""
    async with wire_in(room) as wire, play(room, fallback=True) as session:
        await session.script("llm", {"error": "connection"})
        await wire.write("hello")
        await wire.until_helper("availability_changed", lambda told: told["available"])
        await _close(session, wire)

    _assert_told(wire, session)
    gone, back = wire.of_helper("availability_changed")
    assert gone | {"created_at": None} == {
        "kind": "llm",
        "label": "tests.agent.scripted_models.ScriptedLLM",
        "model": "llm",
        "provider": "scripted",
        "available": False,
        "created_at": None,
    }
    assert (back["model"], back["available"]) == ("llm", True)


async def test_the_models_of_an_agent_that_takes_over_are_watched(
    play: Play, wire_in: WireIn, room: str
) -> None:
    async with wire_in(room) as wire, play(room) as session:
        await session.tell("hand_over", models=["own", "own-2"])
        await wire.until_helper(
            "conversation_item_added", lambda told: told["item"].get("new_agent_id") == "second"
        )
        await session.script("own", {"error": "connection"})
        await wire.write("hello")
        gone = await wire.until_helper("availability_changed")
        await _close(session, wire)

    _assert_told(wire, session)
    assert (gone.members["model"], gone.members["available"]) == ("own", False)


async def test_an_adapter_that_is_passed_in_is_watched(
    play: Play, wire_in: WireIn, room: str
) -> None:
    options = {"voice": True, "fallback": True, "wrapped": True}
    async with wire_in(room) as wire, play(room, **options) as session:
        await session.script("tts", {"error": "connection"})
        await wire.write("speak")
        dumb = await wire.until_helper("availability_changed")
        await _close(session, wire)

    assert (dumb.members["kind"], dumb.members["available"]) == ("tts", False)


# The end


async def test_a_close_by_who_leaves_is_told(play: Play, wire_in: WireIn, room: str) -> None:
    async with wire_in(room) as alice, play(room) as session:
        await alice.write("hello")
        await alice.until_helper("speech_finished")
        async with wire_in(room, "bob") as bob:
            await alice.leave()
            close = await bob.until_helper("close")

    assert close.members["reason"] == "participant_disconnected"
    assert close.members["error"] is None
    assert session.seen[-1].members["created_at"] == close.members["created_at"]


async def test_a_session_of_a_worker_is_told(work: Play, wire_in: WireIn, room: str) -> None:
    name = f"worked-{room}"
    async with work(name) as session, wire_in(room, agent_name=name) as wire:
        await session.listens()
        await wire.write("hello")
        await wire.until_helper("speech_finished")
        await _close(session, wire)

    _assert_told(wire, session)


# Bounds


async def test_what_is_large_is_cut(play: Play, wire_in: WireIn, room: str) -> None:
    """A text, and an event of many texts."""
    many = ["many " * 3_000] * 300
    async with wire_in(room) as wire, play(room) as session:
        await session.script("llm", {"text": "one"}, {"text": "two"})
        await session.tell("ask", content=["x" * 100_000])
        one = await wire.until_helper("conversation_item_added", lambda told: "x" in str(told))
        await session.tell("ask", content=many)
        two = await wire.until_helper("conversation_item_added", lambda told: "many" in str(told))
        await _close(session, wire)

    [text] = one.members["item"]["content"]
    assert text == "x" * 16_383 + "…"
    assert one.is_cut
    assert two.is_cut
    assert len(two.members["item"]["content"]) == 16
    assert two.size < LIMIT + 1_000
    assert not wire.sent[-1].is_cut


async def test_a_flood_is_told_in_part(play: Play, wire_in: WireIn, room: str) -> None:
    """The framework's own forms are all there; ours say how many of them are not, and close."""
    async with wire_in(room) as wire, play(room) as session:
        await session.tell("flood", events=400)
        await _close(session, wire)

    errors = wire.of_helper("error")
    left_out = sum(sent.left_out for sent in wire.sent)
    assert len(errors) >= 280
    assert len(errors) + left_out == 400
    assert left_out > 0
    assert len([sent for sent in wire.sent if sent.kind == "error"]) == 400 + len(errors)


# How it is called


async def test_a_second_call_does_nothing(play: Play, wire_in: WireIn, room: str) -> None:
    async with wire_in(room) as wire, play(room) as session:
        await session.tell("report")
        await wire.write("hello")
        await wire.until_helper("speech_finished")
        await _close(session, wire)

    _assert_told(wire, session)


async def test_a_late_call_leaves_the_frameworks_own_forms(
    play: Play, wire_in: WireIn, room: str
) -> None:
    """They would come first, and nobody could tell that a happening comes twice."""
    async with wire_in(room) as wire, play(room, helper=False) as session:
        await session.tell("report")
        await wire.write("hello")
        await wire.until_helper("speech_finished")
        await _close(session, wire)

    assert {sent.kind for sent in wire.sent if sent.by_helper} == {
        "speech_created",
        "speech_finished",
        "metrics_collected",
        "close",
    }
    assert [sent.kind for sent in wire.sent] == [seen.kind for seen in session.seen]


# Spoken


async def _is_heard(wire: SessionWire, session: PlayedSession) -> None:
    """The tone is on, and the agent has noticed."""
    wire.is_loud = True
    await session.sees("user_state_changed", lambda to: to["new_state"] == "speaking")


async def test_a_spoken_turn_is_told(play: Play, wire_in: WireIn, room: str) -> None:
    async with wire_in(room, voice=True) as wire, play(room, voice=True) as session:
        await _is_heard(wire, session)
        await session.script(
            "stt",
            {"type": "interim_transcript", "text": "how"},
            {"type": "final_transcript", "text": "how are you", "speaker_id": "S1"},
            {"type": "recognition_usage"},
        )
        wire.is_loud = False
        await wire.until_helper("speech_finished")
        await wire.until_helper("metrics_collected", _is_of_vad)
        await _close(session, wire)

    heard = wire.of_helper("user_input_transcribed")
    assert ("how", False) in [(told["transcript"], told["is_final"]) for told in heard]
    final = next(told for told in heard if told["is_final"])
    assert (final["transcript"], final["language"], final["speaker_id"]) == (
        "how are you",
        "en",
        "S1",
    )
    kinds = {"stt_metrics", "llm_metrics", "tts_metrics", "vad_metrics", "eou_metrics"}
    assert {told["metrics"]["type"] for told in wire.of_helper("metrics_collected")} == kinds
    assert len([told for told in wire.of_helper("metrics_collected") if _is_of_vad(told)]) == 1
    _assert_told(wire, session)


async def test_an_overlap_is_told_without_its_audio(play: Play, wire_in: WireIn, room: str) -> None:
    async with (
        wire_in(room, voice=True) as wire,
        play(room, voice=True, bargein="interruption") as session,
    ):
        await session.script("tts", {"seconds": 5})
        await session.tell("say", text="a long story")
        await wire.until("agent_state_changed", lambda sent: "AS_SPEAKING" in str(sent))
        wire.is_loud = True
        await wire.until_helper("overlapping_speech")
        await _close(session, wire)

    _assert_told(wire, session)
    overlap = wire.of_helper("overlapping_speech")[0]
    assert (overlap["is_interruption"], overlap["probability"]) == (True, 0.75)
    assert overlap["num_requests"] >= 3
    assert overlap["overlap_started_at"] < overlap["detected_at"]
    assert overlap["speech_input"] is None


async def test_speech_that_is_not_understood_is_told(
    play: Play, wire_in: WireIn, room: str
) -> None:
    async with wire_in(room, voice=True) as wire, play(room, voice=True) as session:
        await _is_heard(wire, session)
        wire.is_loud = False
        timeout = await wire.until_helper("user_transcription_timeout")
        await _close(session, wire)

    assert timeout.members["speech_duration"] > 0
    _assert_told(wire, session)


async def test_errors_of_ears_and_voice_are_told(play: Play, wire_in: WireIn, room: str) -> None:
    async with wire_in(room, voice=True) as wire, play(room, voice=True) as session:
        await session.script("stt", {"error": "connection"})
        deaf = await wire.until_helper("error", lambda told: told["error"]["type"] == "stt_error")
        await session.script("tts", {"error": {"status_code": 401, "body": None}})
        await wire.write("speak")
        dumb = await wire.until_helper("error", lambda told: told["error"]["type"] == "tts_error")
        await _close(session, wire)

    assert (deaf.members["error"]["recoverable"], deaf.members["source"]["model"]) == (True, "stt")
    assert (dumb.members["error"]["recoverable"], dumb.members["source"]["model"]) == (False, "tts")
    _assert_told(wire, session)


async def test_ears_and_a_voice_that_take_over_are_told(
    play: Play, wire_in: WireIn, room: str
) -> None:
    async with (
        wire_in(room, voice=True) as wire,
        play(room, voice=True, fallback=True) as session,
    ):
        await session.script("stt", {"error": "connection"})
        deaf = await wire.until_helper("availability_changed")
        await session.script("stt", {"type": "final_transcript", "text": "here again"})
        hears = await wire.until_helper("availability_changed", count=2)
        await session.script("tts", {"error": "connection"})
        await wire.write("speak")
        dumb = await wire.until_helper("availability_changed", lambda told: told["kind"] == "tts")
        speaks = await wire.until_helper(
            "availability_changed", lambda told: told["kind"] == "tts" and told["available"]
        )
        await _close(session, wire)

    changes = [one.members for one in (deaf, hears, dumb, speaks)]
    assert [(one["kind"], one["model"], one["available"]) for one in changes] == [
        ("stt", "stt", False),
        ("stt", "stt", True),
        ("tts", "tts", False),
        ("tts", "tts", True),
    ]
