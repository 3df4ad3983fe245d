"""The rule of a turn, without anybody who waits for it."""

import json
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from gateway.turn import ACCEPTED_WITHIN, MOST_HELD, MOST_KEPT, QUIET, STREAMS_WITHIN, Outcome, Turn

Event = dict[str, Any]

T = 1_795_000_000.0
"""When the agent took the text, by its clock."""

FRAME = b"frame"


def _turn(text: str = "hello", **options: Any) -> Turn:
    return Turn("agent", text, "listening", True, **{"now": 0.0, "limit": 100.0, **options})


def _agent(kind: str, at: float = 0.0, **members: Any) -> Event:
    return {
        "type": f"agent.{kind}",
        "participant_identity": "agent",
        "created_at": T + at,
        "created_at_is": "happened",
        **members,
    }


def _item(role: str, text: str, at: float = 0.0, **more: Any) -> Event:
    item = {"type": "message", "id": f"{role}-{text}", "role": role, "content": [text], **more}
    return _agent("conversation_item_added", at, item=item)


def _state(old: str, new: str, at: float) -> Event:
    return _agent("agent_state_changed", at, old_state=old, new_state=new)


def _stream(kind: str, stream_id: str, at: float = 0.0, **members: Any) -> Event:
    told: Event = {
        "type": f"stream.{kind}",
        "participant_identity": "agent",
        "stream_id": stream_id,
    }
    if kind == "opened":
        told["timestamp"] = int((T + at) * 1000)
    if kind == "closed":
        told["complete"] = True
    return {**told, **members}


def _text(stream_id: str, text: str, at: float) -> list[Event]:
    chunks = [
        _stream("chunk", stream_id, index=number, text=word)
        for number, word in enumerate(text.split(" "))
    ]
    return [_stream("opened", stream_id, at), *chunks, _stream("closed", stream_id)]


def _fed(turn: Turn, events: list[Event], now: float = 0.0) -> list[int]:
    """The numbers of the events that are shown, in the order in which they are."""
    shown = []
    for number, event in enumerate(events):
        shown += [int(frame) for frame in turn.feed(event, b"%d" % number, now)]
    return shown


PLAIN = [
    _item("user", "hello"),
    _state("listening", "thinking", 0.01),
    _state("thinking", "speaking", 0.03),
    _item("assistant", "Good day", 0.05),
    _state("speaking", "listening", 0.06),
]

WITH_TOOLS = [
    _item("user", "hello"),
    _state("listening", "thinking", 0.01),
    _agent(
        "tool_execution_updated",
        0.02,
        update={"type": "tool_call_started", "function_call": {"call_id": "1", "name": "look"}},
    ),
    _state("thinking", "speaking", 0.03),
    _item("assistant", "One moment", 0.04),
    _state("speaking", "listening", 0.05),
    _agent(
        "tool_execution_updated",
        0.06,
        update={"type": "tool_call_ended", "id": "1_final", "call_id": "1", "message": "found"},
    ),
    _agent(
        "tool_execution_updated",
        0.07,
        update={"type": "tool_reply_updated", "update_ids": ["1_final"], "status": "scheduled"},
    ),
    _state("listening", "speaking", 0.08),
    _item("assistant", "Here it is", 0.09),
    _state("speaking", "listening", 0.10),
    _agent(
        "tool_execution_updated",
        0.11,
        update={"type": "tool_reply_updated", "update_ids": ["1_final"], "status": "completed"},
    ),
]


@pytest.mark.parametrize(
    ("told", "texts"),
    [
        (PLAIN, [("a", "Good day", 0.03)]),
        (WITH_TOOLS, [("a", "One moment", 0.03), ("b", "Here it is", 0.08)]),
    ],
    ids=["plain", "tools"],
)
def test_words_and_what_is_told_of_them_may_come_in_any_order(
    told: list[Event], texts: list[tuple[str, str, float]]
) -> None:
    """Each way keeps its own; between the two there is none. Words may be late by less than is waited."""
    for seed in range(500):
        _check_mixed(told, texts, random.Random(seed))  # noqa: S311 - a test's


