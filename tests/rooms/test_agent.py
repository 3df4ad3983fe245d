"""Agents of LiveKit Agents at the other end."""

import asyncio
import secrets
from contextlib import AsyncExitStack, suppress
from functools import partial

import pytest
from livekit import api

from tests.conftest import AgentIn, Serve, StartWorker
from tests.running_gateway import DEADLINE, RunningGateway

ROOMS = 100

AT_A_TIME = 4
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
                await asyncio.gather(*(agents.enter_async_context(agent_in(room)) for room in rooms))
                await asyncio.gather(*map(partial(ask, gateway), batch, rooms))

    assert answers == {number: f"You said: question {number}" for number in range(ROOMS)}
