"""Agents of LiveKit Agents at the other end."""

import asyncio
import secrets
from contextlib import AsyncExitStack, suppress
from functools import partial

from livekit import api

from tests.conftest import AgentIn, Serve, StartWorker
from tests.guests import guest
from tests.running_gateway import DEADLINE, RunningGateway, emptied

ROOMS = 100

AT_A_TIME = 5
"""Rooms that are opened at once; with more of them each takes longer, and all together no less."""


async def _ask(gateway: RunningGateway, room: str, text: str) -> str:
    """The agent's answer to the first text of somebody who was not in the room before."""
    assert (await gateway.post(room, "alice", text)).status_code == 200
    async with gateway.events(room, "alice", "lk.transcription", replay="all") as alice:
        answer = await alice.text()
    assert answer.header["participant_identity"].startswith("agent")
    assert answer.end is not None
    assert answer.end["complete"]
    return answer.text


async def test_an_agent_answers_the_first_text_of_100_out_of_100(
    serve_livekit: Serve, agent_in: AgentIn
) -> None:
    """Of somebody who joins with it, and whom the agent would ignore if it did not know of the join."""
    answers: dict[int, str] = {}

    async def ask(gateway: RunningGateway, number: int, room: str) -> None:
        with suppress(TimeoutError):
            answers[number] = await _ask(gateway, room, f"question {number}")

    # Rooms that have had their answer are left before the last are opened.
    async with serve_livekit(linger=DEADLINE) as gateway:
        for first in range(0, ROOMS, AT_A_TIME):
            batch = range(first, first + AT_A_TIME)
            async with AsyncExitStack() as agents:
                # Agents share a process: those that join would hold up those that are asked.
                rooms = [f"cold-{secrets.token_hex(4)}" for _ in batch]
                async with asyncio.TaskGroup() as joins:
                    for room in rooms:
                        joins.create_task(agents.enter_async_context(agent_in(room)))
                await asyncio.gather(*map(partial(ask, gateway), batch, rooms))

    assert answers == {number: f"You said: question {number}" for number in range(ROOMS)}


async def test_an_answer_is_heard_while_the_agent_gives_it(
    gateway: RunningGateway, agent_in: AgentIn, room: str
) -> None:
    async with (
        agent_in(room) as agent,
        gateway.events(room, "alice", "lk.transcription") as alice,
    ):
        await alice.until("gateway.opened")
        await agent.hold()
        await gateway.post(room, "alice", "slowly, please")
        first = await alice.until("stream.chunk")
        await agent.release()
        rest = await alice.until("stream.chunk")
        closed = await alice.until("stream.closed")

    assert (first.data["text"], rest.data["text"]) == ("You", " said:")
    assert closed.data["attributes"]["lk.transcription_final"] == "true"


async def test_a_worker_is_dispatched_to_the_room_that_a_token_makes(
    gateway: RunningGateway, agent_worker: StartWorker, room: str
) -> None:
    """Held, it is an agent that is still on its way."""
    async with agent_worker(held=True) as worker:
        token = _dispatching(gateway, room, worker.agent_name)
        async with gateway.events(room, "alice", "lk.transcription", token=token) as alice:
            await alice.until("gateway.opened")
            await worker.dispatched(room)
            early = await gateway.post(room, "alice", "nobody is here")
            await worker.release()
            await worker.ready(room)
            await gateway.post(room, "alice", "hello")
            answer = await alice.text()

    assert early.json()["listeners"] == 0
    assert answer.text == "You said: hello"


async def test_a_text_waits_for_an_agent_that_is_still_being_dispatched(
    gateway: RunningGateway, agent_worker: StartWorker, room: str
) -> None:
    """By `agent_timeout`, and without it where the token says that an agent is to come."""
    async with agent_worker(held=True) as worker:
        token = _dispatching(gateway, room, worker.agent_name)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "text/plain"}
        path = f"/rooms/{room}/text"
        async with gateway.events(room, "alice", "lk.transcription", token=token) as alice:
            asked = asyncio.create_task(gateway.client.post(path, content="first", headers=headers))
            await worker.dispatched(room)
            waited = not asked.done()
            await worker.release()
            first = await asked
            answers = [(await alice.text()).text]
            again = await gateway.post(room, "alice", "second", agent_timeout="5")
            answers.append((await alice.text()).text)

    assert waited
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["listeners"] == 1
    assert answers == ["You said: first", "You said: second"]


async def test_an_agent_goes_on_with_who_comes_back(
    serve_livekit: Serve, agent_in: AgentIn, room: str
) -> None:
    """Idle, we leave as one who may come back: agents close the session of one who does not."""
    async with serve_livekit(linger=0) as gateway, agent_in(room):
        answers = []
        for text in ("one", "two"):
            async with gateway.events(room, "alice", "lk.transcription") as alice:
                await gateway.post(room, "alice", text)
                answers.append((await alice.text()).text)
            await emptied(gateway.hub)

    assert answers == ["You said: one", "You said: two"]


async def test_an_agent_answers_who_is_there_by_other_means(
    gateway: RunningGateway, agent_in: AgentIn, room: str
) -> None:
    """On whose behalf the observer sends; the agent takes it for the one that it knows."""
    async with agent_in(room), guest(gateway, room, "alice") as alice:
        await alice.sees("agent")
        async with gateway.admin_events(room, "lk.transcription") as events:
            await events.until("gateway.opened")
            posted = await gateway.post(room, "alice", "by HTTP", agent_timeout="5")
            answer = await events.text()
        evicted = not alice.lost.empty()

    assert posted.status_code == 200
    assert answer.text == "You said: by HTTP"
    assert not evicted


def _dispatching(gateway: RunningGateway, room: str, agent_name: str) -> str:
    """A token that asks for an agent in the room that it makes."""
    configuration = api.RoomConfiguration(agents=[api.RoomAgentDispatch(agent_name=agent_name)])
    return (
        api.AccessToken(gateway.settings.livekit_api_key, gateway.settings.livekit_api_secret)
        .with_identity("alice")
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .with_room_config(configuration)
        .to_jwt()
    )
