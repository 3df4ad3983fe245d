"""What event streams tell of a played session, beside what handlers inside the agent saw."""

import asyncio
from typing import Any

from tests.agent.played_session import PlayedSession, Seen
from tests.agent.running_agent import EVENT_SECONDS
from tests.running_gateway import EventStream, ServerSentEvent

OF_HELPER = {
    "close",
    "metrics_collected",
    "speech_created",
    "speech_finished",
    "user_transcription_timeout",
}
"""What the framework itself does not send."""

WITHIN_CLOCK = 1e-5
"""Seconds that the wire's times may lose."""


def name_of(event: ServerSentEvent) -> str:
    return event.name.removeprefix("agent.")


async def told_until(events: EventStream, name: str, **members: Any) -> list[ServerSentEvent]:
    """All of agents until the first of that name that has these members, others' left out."""
    told: list[ServerSentEvent] = []
    try:
        async with asyncio.timeout(EVENT_SECONDS):
            while True:
                event = await events.next(EVENT_SECONDS)
                if event.name.startswith("agent."):
                    told.append(event)
                    if name_of(event) == name and members.items() <= event.data.items():
                        return told
    except TimeoutError as error:
        raise AssertionError(f"No {name} of {members} after {[*map(name_of, told)]}") from error


async def told_to_the_end(session: PlayedSession, events: EventStream) -> list[ServerSentEvent]:
    """What is told until the session has closed, which it is made to."""
    await session.tell("close")
    return await told_until(events, "close")


def of(told: list[ServerSentEvent], name: str) -> list[dict[str, Any]]:
    return [event.data for event in told if name_of(event) == name]


def items(told: list[ServerSentEvent], **members: Any) -> list[dict[str, Any]]:
    """Of the conversation, those that have these members."""
    added = [item["item"] for item in of(told, "conversation_item_added")]
    return [item for item in added if members.items() <= item.items()]


def assert_told(told: list[ServerSentEvent], session: PlayedSession) -> None:
    """All that handlers saw, in their order and with the members that they saw."""
    events = [event for event in told if not _is_apart(name_of(event), event.data)]
    seen = [one for one in session.seen if not _is_apart(one.kind, one.members)]
    assert [name_of(event) for event in events] == [one.kind for one in seen]
    for event, one in zip(events, seen, strict=True):
        _assert_time(event.data, one)
        members = {name: value for name, value in one.members.items() if name != "created_at"}
        assert _holds(event.data, members), (event.data, members)


def assert_told_without_helper(told: list[ServerSentEvent], session: PlayedSession) -> None:
    """The same as far as it was followed, but for what the framework does not send; of members that it lacks,
    null or nothing."""
    seen = [one for one in session.seen if one.kind not in OF_HELPER][: len(told)]
    assert [name_of(event) for event in told] == [one.kind for one in seen]
    for event, one in zip(told, seen, strict=True):
        _assert_time(event.data, one)
        members = {name: value for name, value in one.members.items() if name != "created_at"}
        assert _agrees(event.data, members), (event.data, members)


def _is_apart(kind: str, members: dict[str, Any]) -> bool:
    """Callbacks of a speech that is done are called in no order; metrics of voice detection are told once in a
    while, and other models' availability is not the session's own."""
    apart = kind in ("availability_changed", "speech_finished")
    return apart or (kind == "metrics_collected" and members["metrics"]["type"] == "vad_metrics")


def _assert_time(told: dict[str, Any], one: Seen) -> None:
    if told["created_at_is"] == "happened":
        assert abs(told["created_at"] - one.members["created_at"]) < WITHIN_CLOCK


def _holds(whole: Any, part: Any) -> bool:
    """True when all members of `part` are in `whole`, too."""
    if isinstance(part, dict):
        return all(name in whole and _holds(whole[name], part[name]) for name in part)
    return bool(whole == part)


def _agrees(told: Any, seen: Any) -> bool:
    """True when nothing that is told is other than what was seen."""
    if told is None:
        return True
    if isinstance(seen, dict) and isinstance(told, dict):
        return all(_agrees(told.get(name), seen[name]) for name in seen)
    if isinstance(seen, list) and isinstance(told, list):
        return len(told) == len(seen) and all(map(_agrees, told, seen))
    if isinstance(seen, float) and isinstance(told, int | float):
        return abs(told - seen) < WITHIN_CLOCK
    return bool(told == seen)
