"""The agents of a room, whatever they tell of themselves."""

from typing import Any

import pytest
from livekit.protocol.agent_pb import agent_session as pb

from tests.bare_agent import bare_agent
from tests.conftest import Serve
from tests.running_gateway import EventStream, RunningGateway, ServerSentEvent

UNTOLD = {
    "name": "",
    "source": None,
    "state": None,
    "user_state": None,
    "usage": None,
    "error": None,
    "close": None,
}

WAITING = {"heartbeat": 1.0}
"""LiveKit tells of agents that come and go up to 3 s late: the client hears something meanwhile."""


async def _agents(
    gateway: RunningGateway, room: str, identity: str = "alice", **query: str
) -> list[dict[str, Any]]:
    answer = await gateway.client.get(
        f"/rooms/{room}/agent", params=query, headers=gateway.bearer(identity, room)
    )
    assert answer.status_code == 200, answer.text
    agents: list[dict[str, Any]] = answer.json()["agents"]
    return agents


async def _state(events: EventStream) -> ServerSentEvent:
    return await events.until("agent.agent_state_changed")


async def test_an_agent_that_sends_no_messages_is_told_of_by_its_attribute(
    serve: Serve, room: str
) -> None:
    async with (
        serve(**WAITING) as gateway,
        gateway.agent_events(room, "alice") as events,
        bare_agent(gateway, room) as agent,
    ):
        await events.until("gateway.opened")
        told = []
        for state in ("listening", "thinking", "listening"):
            await agent.show(state)
            told.append(await _state(events))
        snapshot = await _agents(gateway, room)
        await agent.leave()
        closed = await events.until("agent.close")
        after = await _agents(gateway, room)

    assert [event.data for event in told] == [
        {
            "type": "agent.agent_state_changed",
            "participant_identity": "agent",
            "created_at": None,
            "created_at_is": None,
            "old_state": old,
            "new_state": new,
        }
        for old, new in ((None, "listening"), ("listening", "thinking"), ("thinking", "listening"))
    ]
    assert snapshot == [
        UNTOLD | {"participant_identity": "agent", "source": "attributes", "state": "listening"}
    ]
    assert closed.data == {
        "type": "agent.close",
        "participant_identity": "agent",
        "created_at": None,
        "created_at_is": None,
        "reason": None,
        "error": None,
        "inferred": True,
    }
    assert after == []


async def test_what_an_agent_tells_and_shows_is_told_once(serve: Serve, room: str) -> None:
    """The two go different ways, and either may be first."""
    async with (
        serve(**WAITING) as gateway,
        gateway.agent_events(room, "alice") as events,
        bare_agent(gateway, room) as agent,
    ):
        await events.until("gateway.opened")
        await agent.show("listening")
        await agent.tell(agent_state_changed={"new_state": pb.AS_LISTENING})
        first = await _state(events)
        await agent.tell(agent_state_changed={"new_state": pb.AS_THINKING})
        await agent.show("thinking")
        second = await _state(events)
        await agent.show("speaking")
        await agent.tell(user_state_changed={"new_state": pb.US_AWAY})
        third = await events.next()
        (snapshot,) = await _agents(gateway, room)

    assert [first.data["new_state"], second.data["new_state"]] == ["listening", "thinking"]
    assert third.name == "agent.user_state_changed"
    assert (snapshot["source"], snapshot["state"], snapshot["user_state"]) == (
        "native",
        "thinking",
        "away",
    )


async def test_the_snapshot_has_the_last_usage_and_error_and_where_to_follow_from(
    serve: Serve, room: str
) -> None:
    async with (
        serve(**WAITING) as gateway,
        gateway.agent_events(room, "alice") as events,
        bare_agent(gateway, room) as agent,
    ):
        await events.until("gateway.opened")
        usage = {"model_usage": [{"llm": {"provider": "p", "model": "m", "input_tokens": 3}}]}
        await agent.tell(session_usage_updated={"usage": usage})
        await agent.tell(error={"message": "out of order"})
        await events.until("agent.error")
        answer = await gateway.client.get(
            f"/rooms/{room}/agent", headers=gateway.bearer("alice", room)
        )
        await agent.tell(agent_state_changed={"new_state": pb.AS_IDLE})
        async with gateway.agent_events(
            room, "alice", last_event_id=answer.json()["position"]
        ) as after:
            await after.until("gateway.opened")
            followed = await after.next()

    (snapshot,) = answer.json()["agents"]
    (model,) = snapshot["usage"]["model_usage"]
    assert (model["type"], model["input_tokens"]) == ("llm_usage", 3)
    assert snapshot["error"]["error"]["message"] == "out of order"
    assert set(snapshot["error"]) == {"created_at", "created_at_is", "error", "source"}
    assert followed.data["new_state"] == "idle"


async def test_several_agents_are_told_apart_and_who_reads_unseen_sees_them(
    serve: Serve, room: str
) -> None:
    async with (
        serve(**WAITING) as gateway,
        gateway.agent_events(room, "alice") as events,
        bare_agent(gateway, room, "one") as one,
        bare_agent(gateway, room, "two") as two,
    ):
        await events.until("gateway.opened")
        await one.show("listening")
        await two.tell(agent_state_changed={"new_state": pb.AS_SPEAKING})
        told = {
            event.data["participant_identity"]: event.data["new_state"]
            for event in [await _state(events), await _state(events)]
        }
        agents = await _agents(gateway, room)
        unseen = await _agents(gateway, room, presence="none")

    assert told == {"one": "listening", "two": "speaking"}
    by_identity = {each["participant_identity"]: each["source"] for each in agents}
    assert by_identity == {"one": "attributes", "two": "native"}
    assert {each["participant_identity"]: each["state"] for each in unseen} == {
        "one": "listening",
        "two": None,
    }


async def test_a_participant_that_is_no_agent_is_none_whatever_it_shows(
    serve: Serve, room: str
) -> None:
    async with serve(**WAITING) as gateway, gateway.agent_events(room, "alice") as events:
        await events.until("gateway.opened")
        async with gateway.agent_events(room, "bob") as bob:
            await bob.until("gateway.opened")
            agents = await _agents(gateway, room)

    assert agents == []


async def test_head_joins_nothing(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.head(
            f"/rooms/{room}/agent", headers=gateway.bearer("alice", room)
        )
        connections = gateway.hub.connections

    assert (answer.status_code, connections) == (200, 0)


@pytest.mark.parametrize(
    ("grants", "code"), [({"can_subscribe": False}, "missing_grant"), ({}, "presence_required")]
)
async def test_who_may_not_read_is_not_told(
    serve_memory: Serve, room: str, grants: dict[str, Any], code: str
) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.get(
            f"/rooms/{room}/agent",
            params={"presence": "none"},
            headers=gateway.bearer("alice", room, **grants),
        )

    assert (answer.status_code, answer.json()["code"]) == (403, code)
