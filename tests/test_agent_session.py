"""The messages of LiveKit Agents' wire, one by one, against their own description."""

from typing import Any

import pytest
from google.protobuf.message import Message
from livekit.protocol.agent_pb import agent_session as pb

from gateway.agent_session import Ignored
from gateway.agent_session.decoding import DECODERS, Decoder
from gateway.events import AgentEvent, members
from tests.agent_schemas import problems_of

EVENT = pb.AgentSessionEvent.DESCRIPTOR

EVENTS = [field.name for field in EVENT.oneofs_by_name["event"].fields]


def _decoded(**event: Any) -> AgentEvent:
    message = pb.AgentSessionMessage(event=pb.AgentSessionEvent(**event))
    decoded = Decoder().decode("agent", message.SerializeToString())
    assert isinstance(decoded, AgentEvent)
    return decoded


def _fill(message: Message) -> None:
    """Something in every field; of several of which there can be one, the last."""
    for field in message.DESCRIPTOR.fields:
        target = getattr(message, field.name)
        if field.is_repeated and field.message_type and field.message_type.GetOptions().map_entry:
            target["name"] = "word"
        elif field.is_repeated and field.message_type is not None:
            _fill(target.add())
        elif field.is_repeated:
            target.append("word")
        elif field.message_type is not None:
            target.SetInParent()
            _fill(target)
        elif field.enum_type is not None:
            setattr(message, field.name, field.enum_type.values[-1].number)
        else:
            setattr(message, field.name, "word" if field.type == field.TYPE_STRING else 1)


def _names(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(_names, value.values()))
    return set().union(*map(_names, value)) if isinstance(value, list) else set()


def test_every_event_of_the_wire_is_decoded_but_what_its_users_tell_one_another() -> None:
    assert set(EVENTS) - {"debug_message"} == set(DECODERS)


@pytest.mark.parametrize("name", DECODERS)
def test_what_an_event_carries_is_kept_and_nothing_is_lost(name: str) -> None:
    event = pb.AgentSessionEvent()
    body = getattr(event, name)
    body.SetInParent()
    _fill(body)
    decoded = _decoded(**{name: body})

    assert problems_of(members(decoded)) == []
    assert (decoded.type, decoded.participant_identity) == (f"agent.{name}", "agent")
    if name not in ("conversation_item_added", "error", "session_usage_updated"):
        carried = {field.name for field in body.DESCRIPTOR.fields}
        kinds = {"started", "call_updated", "ended", "reply_updated"}
        assert carried - kinds <= _names(decoded.members)


@pytest.mark.parametrize(
    "kind",
    [field.name for field in pb.ChatContext.ChatItem.DESCRIPTOR.oneofs_by_name["item"].fields],
)
def test_an_item_of_any_kind_is_kept(kind: str) -> None:
    item = pb.ChatContext.ChatItem()
    native = getattr(item, kind)
    native.SetInParent()
    _fill(native)
    event = _decoded(conversation_item_added={"item": item})
    made = event.members["item"]

    assert problems_of(members(event)) == []
    assert made["type"] == kind
    assert {field.name for field in native.DESCRIPTOR.fields} <= set(made)


@pytest.mark.parametrize(
    "kind", [field.name for field in pb.ModelUsage.DESCRIPTOR.oneofs_by_name["usage"].fields]
)
def test_the_usage_of_any_model_is_kept(kind: str) -> None:
    usage = pb.ModelUsage()
    native = getattr(usage, kind)
    native.SetInParent()
    _fill(native)
    event = _decoded(session_usage_updated={"usage": {"model_usage": [usage]}})
    (made,) = event.members["usage"]["model_usage"]

    assert problems_of(members(event)) == []
    assert made == {
        "type": f"{kind}_usage",
        **{field.name: made[field.name] for field in native.DESCRIPTOR.fields},
    }
    assert all(made.values())


def test_what_is_not_carried_is_null_and_never_made_up() -> None:
    event = _decoded(user_input_transcribed={"transcript": "hello", "is_final": True})

    assert event.created_at is None
    assert event.created_at_is is None
    assert event.members == {
        "transcript": "hello",
        "is_final": True,
        "language": None,
        "item_id": None,
        "speaker_id": None,
    }


def test_a_state_that_is_a_zero_on_the_wire_is_told() -> None:
    event = _decoded(agent_state_changed={"old_state": pb.AS_INITIALIZING, "new_state": pb.AS_IDLE})

    assert event.members == {"old_state": "initializing", "new_state": "idle"}


def test_times_say_what_they_are_of() -> None:
    at = {"seconds": 1_795_290_000, "nanos": 250_000_000}
    changed = _decoded(created_at=at, user_state_changed={"new_state": pb.US_AWAY})
    said = _decoded(created_at=at, conversation_item_added={})

    assert (changed.created_at, changed.created_at_is) == (1_795_290_000.25, "happened")
    assert (said.created_at, said.created_at_is) == (1_795_290_000.25, "sent")
    assert said.members == {"item": None}


def test_calls_and_their_outputs_are_zipped_and_those_without_the_other_are_kept() -> None:
    calls = [{"call_id": "1", "name": "a"}, {"call_id": "2", "name": "b"}]
    outputs = [{"call_id": "2", "is_error": True}, {"call_id": "3"}]
    event = _decoded(
        function_tools_executed={"function_calls": calls, "function_call_outputs": outputs}
    )

    told = [
        tuple(each and each["call_id"] for each in pair.values())
        for pair in event.members["zipped"]
    ]
    assert told == [("1", None), ("2", "2"), (None, "3")]
    assert event.members["function_calls"][0]["id"] is None
    assert event.members["function_call_outputs"][0]["id"] is None
    assert event.members["zipped"][1]["function_call_output"]["is_error"] is True


