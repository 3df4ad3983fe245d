"""Turns of real sessions: a text is posted, and what its agent answers is read, in one request."""

import asyncio
from typing import Any

import httpx
import pytest

from gateway import turn as turn_rule
from tests.conftest import Play
from tests.guests import guest
from tests.running_gateway import EventStream, RunningGateway, ServerSentEvent

Steps = list[dict[str, Any]]

LOOK_UP = {"name": "look_up", "query": "x"}
SEARCH = {"name": "search_long", "query": "x"}

SCRIPTS: dict[str, tuple[Steps, str, str, list[str]]] = {
    "plain": ([{"text": "Hello there"}], "completed", "Hello there", []),
    "a tool": (
        [{"calls": [LOOK_UP]}, {"text": "It is x."}],
        "completed",
        "It is x.",
        ["found x"],
    ),
    "a preamble": (
        [{"text": "Let me look.", "calls": [LOOK_UP]}, {"text": "It is x."}],
        "completed",
        "Let me look.\nIt is x.",
        ["found x"],
    ),
    "two rounds": (
        [{"calls": [LOOK_UP]}, {"calls": [LOOK_UP]}, {"text": "Both."}],
        "completed",
        "Both.",
        ["found x", "found x"],
    ),
    "a tool that fails": (
        [{"calls": [{"name": "fail"}]}, {"text": "It failed."}],
        "completed",
        "It failed.",
        ["it does not work"],
    ),
    "a deferred tool": (
        [{"calls": [SEARCH]}, {"text": "Searching."}, {"text": "Found it."}],
        "completed",
        "Searching.\nFound it.",
        ["found x in the end"],
    ),
    "a thoughtful model": (
        [{"text": "a b c d", "seconds": 0.5}],
        "completed",
        "a b c d",
        [],
    ),
    "silence": ([{"text": ""}], "agent_did_not_answer", "", []),
    "an error": ([{"error": "broken"}], "failed", "", []),
    "an error after some words": (
        [{"text": "Half of", "error": "broken"}],
        "failed",
        "Half of",
        [],
    ),
}


async def _ask(
    gateway: RunningGateway, room: str, text: str, identity: str = "alice", **query: str
) -> httpx.Response:
    return await gateway.client.post(
        f"/rooms/{room}/agent/turns",
        params=query,
        content=text,
        headers={
            **gateway.bearer(identity, room),
            "Content-Type": "text/plain",
            "Accept": "application/json",
        },
    )


@pytest.mark.parametrize("helper", [True, False], ids=["helper", "native"])
@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_turn_is_what_the_agent_answers_to_a_text(
    gateway: RunningGateway, play: Play, room: str, script: str, helper: bool
) -> None:
    steps, outcome, text, outputs = SCRIPTS[script]
    async with play(room, helper=helper) as session:
        await session.script("llm", *steps)
        first = await _ask(gateway, room, "hello")
        second = await _ask(gateway, room, "and you?")

    assert first.status_code == 200, first.text
    answer = first.json()
    assert (answer["outcome"], answer["text"]) == (outcome, text)
    assert [call["output"] for call in answer["tool_calls"]] == outputs
    assert [call["is_error"] for call in answer["tool_calls"]] == ["does not" in o for o in outputs]
    assert bool(answer["errors"]) is (outcome == "failed")
    assert answer["participant_identity"] == "agent"
    assert second.json()["text"] == "You said: and you?"
    if helper and outcome == "completed":
        (usage,) = answer["usage"]["model_usage"]
        assert usage["output_tokens"] == 7 * len(steps)
    elif not helper:
        assert answer["usage"] is None


@pytest.mark.parametrize("helper", [True, False], ids=["helper", "native"])
@pytest.mark.parametrize("text", ["word " * 4_000, "🙂" * 20_000], ids=["long", "large"])
async def test_long_texts_are_known_again_and_answered_whole(
    gateway: RunningGateway, play: Play, room: str, helper: bool, text: str
) -> None:
    """The helper cuts them, the more so the more bytes they have."""
    async with play(room, helper=helper):
        answer = (await _ask(gateway, room, text)).json()

    assert (answer["outcome"], answer["truncated"]) == ("completed", False)
    assert answer["text"] == f"You said: {text.strip()}"


class _Turn:
    """One that is streamed."""

    def __init__(self, events: list[ServerSentEvent]) -> None:
        self.events = events
        self.names = [event.name for event in events]

    @property
    def completed(self) -> dict[str, Any]:
        assert self.names[-1] == "agent.turn_completed"
        return self.events[-1].data

    @property
    def streamed(self) -> str:
        return "".join(e.data["text"] for e in self.events if e.name == "stream.chunk")


async def _all_of(events: EventStream) -> _Turn:
    told: list[ServerSentEvent] = []
    while not told or told[-1].name not in ("agent.turn_completed", "gateway.closing"):
        told.append(await events.next())
    await events.ends()
    return _Turn(told)