def _check_mixed(
    told: list[Event], texts: list[tuple[str, str, float]], draw: random.Random
) -> None:
    greeting = _text("greeting", "Welcome to you", -0.5)
    words = [*greeting, *(event for text in texts for event in _text(*text))]
    rest, mixed = list(told), []
    while rest or words:
        from_words = bool(words) and (not rest or draw.random() < 0.5)
        mixed.append((words if from_words else rest).pop(0))
    turn = _turn()

    shown = [mixed[number] for number in _fed(turn, mixed)]

    assert turn.outcome is Outcome.COMPLETED
    assert turn.result()["text"] == "\n".join(text for _, text, _ in texts)
    assert not [event for event in shown if event.get("stream_id") == "greeting"]
    assert [event for event in shown if event["type"].startswith("agent.")] == told
    last = mixed.index(shown[-1])
    of_answer = [event for event in mixed[: last + 1] if event.get("stream_id") in ("a", "b")]
    assert [event for event in shown if event["type"].startswith("stream.")] == of_answer


def test_words_that_do_not_come_are_waited_for_and_not_for_ever() -> None:
    turn = _turn()
    _fed(turn, PLAIN, now=1.0)

    assert turn.outcome is None
    assert turn.due() == pytest.approx(1.0 + STREAMS_WITHIN)
    turn.look(1.0 + STREAMS_WITHIN / 2)
    assert turn.outcome is None
    turn.look(1.0 + STREAMS_WITHIN)
    assert turn.outcome is Outcome.COMPLETED


def test_with_the_helper_a_turn_ends_when_its_speeches_are_done() -> None:
    """A pause is none of the end, though the agent listens in it."""
    turn = _turn()
    _fed(
        turn,
        [
            _agent("speech_created", -0.01, speech_id="s1"),
            *PLAIN,
            *_text("a", "Good day", 0.03),
        ],
    )
    assert turn.outcome is None
    _fed(turn, [_agent("speech_finished", 0.07, speech_id="other", interrupted=True)])
    assert turn.outcome is None
    _fed(turn, [_agent("speech_finished", 0.07, speech_id="s1", interrupted=False)])
    assert turn.outcome is Outcome.COMPLETED


def test_without_it_a_pause_is_told_by_nothing_having_been_said() -> None:
    turn = _turn()
    _fed(
        turn,
        [
            *PLAIN[:3],
            _state("speaking", "listening", 0.04),
            *_text("a", "Good day", 0.03),
        ],
    )
    assert turn.outcome is None
    _fed(turn, [_state("listening", "speaking", 0.05), *PLAIN[3:]])
    assert turn.outcome is Outcome.COMPLETED


def test_what_is_never_told_is_not_waited_for() -> None:
    """A tool's update that nobody is to hear has no reply."""
    turn = _turn()
    silent = {"type": "tool_call_updated", "id": "1_update_1", "call_id": "1", "silent": True}
    native = {"type": "tool_call_updated", "id": "2_update_1", "call_id": "2"}
    for update in (silent, native):
        _fed(turn, PLAIN[:1] if update is silent else [])
        _fed(turn, [_agent("tool_execution_updated", update=update)])
    _fed(turn, [*PLAIN[1:], *_text("a", "Good day", 0.03)], now=5.0)

    assert turn.outcome is None
    assert turn.due() == 5.0 + QUIET
    turn.look(5.0 + QUIET)
    assert turn.outcome is Outcome.COMPLETED


