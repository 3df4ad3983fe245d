"""Asking an agent over HTTP, whatever becomes of it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from livekit.protocol.agent_pb import agent_session as pb

from gateway import event_log, turn as turn_rule
from gateway.rooms.base import Listener
from gateway.rooms.memory import MemoryRoom, MemoryRooms
from gateway.settings import Settings
from gateway.web import turns
from tests.bare_agent import bare_agent
from tests.conftest import Serve
from tests.polling import poll_until
from tests.running_gateway import RunningGateway, running

ASKS = {"Content-Type": "text/plain", "Accept": "application/json"}

WAITING = {"heartbeat": 1.0}


def _asking(
    gateway: RunningGateway,
    room: str,
    text: Any = "hello",
    identity: str = "alice",
    *,
    headers: dict[str, str] | None = None,
    **query: str,
) -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(
        gateway.client.post(
            f"/rooms/{room}/agent/turns",
            params=query,
            content=text,
            headers={**gateway.bearer(identity, room), **ASKS, **(headers or {})},
        )
    )


def _code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def test_an_answer_is_one_object(serve: Serve, room: str) -> None:
    async with serve(**WAITING) as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asking = _asking(gateway, room)
        await agent.answers("hello", "Good day.", tool="greet")
        answer = await asking

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    told = answer.json()
    assert told.pop("stream_id")
    assert told == {
        "participant_identity": "agent",
        "outcome": "completed",
        "text": "Good day.",
        "tool_calls": [
            {
                "call_id": "call-1",
                "name": "greet",
                "arguments": "{}",
                "output": "greet is done",
                "is_error": False,
            }
        ],
        "usage": None,
        "errors": [],
        "truncated": False,
    }


async def test_an_answer_is_streamed_and_nothing_of_others_is_in_it(
    serve: Serve, room: str
) -> None:
    async with serve(**WAITING) as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        await gateway.post(room, "bob", "of no interest", topic="lk.chat", to="alice")
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.answers("hello", "Good day."))
            async with gateway.turn(room, "alice", "hello") as events:
                told = [await events.next()]
                while told[-1].name != "agent.turn_completed":
                    told.append(await events.next())
                await events.ends()

    assert told[0].name == "agent.turn_started"
    assert told[0].id is None
    assert [event.name for event in told].count("stream.opened") == 1
    texts = [event.data["text"] for event in told if event.name == "stream.chunk"]
    assert texts == ["Good day."]
    assert {event.data.get("participant_identity") for event in told} == {"agent"}
    assert told[-1].data["text"] == "Good day."


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_text_may_be_json_or_come_in_chunks(
    serve_memory: Serve, room: str, chunked: bool
) -> None:
    async def pieces() -> Any:
        yield b"hel"
        yield b"lo"

    async with serve_memory() as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        if chunked:
            asking = _asking(gateway, room, pieces())
        else:
            body = json.dumps({"text": "hello", "agent": "agent", "timeout": 5})
            asking = _asking(gateway, room, body, headers={"Content-Type": "application/json"})
        await agent.answers("hello", "Good day.")
        answer = await asking

    assert answer.json()["text"] == "Good day."


async def test_an_agent_of_which_only_the_attribute_tells_is_asked_too(
    serve: Serve, room: str
) -> None:
    async with serve(**WAITING) as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asking = _asking(gateway, room)
        await agent.hears("hello")
        await agent.show("thinking")
        await agent.say("Good day.")
        await agent.show("listening")
        answer = await asking

    assert answer.status_code == 200, answer.text
    assert (answer.json()["outcome"], answer.json()["text"]) == ("completed", "Good day.")


async def test_no_agent_is_told_and_nothing_is_sent(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        answer = await _asking(gateway, room, agent_timeout="0.1")
        other = await _asking(gateway, room, agent_timeout="0.1", agent="nobody")
        history = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/streams", headers=gateway.bearer("alice", room)
        )

    assert _code(answer) == _code(other) == (504, "agent_unavailable")
    assert history.json()["streams"] == []


async def test_what_keeps_an_agent_from_taking_the_text_is_a_problem(
    serve: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_rule, "ACCEPTED_WITHIN", 1.5)
    async with serve(**WAITING) as gateway:
        async with bare_agent(gateway, room) as agent:
            await agent.show("listening")
            silent = await _asking(gateway, room)
            asking = _asking(gateway, room)
            await agent.hears("hello")
            await agent.hears("hello")
            await agent.tell(user_state_changed={})
            unheard = await asking
            asking = _asking(gateway, room)
            await agent.hears("hello")
            await agent.takes("something else")
            timed_out = await _asking(gateway, room, timeout="1")
            asking.cancel()
            monkeypatch.setattr(turn_rule, "ACCEPTED_WITHIN", 9.0)
            leaving = _asking(gateway, room, identity="bob", timeout="9")
            await agent.hears("hello")
        left = await leaving

    assert _code(silent) == (504, "agent_did_not_answer")
    assert _code(unheard) == (504, "not_accepted")
    assert _code(timed_out) == (504, "timed_out")
    assert _code(left) == (503, "agent_left")
    assert left.headers["retry-after"] == "5"


async def test_the_time_limit_ends_an_answer_and_tells_what_there_is(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asking = _asking(gateway, room, timeout="1")
        await agent.hears("hello")
        await agent.takes("hello")
        await agent.is_in("speaking")
        await agent.say("As far as it")
        answer = await asking

    assert answer.status_code == 200
    assert answer.json()["outcome"] == "timed_out"
    assert answer.json()["text"] == "As far as it"


async def test_the_time_limit_ends_it_also_where_the_agent_tells_faster_than_is_read(
    serve_memory: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "READ_BYTES", 1)  # one event at a time
    all_kept = {"log_events": 1_000_000, "log_bytes": 1 << 30}
    async with serve_memory(**all_kept) as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asking = _asking(gateway, room, timeout="1")
        await agent.hears("hello")
        await agent.takes("hello")
        while not asking.done():
            for _ in range(2):
                await agent.tell(user_state_changed={})
            await asyncio.sleep(0)
        answer = await asking

    assert answer.status_code == 200, answer.text
    assert answer.json()["outcome"] == "timed_out"


async def test_more_than_can_be_read_is_told_as_that(serve_memory: Serve, room: str) -> None:
    async with serve_memory(log_events=50) as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asking = _asking(gateway, room)
        await agent.hears("hello")
        for _ in range(100):  # at once
            await agent.tell(user_state_changed={})
        answer = await asking

    assert _code(answer) == (503, "livekit_unavailable")
    assert answer.json()["detail"].startswith("More came from the room than could be read;")


async def test_an_agent_that_leaves_in_the_middle_is_told_with_what_it_said(
    serve: Serve, room: str
) -> None:
    async with serve(**WAITING) as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asking = _asking(gateway, room)
        await agent.hears("hello")
        await agent.takes("hello")
        await agent.say("As far as")
        await agent.leave()
        answer = await asking

    assert (answer.json()["outcome"], answer.json()["text"]) == ("agent_left", "As far as")


async def test_asked_twice_with_a_key_the_agent_is_asked_once(
    serve_memory: Serve, room: str
) -> None:
    key = {"Idempotency-Key": "once"}
    async with serve_memory() as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asking = _asking(gateway, room, headers=key)
        await agent.hears("hello")
        running = await _asking(gateway, room, headers=key)
        await agent.takes("hello")
        await agent.is_in("speaking")
        await agent.adds("assistant", "Good day.")
        await agent.is_in("listening")
        first = await asking
        again = await _asking(gateway, room, headers=key)
        other = await _asking(gateway, room, "else", headers=key)
        async with gateway.turn(room, "alice", "hello", headers=key) as events:
            told = [await events.next(), await events.next()]
            await events.ends()
        said_once = agent.heard.empty()

    assert _code(running) == (409, "idempotency_key_in_use")
    assert again.json() == first.json()
    assert again.json()["text"] == "Good day."
    assert _code(other) == (422, "idempotency_key_reused")
    assert [event.name for event in told] == ["agent.turn_started", "agent.turn_completed"]
    assert told[1].data["text"] == "Good day."
    assert said_once


async def test_a_failure_is_not_remembered(
    serve_memory: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_rule, "ACCEPTED_WITHIN", 0.1)
    key = {"Idempotency-Key": "once"}
    async with serve_memory() as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        first = await _asking(gateway, room, headers=key)
        monkeypatch.setattr(turn_rule, "ACCEPTED_WITHIN", 5.0)
        asking = _asking(gateway, room, headers=key)
        await agent.hears("hello")
        await agent.answers("hello", "Good day.")
        second = await asking

    assert first.status_code == 504
    assert second.json()["text"] == "Good day."


async def test_turns_of_different_participants_are_not_mixed(
    serve_memory: Serve, room: str
) -> None:
    """An agent has them in its conversation one after another."""
    async with serve_memory() as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        alice = _asking(gateway, room, "of alice")
        await agent.hears("of alice")
        bob = _asking(gateway, room, "of bob", identity="bob")
        await agent.hears("of bob")
        await agent.takes("of alice")
        await agent.is_in("speaking")
        await agent.say("To alice")
        await agent.adds("assistant", "To alice")
        await agent.is_in("listening")
        first = await alice
        await agent.takes("of bob")
        await agent.is_in("speaking")
        await agent.say("To bob")
        await agent.adds("assistant", "To bob")
        await agent.is_in("listening")
        second = await bob

    assert [each.json()["text"] for each in (first, second)] == ["To alice", "To bob"]


async def test_turns_are_bounded(
    serve_memory: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MAX_TURNS_OF_IDENTITY", 1)
    async with serve_memory() as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asking = _asking(gateway, room)
        await agent.hears("hello")
        more = await _asking(gateway, room)
        await agent.answers_now("hello", "Good day.")
        await asking

    assert _code(more) == (429, "too_many_turns")


class SlowRooms(MemoryRooms):
    """Joining takes until `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.joining = asyncio.Event()
        self.gate = asyncio.Event()

    async def join(
        self, room: str, identity: str, token: str, topics: Collection[str], listener: Listener
    ) -> MemoryRoom:
        self.joining.set()
        await self.gate.wait()
        return await super().join(room, identity, token, topics, listener)


async def test_a_client_that_goes_while_the_room_is_joined_asks_nothing(room: str) -> None:
    rooms = SlowRooms()
    async with (
        running(rooms, Settings("ws://in-process", "devkey", "secret")) as gateway,
        bare_agent(gateway, room) as agent,
    ):
        await agent.show("listening")
        asking = _asking(gateway, room)
        await rooms.joining.wait()
        asking.cancel()
        await poll_until(lambda: not gateway.server.server_state.connections)
        rooms.gate.set()
        route = "/rooms/{room:segment}/agent/turns"
        await poll_until(lambda: gateway.hub.metrics.requests["POST", route, 499])
        nothing = agent.heard.empty()

    assert nothing


async def test_a_join_that_takes_all_of_the_time_asks_nothing(room: str) -> None:
    rooms = SlowRooms()
    async with (
        running(rooms, Settings("ws://in-process", "devkey", "secret")) as gateway,
        bare_agent(gateway, room) as agent,
    ):
        await agent.show("listening")
        asking = _asking(gateway, room, timeout="1")
        await rooms.joining.wait()
        asyncio.get_running_loop().call_later(1.0, rooms.gate.set)
        answer = await asking
        nothing = agent.heard.empty()

    assert _code(answer) == (504, "timed_out")
    assert nothing


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_gateway_that_goes_says_so(serve_memory: Serve, room: str, streamed: bool) -> None:
    async with serve_memory() as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        accept = "text/event-stream" if streamed else "application/json"
        asking = _asking(gateway, room, headers={"Accept": accept})
        await agent.hears("hello")
        await agent.takes("hello")
        await poll_until(lambda: gateway.hub.logs[0].head.seq > 3)
        await gateway.hub.drain()
        answer = await asking
        counted = gateway.hub.metrics.turns

    assert counted == {"drain": 1}
    if streamed:
        assert answer.status_code == 200
        assert answer.text.endswith(
            "event: gateway.closing\n"
            'data: {"type":"gateway.closing","reason":"drain","reconnect":true}\n\n'
        )
    else:
        assert _code(answer) == (503, "draining")


async def test_a_client_that_takes_nothing_of_the_end_is_dropped(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory(write_timeout=0.2) as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        async with _standing_still(gateway, _head_of_turn(gateway, room) + b"hello"):
            await agent.hears("hello")
            await agent.takes("hello")
            await agent.is_in("speaking")
            for _ in range(3):  # more than sockets hold, and less than is held for it
                await agent.tells_as_helper(type="user_input_transcribed", transcript=LARGE)
            await agent.adds("assistant", "Good day.")
            await agent.is_in("listening")
            await poll_until(lambda: gateway.hub.metrics.turns["completed"])
            await poll_until(lambda: not gateway.server.server_state.connections)


async def test_a_client_that_takes_nothing_before_its_answer_does_not_hold_up_the_next(
    serve_memory: Serve, room: str
) -> None:
    """It has not read what it asked for before, on the same connection."""
    contract = b"GET /openapi.yaml HTTP/1.1\r\nHost: gateway\r\n\r\n"
    async with serve_memory(write_timeout=0.2) as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asked = contract * 2 + _head_of_turn(gateway, room) + b"hello"
        async with _standing_still(gateway, asked):
            await agent.answers("hello", "Good day.")
            await poll_until(lambda: gateway.hub.metrics.turns["completed"])
            asking = _asking(gateway, room, "once more")
            await agent.answers("once more", "Good day again.")
            answer = await asking

    assert answer.json()["text"] == "Good day again."


LARGE = "x" * 300_000


def _head_of_turn(gateway: RunningGateway, room: str) -> bytes:
    return (
        f"POST /rooms/{room}/agent/turns HTTP/1.1\r\n"
        "Host: gateway\r\n"
        f"Authorization: Bearer {gateway.token('alice', room)}\r\n"
        "Content-Type: text/plain\r\n"
        "Content-Length: 5\r\n\r\n"
    ).encode()


@asynccontextmanager
async def _standing_still(gateway: RunningGateway, asked: bytes) -> AsyncIterator[None]:
    """A client that asks, and reads nothing of what is answered."""
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (host, int(port)))
        await loop.sock_sendall(client, asked)
        yield


HOSTILE: list[dict[str, Any]] = [
    {"type": "conversation_item_added", "item": 7},
    {"type": "conversation_item_added", "item": {"type": "message", "content": {"a": 1}}},
    {"type": "conversation_item_added", "item": {"type": "message", "role": ["user"]}},
    {"type": "tool_execution_updated", "update": [1]},
    {"type": "tool_execution_updated", "update": {"type": "tool_call_ended", "message": {}}},
    {"type": "tool_execution_updated", "update": {"type": "tool_reply_updated", "update_ids": 3}},
    {"type": "function_tools_executed", "function_calls": 3, "function_call_outputs": {}},
    {"type": "function_tools_executed", "function_calls": [{"call_id": {}}]},
    {"type": "metrics_collected", "metrics": {"type": "llm_metrics", "prompt_tokens": "many"}},
    {"type": "metrics_collected", "metrics": {"type": ["llm_metrics"], "metadata": 1}},
    {"type": "speech_created"},
    {"type": "speech_finished", "speech_id": {}},
    {"type": "error", "error": "broken"},
    {"type": "session_usage_updated", "usage": []},
]


async def test_no_form_of_what_an_agent_tells_breaks_a_turn(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asking = _asking(gateway, room)
        await agent.hears("hello")
        for told in HOSTILE:
            await agent.tells_as_helper(**told)
        await agent.takes("hello")
        for told in HOSTILE:
            await agent.tells_as_helper(**told)
        await agent.tells_as_helper(type="speech_finished", speech_id="None")
        await agent.is_in("speaking")
        await agent.say("Good day.")
        await agent.adds("assistant", "Good day.")
        await agent.is_in("listening")
        answer = await asking

    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == "Good day."


async def test_what_is_nested_as_deep_as_can_be_read_breaks_nothing(
    serve_memory: Serve, room: str
) -> None:
    """What is read with a short stack may not be with a longer one: each depth is tried."""
    async with serve_memory() as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        asking = _asking(gateway, room)
        await agent.hears("hello")
        await agent.takes("hello")
        for depth in range(800, 1_000):
            message = pb.AgentSessionMessage()
            members = '{"error":' + "[" * depth + "]" * depth + "}"
            payload: Any = {"livekit-sse-gateway": 1, "type": "error", "members": members}
            message.event.debug_message.payload.update(payload)
            await agent.send(message.SerializeToString())
        await agent.is_in("speaking")
        await agent.say("Good day.")
        await agent.adds("assistant", "Good day.")
        await agent.is_in("listening")
        answer = await asking

    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == "Good day."


async def test_an_agent_whose_session_has_closed_is_not_asked_where_there_is_another(
    serve_memory: Serve, room: str
) -> None:
    async with (
        serve_memory() as gateway,
        gateway.agent_events(room, "alice") as events,
        bare_agent(gateway, room, "closed") as closed,
        bare_agent(gateway, room, "open") as agent,
    ):
        await events.until("gateway.opened")
        await closed.show("listening")
        await closed.tells_as_helper(type="close", reason="user_initiated", error=None)
        await agent.show("listening")
        asking = _asking(gateway, room)
        await agent.answers("hello", "Good day.")
        answer = await asking
        named = await _asking(gateway, room, agent="closed")

    assert answer.json()["participant_identity"] == "open"
    assert _code(named) == (409, "agent_closed")


async def test_a_token_that_expires_before_the_agent_takes_the_text_is_told(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, bare_agent(gateway, room) as agent:
        await agent.show("listening")
        token = gateway.token_that_lives("alice", room, 2)
        asking = _asking(gateway, room, headers={"Authorization": f"Bearer {token}"})
        await agent.hears("hello")
        answer = await asking

    assert _code(answer) == (401, "token_expired")