async def test_a_turn_is_streamed_as_it_goes(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with play(room) as session:
        await session.script("llm", {"calls": [LOOK_UP]}, {"text": "It is x."})
        async with gateway.turn(room, "alice", "hello") as events:
            headers = events.response.headers
            turn = await _all_of(events)
        # What comes after it is followed from where it ended.
        async with gateway.events(
            room, "alice", ("lk.transcription",), agent="1", last_event_id=events.last_event_id
        ) as after:
            await after.until("gateway.opened")
            await session.tell("say", text="Anything else?")
            later = [await after.next()]
            while later[-1].name != "stream.closed":
                later.append(await after.next())

    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store, no-transform"
    assert turn.names[0] == "agent.turn_started"
    assert turn.events[0].data["participant_identity"] == "agent"
    assert turn.streamed == "It is x. "
    told = [name for name in turn.names if name.startswith("agent.") and "speech" not in name]
    assert [name for name in told if "metrics" not in name and "usage" not in name] == [
        "agent.turn_started",
        "agent.conversation_item_added",
        "agent.agent_state_changed",
        "agent.tool_execution_updated",
        "agent.tool_execution_updated",
        "agent.function_tools_executed",
        "agent.agent_state_changed",
        "agent.conversation_item_added",
        "agent.agent_state_changed",
        "agent.turn_completed",
    ]
    assert turn.completed["outcome"] == "completed"
    assert turn.completed["stream_id"] == turn.events[0].data["stream_id"]
    sequence = [int(event.id.partition("-")[2]) for event in turn.events if event.id]
    assert sequence == sorted(sequence)
    assert "Anything else?" in "".join(e.data.get("text", "") for e in later)


async def test_a_greeting_is_none_of_the_turn(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room) as session:
        await session.tell("say", text="Welcome to the house")
        await events.until("agent.conversation_item_added")
        turn = await _ask(gateway, room, "hello")

    assert turn.json()["text"] == "You said: hello"


async def test_another_text_ends_a_turn(gateway: RunningGateway, play: Play, room: str) -> None:
    async with play(room) as session:
        await session.tell("hold")
        async with gateway.turn(room, "alice", "first") as events:
            await events.until("stream.chunk")
            await gateway.post(room, "alice", "second")
            await session.sees("speech_finished", lambda of: bool(of["interrupted"]))
            await session.tell("release")
            told = await events.until("agent.turn_completed")

    assert told.data["outcome"] in ("superseded", "interrupted")
    assert "second" not in told.data["text"]


async def test_an_interruption_ends_it(gateway: RunningGateway, play: Play, room: str) -> None:
    async with play(room) as session:
        await session.tell("hold")
        async with gateway.turn(room, "alice", "hello") as events:
            await events.until("stream.chunk")
            await session.tell("interrupt")
            told = await events.until("agent.turn_completed")

    assert told.data["outcome"] == "interrupted"


async def test_a_session_that_closes_ends_it(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with play(room) as session:
        await session.tell("hold")
        async with gateway.turn(room, "alice", "hello") as events:
            await events.until("stream.chunk")
            await session.tell("close")
            told = await events.until("agent.turn_completed")
        later = await _ask(gateway, room, "are you there?", agent_timeout="1")
        snapshot = await gateway.client.get(
            f"/rooms/{room}/agent", headers=gateway.bearer("alice", room)
        )

    assert told.data["outcome"] in ("agent_closed", "interrupted")
    assert (later.status_code, later.json()["code"]) == (409, "agent_closed")
    (agent,) = snapshot.json()["agents"]
    assert (agent["state"], agent["source"]) == ("closed", "helper")
    assert agent["close"]["reason"] == "user_initiated"


async def test_of_several_agents_one_is_to_be_named(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with (
        play(room, identity="one"),
        play(room, identity="two"),
        gateway.agent_events(room, "alice") as events,
    ):
        await events.until("gateway.opened")
        ambiguous = await _ask(gateway, room, "hello")
        named = await _ask(gateway, room, "hello", agent="two")

    assert (ambiguous.status_code, ambiguous.json()["code"]) == (409, "agent_ambiguous")
    assert "one, two" in ambiguous.json()["detail"]
    assert named.json()["participant_identity"] == "two"
    assert named.json()["text"] == "You said: hello"


async def test_turns_of_one_participant_wait_for_one_another(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with play(room) as session:
        await session.tell("hold")
        async with gateway.turn(room, "alice", "first") as events:
            await events.until("stream.chunk")
            rejected = await _ask(gateway, room, "now", while_running="reject")
            asking = [asyncio.create_task(_ask(gateway, room, text)) for text in ("two", "three")]
            await session.tell("release")
            first = await events.until("agent.turn_completed")
            others = [(await each).json() for each in asking]

    assert (rejected.status_code, rejected.json()["code"]) == (409, "turn_running")
    assert first.data["text"] == "You said: first"
    assert [other["text"] for other in others] == ["You said: two", "You said: three"]
    assert {other["outcome"] for other in others} == {"completed"}


async def test_a_client_that_goes_does_not_cancel_the_turn(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with play(room) as session, gateway.events(room, "alice", "lk.transcription") as events:
        await session.tell("hold")
        async with gateway.turn(room, "alice", "first") as gone:
            await gone.until("stream.chunk")
        second = asyncio.create_task(_ask(gateway, room, "second"))
        await session.tell("release")
        first = await events.text()
        answer = (await second).json()

    assert first.text == "You said: first "
    assert (answer["outcome"], answer["text"]) == ("completed", "You said: second")


async def test_a_turn_of_who_is_there_by_other_means(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with play(room), guest(gateway, room, "alice") as alice:
        await alice.sees("agent")
        turn = await _ask(gateway, room, "by HTTP")
        evicted = not alice.lost.empty()

    assert turn.json()["text"] == "You said: by HTTP"
    assert not evicted


async def test_a_text_that_the_agent_does_not_take_is_told_as_that(
    gateway: RunningGateway, play: Play, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens to the participant that was there first."""
    monkeypatch.setattr(turn_rule, "ACCEPTED_WITHIN", 1.0)
    async with (
        gateway.agent_events(room, "bob") as bob,
        play(room),
        gateway.agent_events(room, "alice") as alice,
    ):
        await bob.until("agent.agent_state_changed")
        await alice.until("gateway.opened")
        heard = await _ask(gateway, room, "hello", identity="bob")
        answer = await _ask(gateway, room, "hello")

    assert heard.json()["outcome"] == "completed"
    assert (answer.status_code, answer.json()["code"]) == (504, "not_accepted")
