"""What agents tell of conversations, on event streams: what is said, what tools do, who speaks."""

import asyncio

import pytest

from tests.agent.told import (
    assert_told,
    assert_told_without_helper,
    items,
    of,
    told_to_the_end,
    told_until,
)
from tests.conftest import Play
from tests.running_gateway import RunningGateway, ServerSentEvent

CAT = "https://example.com/cat.png"

MEDIA = ["look", {"image": CAT}, {"frame": [64, 48]}, {"audio": "and listen"}]

TOOLS = (
    {"calls": [{"name": "look_up", "query": "this"}, {"name": "fail"}]},
    {"text": "Both are done."},
)

LONG_TOOL = {"calls": [{"name": "search_long", "query": "that"}]}

LISTENING = {"old_state": "speaking", "new_state": "listening"}


# What is said


async def test_media_of_a_message_are_told_of(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    """An image by its address, sound by what was said; the rest by its place."""
    async with gateway.agent_events(room, "alice") as events, play(room) as session:
        await session.tell("ask", content=MEDIA)
        told = await told_until(events, "speech_finished")
        told += await told_to_the_end(session, events)

    assert_told(told, session)
    [asked] = items(told, role="user")
    text, image, frame, audio = asked["content"]
    assert text == "look"
    assert (image["type"], image["image"]) == ("image_content", CAT)
    assert (frame["type"], frame["image"]) == ("image_content", None)
    assert audio == {"type": "audio_content", "transcript": "and listen"}


async def test_without_the_helper_the_text_of_a_message_is_told(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room, helper=False) as session:
        await session.tell("ask", content=MEDIA)
        told = await told_until(events, "agent_state_changed", **LISTENING)

    assert_told_without_helper(told, session)
    assert [item["content"] for item in items(told, role="user")] == [["look"]]


async def test_a_greeting_before_the_first_turn_is_told(
    gateway: RunningGateway, play: Play, room: str
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room) as session:
        await session.tell("say", text="Welcome")
        told = await told_until(events, "speech_finished")
        told += await told_to_the_end(session, events)

    assert_told(told, session)
    [created] = of(told, "speech_created")
    [finished] = of(told, "speech_finished")
    assert (created["source"], created["user_initiated"]) == ("say", True)
    assert (finished["speech_id"], finished["interrupted"]) == (created["speech_id"], False)
    assert [item["content"] for item in items(told, type="message")] == [["Welcome"]]


async def test_an_interruption_is_told(gateway: RunningGateway, play: Play, room: str) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room) as session:
        await session.tell("hold")
        await gateway.post(room, "alice", "tell me all")
        told = await told_until(events, "agent_state_changed", new_state="speaking")
        await session.tell("interrupt")
        told += await told_until(events, "speech_finished")
        told += await told_to_the_end(session, events)

    assert_told(told, session)
    assert [each["interrupted"] for each in of(told, "speech_finished")] == [True]
    [answer] = items(told, role="assistant")
    assert (answer["interrupted"], answer["content"]) == (True, ["You "])


# What tools do


@pytest.mark.parametrize("helper", [True, False])
async def test_tools_are_told_with_what_came_of_them(
    gateway: RunningGateway, play: Play, room: str, helper: bool
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room, helper=helper) as session:
        await session.script("llm", *TOOLS)
        await gateway.post(room, "alice", "two, please")
        told = await told_until(events, "agent_state_changed", **LISTENING)
        if helper:
            told += await told_to_the_end(session, events)

    (assert_told if helper else assert_told_without_helper)(told, session)
    [executed] = of(told, "function_tools_executed")
    pairs = [(each["function_call"], each["function_call_output"]) for each in executed["zipped"]]
    assert [(call["name"], output["output"], output["is_error"]) for call, output in pairs] == [
        ("look_up", "found this", False),
        ("fail", "it does not work", True),
    ]
    assert [call for call, _ in pairs] == executed["function_calls"]
    assert [output for _, output in pairs] == executed["function_call_outputs"]
    statuses = [each["update"].get("status") for each in of(told, "tool_execution_updated")]
    assert sorted(filter(None, statuses)) == ["done", "error"]


@pytest.mark.parametrize("helper", [True, False])
async def test_a_tool_that_answers_before_it_has_ended_is_told_as_it_goes(
    gateway: RunningGateway, play: Play, room: str, helper: bool
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room, helper=helper) as session:
        await session.script("llm", LONG_TOOL)
        await gateway.post(room, "alice", "a long one")
        told: list[ServerSentEvent] = []
        while not told or told[-1].data["update"].get("status") != "completed":
            told += await told_until(events, "tool_execution_updated")
        if helper:
            told += await told_to_the_end(session, events)

    (assert_told if helper else assert_told_without_helper)(told, session)
    updates = [each["update"] for each in of(told, "tool_execution_updated")]
    assert [update["type"] for update in updates] == [
        "tool_call_started",
        "tool_call_updated",
        "tool_call_ended",
        "tool_reply_updated",
        "tool_reply_updated",
    ]
    _, searching, found, scheduled, completed = updates
    assert searching["message"] == "searching that"
    assert (found["message"], found["status"]) == ("found that in the end", "done")
    assert (scheduled["status"], completed["status"]) == ("scheduled", "completed")
    assert scheduled["update_ids"] == completed["update_ids"] == [found["id"]]


# Who speaks


@pytest.mark.parametrize("helper", [True, False])
async def test_a_handoff_is_told(
    gateway: RunningGateway, play: Play, room: str, helper: bool
) -> None:
    async with gateway.agent_events(room, "alice") as events, play(room, helper=helper) as session:
        await session.tell("hand_over", models=["own"])
        told: list[ServerSentEvent] = []
        while not items(told, new_agent_id="second"):
            told += await told_until(events, "conversation_item_added")
        if helper:
            told += await told_to_the_end(session, events)

    (assert_told if helper else assert_told_without_helper)(told, session)
    handoffs = [
        (item["old_agent_id"], item["new_agent_id"]) for item in items(told, type="agent_handoff")
    ]
    assert handoffs == [(None, "first"), ("first", "second")]


async def test_two_agents_are_told_apart(gateway: RunningGateway, play: Play, room: str) -> None:
    """Each in its own order, and with its own identity."""
    async with (
        gateway.agent_events(room, "alice") as events,
        play(room) as one,
        play(room, identity="other") as other,
    ):
        await asyncio.gather(one.tell("say", text="one"), other.tell("say", text="other"))
        told: list[ServerSentEvent] = []
        while len(of(told, "speech_finished")) < 2:
            told += await told_until(events, "speech_finished")
        for session in (one, other):
            told += await told_to_the_end(session, events)

    for identity, session in (("agent", one), ("other", other)):
        own = [each for each in told if each.data["participant_identity"] == identity]
        assert_told(own, session)