def test_errors_count_from_the_sending_on() -> None:
    turn = _turn()
    error = {"type": "llm_error", "recoverable": False, "message": "broken"}
    _fed(
        turn,
        [
            _agent("error", -0.01, error=error, source=None),
            *PLAIN[:2],
            _state("thinking", "listening", 0.02),
        ],
    )

    assert turn.outcome is Outcome.FAILED
    assert turn.result()["errors"] == [{"error": error, "source": None}]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ({"type": "llm_error", "recoverable": True}, Outcome.COMPLETED),
        ({"type": "stt_error", "recoverable": False}, Outcome.COMPLETED),
        ({"type": "tts_error", "recoverable": False}, Outcome.FAILED),
        ({"type": "realtime_model_error", "recoverable": False}, Outcome.FAILED),
        ({"type": None, "recoverable": None}, Outcome.COMPLETED),
    ],
)
def test_only_what_an_agent_does_not_recover_from_fails_a_turn(
    error: dict[str, Any], outcome: Outcome
) -> None:
    turn = _turn()
    told = _agent("error", 0.02, error=error, source=None)
    _fed(turn, [*PLAIN[:2], told, *_text("a", "Good day", 0.03), *PLAIN[2:]])

    assert turn.outcome is outcome


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (_item("user", "wait", 0.04), Outcome.SUPERSEDED),
        (_agent("close", 0.04, inferred=False), Outcome.CLOSED),
        (_agent("close", 0.04, inferred=True), Outcome.LEFT),
    ],
)
def test_what_ends_a_turn_in_the_middle(end: Event, outcome: Outcome) -> None:
    turn = _turn()
    shown = _fed(turn, [*PLAIN[:3], *_text("a", "Good", 0.03), end, *PLAIN[3:]])

    assert turn.outcome is outcome
    assert turn.result()["text"] == "Good"
    assert shown == list(range(7))


def test_an_interruption_is_told_by_the_item() -> None:
    turn = _turn()
    _fed(turn, [*PLAIN[:3], *_text("a", "Goo", 0.03), _item("assistant", "Goo", interrupted=True)])
    _fed(turn, PLAIN[-1:])

    assert turn.outcome is Outcome.INTERRUPTED


def test_other_agents_and_what_is_said_before_are_none_of_it() -> None:
    turn = _turn()
    other = [{**event, "participant_identity": "other"} for event in PLAIN]
    shown = _fed(turn, [*other, _item("user", "something else"), *PLAIN])

    assert shown == [6, 7, 8, 9, 10]


def test_what_the_agent_did_before_is_none_of_it_and_costs_nothing() -> None:
    """It greets, and the text cuts that short."""
    turn = _turn()
    used = {"type": "llm_metrics", "completion_tokens": 7}
    shown = _fed(
        turn,
        [
            _agent("speech_created", -0.3, speech_id="greeting"),
            _agent("metrics_collected", -0.2, metrics=used),
            _item("assistant", "Welcome", -0.1, interrupted=True),
            _state("speaking", "listening", -0.1),
            _agent("speech_finished", -0.1, speech_id="greeting", interrupted=True),
            _agent("speech_created", 0.0, speech_id="answer"),
            *PLAIN,
            *_text("a", "Good day", 0.03),
            _agent("speech_finished", 0.07, speech_id="answer", interrupted=False),
        ],
    )

    assert shown == list(range(5, 16))
    assert turn.outcome is Outcome.COMPLETED
    assert (turn.result()["text"], turn.result()["usage"]) == ("Good day", None)


def test_what_the_agent_does_for_another_until_it_takes_the_text_is_none_of_it() -> None:
    error = {"type": "llm_error", "recoverable": False, "message": "broken"}
    used = {"type": "llm_metrics", "completion_tokens": 7, "metadata": {}}
    busy = [
        _agent("speech_created", -0.9, speech_id="of another"),
        _called("of another"),
        _tool("tool_call_started", function_call={"call_id": "of another"}),
        _agent("metrics_collected", -0.8, metrics=used),
        _agent("error", -0.7, error=error, source=None),
        *_text("of another", "Good evening", -0.6),
        _agent("speech_created", -0.5, speech_id="s1"),
        _agent("speech_finished", -0.4, speech_id="of another", interrupted=True),
        _state("speaking", "listening", -0.3),
        _agent("user_state_changed", -0.1),
    ]
    answer = [
        *PLAIN[:3],
        *_text("a", "Good day", 0.03),
        _state("speaking", "listening", 0.06),
        _agent("speech_finished", 0.07, speech_id="s1", interrupted=False),
    ]
    turn = Turn("agent", "hello", "speaking", True, now=0.0, limit=100.0)
    events = [*busy, *answer]
    shown = [events[number] for number in _fed(turn, events)]
    turn.look(STREAMS_WITHIN)

    assert turn.result() == {
        "outcome": "completed",
        "text": "Goodday",
        "tool_calls": [],
        "usage": None,
        "errors": [],
        "truncated": False,
    }
    assert shown == [busy[-4], *answer]


def test_a_text_that_the_helper_cut_is_known_by_its_beginning() -> None:
    text = "word " * 100
    turn = _turn(text)
    _fed(turn, [_item("user", text[:255] + "…")])

    assert turn.has_begun