ERROR = (
    "type='llm_error' timestamp=1795290000.25 label='tests.ScriptedLLM'"
    " error=APIStatusError('too many requests', status_code=429, request_id='1',"
    " body={'error': 'key sk-secret is over its limit'}, retryable=True) recoverable=True"
)


def test_of_an_error_is_told_what_can_be_but_not_what_the_provider_answered() -> None:
    event = _decoded(error={"message": ERROR})

    assert event.members == {
        "error": {
            "type": "llm_error",
            "label": "tests.ScriptedLLM",
            "timestamp": 1_795_290_000.25,
            "recoverable": True,
            "exception": "APIStatusError",
            "status_code": None,
            "message": "too many requests",
        },
        "source": None,
    }


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Unknown error", "Unknown error"),
        ("it broke (body={'secret': 1})", "it broke"),
        ("x" * 5_000, "x" * 1_000),
    ],
)
def test_an_error_of_another_form_is_told_without_what_it_does_not_say(
    message: str, told: str
) -> None:
    assert _decoded(error={"message": message}).members["error"] == {
        **dict.fromkeys(("type", "label", "timestamp", "recoverable", "exception", "status_code")),
        "message": told,
    }


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xff", Ignored.MALFORMED),
        (b"", Ignored.OTHER),
        (pb.AgentSessionMessage(request={"ping": {}}).SerializeToString(), Ignored.OTHER),
        (pb.AgentSessionMessage(event={}).SerializeToString(), Ignored.UNKNOWN),
        (pb.AgentSessionMessage(event={"debug_message": {}}).SerializeToString(), Ignored.DEBUG),
    ],
)
def test_what_is_no_event_is_left_out_and_why_is_said(data: bytes, reason: Ignored) -> None:
    assert Decoder().decode("agent", data) is reason


# What the helper on the agent's side tells


def _from_helper(
    name: str, members: str, *, replaces: str | None = None, version: float = 1
) -> bytes:
    payload: dict[str, Any] = {"livekit-sse-gateway": version, "type": name, "members": members}
    if replaces is not None:
        payload["replaces"] = replaces
    debug = pb.DebugMessage()
    debug.payload.update(payload)
    return pb.AgentSessionMessage(event={"debug_message": debug}).SerializeToString()


def _native(transcript: str) -> bytes:
    heard = {"transcript": transcript, "is_final": True}
    return pb.AgentSessionMessage(event={"user_input_transcribed": heard}).SerializeToString()


def test_what_the_framework_does_not_send_comes_from_the_helper() -> None:
    close = _from_helper("close", '{"reason": "error", "error": null, "created_at": 12.5}')
    event = Decoder().decode("agent", close)

    assert event == AgentEvent(
        "agent.close",
        "agent",
        12.5,
        "happened",
        {"reason": "error", "error": None, "inferred": False},
    )


def test_one_happening_is_one_event_the_fuller_one() -> None:
    now = 0.0
    decoder = Decoder(lambda: now)
    fuller = _from_helper(
        "user_input_transcribed", '{"transcript": "a"}', replaces="user_input_transcribed"
    )
    told = [decoder.decode("agent", each) for each in (fuller, fuller, _native("a"), _native("a"))]
    alone = decoder.decode("agent", _native("b"))
    decoder.decode("agent", fuller)
    of_another = decoder.decode("other", _native("c"))
    now = 5.0  # that of the first form never came
    late = decoder.decode("agent", _native("d"))

    assert [isinstance(each, AgentEvent) for each in told] == [True, True, False, False]
    assert told[2:] == [Ignored.REPLACED] * 2
    for event, transcript in ((alone, "b"), (of_another, "c"), (late, "d")):
        assert isinstance(event, AgentEvent)
        assert event.members["transcript"] == transcript


def test_calls_and_outputs_that_the_helper_tells_are_zipped_too() -> None:
    members = (
        '{"function_calls": [{"call_id": "1"}, null], "function_call_outputs": [{"call_id": "1"}]}'
    )
    event = Decoder().decode("agent", _from_helper("function_tools_executed", members))

    assert isinstance(event, AgentEvent)
    assert event.members["zipped"] == [
        {"function_call": {"call_id": "1"}, "function_call_output": {"call_id": "1"}},
        {"function_call": None, "function_call_output": None},
    ]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (_from_helper("close", "{", version=1), Ignored.MALFORMED),
        (_from_helper("close", "[" * 100_000), Ignored.MALFORMED),
        (_from_helper("close", '{"error":' * 100 + "1" + "}" * 100), Ignored.MALFORMED),
        (_from_helper("close", '{"reason": "\\ud800"}'), Ignored.MALFORMED),
        (_from_helper("close", "[]"), Ignored.UNKNOWN),
        (_from_helper("close", "{}", version=2), Ignored.UNKNOWN),
        (_from_helper("newer", "{}"), Ignored.UNKNOWN),
    ],
)
def test_what_the_helper_tells_otherwise_is_left_out(message: bytes, reason: Ignored) -> None:
    assert Decoder().decode("agent", message) is reason