@pytest.mark.parametrize(("is_said", "told"), [(True, "whole"), (False, "cut")])
def test_an_answer_that_the_helper_cut_is_told_whole_or_as_truncated(
    is_said: bool, told: str
) -> None:
    text = "word" * 500
    cut = text[:255] + "…"
    turn = _turn()
    said = _text("a", text, 0.03) if is_said else []
    _fed(turn, [*PLAIN[:3], *said, _item("assistant", cut), PLAIN[-1]])
    turn.look(QUIET)

    assert turn.result()["text"] == {"whole": text, "cut": cut}[told]
    assert turn.result()["truncated"] is (told == "cut")


def test_an_agent_that_is_busy_is_given_its_time() -> None:
    turn = Turn("agent", "hello", "speaking", False, now=0.0, limit=100.0)
    assert turn.due() == 100.0
    _fed(turn, [_state("speaking", "listening", 0.0)], now=50.0)
    assert turn.due() == 50.0 + ACCEPTED_WITHIN
    turn.look(50.0 + ACCEPTED_WITHIN)
    assert turn.outcome is Outcome.NOT_ACCEPTED


def test_what_it_holds_is_bounded_before_it_begins_and_afterwards() -> None:
    turn = _turn()
    frame = b"x" * (MOST_HELD // 4)
    for number in range(10):
        assert turn.feed(_agent("availability_changed", number=number), frame, 0.0) == []
    assert len(turn.feed(PLAIN[0], FRAME, 0.0)) <= 5
    for _ in range(10):
        _fed(turn, [_item("assistant", "y" * (MOST_KEPT // 4))])
    result = turn.result()

    assert result["truncated"]
    assert len(result["text"].replace("\n", "")) <= MOST_KEPT


LONG = "z" * 50_000


@pytest.mark.parametrize(
    "told",
    [
        lambda n: _agent("speech_created", speech_id=f"{n}{LONG}"),
        lambda n: _agent("error", error={}, source={"label": f"{n}{LONG}"}),
        lambda n: _tool("tool_call_started", function_call={"call_id": f"{n}{LONG}"}),
        lambda n: _tool("tool_call_updated", id=f"{n}{LONG}", call_id="1"),
        lambda n: _tool("tool_call_ended", id="1", call_id=f"{n}{LONG}", message="done"),
        lambda n: _called(f"{n}", is_error=LONG + str(n)),
        lambda n: _stream("opened", f"{n}", 0.1),
    ],
    ids=[
        "speeches",
        "sources of errors",
        "tools",
        "replies",
        "outputs",
        "forms of a member",
        "streams",
    ],
)
def test_whatever_an_agent_tells_however_often_is_held_within_bounds(
    told: Callable[[int], Event],
) -> None:
    turn = _turn()
    _fed(turn, PLAIN[:2])
    tracemalloc.start()
    for number in range(10_000):
        turn.feed(told(number), FRAME, 0.0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < 1_000_000
    assert len(json.dumps(turn.result())) < 2 * MOST_KEPT


def test_short_events_are_held_within_bounds_too_until_it_begins() -> None:
    turn = _turn()
    tracemalloc.start()
    for number in range(20_000):
        event = _agent("user_state_changed", number=number)
        turn.feed(event, json.dumps(event).encode(), 0.0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < 2 * MOST_HELD


def test_a_long_answer_in_short_pieces_is_told_whole() -> None:
    turn = _turn()
    words = " ".join(["word"] * 20_000)
    _fed(turn, [*PLAIN[:3], *_text("a", words, 0.03), _state("speaking", "listening", 0.06)])
    turn.look(QUIET)

    assert turn.result()["text"] == words.replace(" ", "")
    assert not turn.result()["truncated"]


def _tool(kind: str, **update: Any) -> Event:
    return _agent("tool_execution_updated", update={"type": kind, **update})


def _called(call_id: str, **output: Any) -> Event:
    pair = {
        "function_call": {"call_id": call_id, "name": "look", "arguments": "{}"},
        "function_call_output": {"call_id": call_id, "output": "", **output},
    }
    return _agent("function_tools_executed", zipped=[pair])
