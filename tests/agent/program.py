"""The tests' agents, by LiveKit Agents itself: only the model is ours, and it asks no network.

Run by the Python of an environment of its own (tools/agent_environment.py) and steered over a socket: each
connection is one agent in a room or one worker, begins with a line that says which, and when it ends,
so does what it stands for. running_agent.py is the other end.
"""

import asyncio
import concurrent.futures
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from livekit import rtc
from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    APIConnectOptions,
    JobContext,
    JobExecutorType,
    llm,
)
from livekit.agents.types import ATTRIBUTE_AGENT_STATE, DEFAULT_API_CONNECT_OPTIONS
from livekit.agents.voice.room_io import RoomOptions

from tests.agent.orders import Connection, carry_out, tell

# The model


class EchoModel(llm.LLM):
    """Answers `You said: …`, word by word; while it is held, no further than its first word."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        **_: Any,
    ) -> llm.LLMStream:
        return Echo(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Echo(llm.LLMStream):
    async def _run(self) -> None:
        first, *words = f"You said: {_last_user_text(self.chat_ctx)}".split(" ")
        self._answer(first)
        await self._llm.may_go_on.wait()
        for word in words:
            self._answer(f" {word}")

    def _answer(self, text: str) -> None:
        delta = llm.ChoiceDelta(role="assistant", content=text)
        self._event_ch.send_nowait(llm.ChatChunk(id="echo", delta=delta))


def _last_user_text(context: llm.ChatContext) -> str:
    users = (message for message in reversed(context.messages()) if message.role == "user")
    return next(users).text_content or ""


# An agent in a room


async def _start(room: rtc.Room, model: EchoModel) -> AgentSession[None]:
    """An agent session in `room`, once LiveKit has taken its word that it listens.

    In a job the session connects the room, else it is connected before.
    """
    listens = asyncio.Event()

    def on_attributes(changed: dict[str, str], participant: rtc.Participant) -> None:
        mine = isinstance(participant, rtc.LocalParticipant)
        if mine and changed.get(ATTRIBUTE_AGENT_STATE) == "listening":
            listens.set()

    room.on("participant_attributes_changed", on_attributes)
    session = AgentSession[None](llm=model, vad=None, turn_handling={"turn_detection": None})
    options = RoomOptions(audio_input=False, audio_output=False)
    await session.start(Agent(instructions="Echo."), room=room, room_options=options)
    await listens.wait()
    return session


async def _join(connection: Connection, url: str, token: str) -> None:
    """Worker-less: in the room until the connection ends."""
    room, model = rtc.Room(), EchoModel()
    await room.connect(url, token)
    try:
        session = await _start(room, model)
        tell(connection, event="ready", room=room.name)
        await _obey(connection, hold=model.may_go_on.clear, release=model.may_go_on.set)
        model.may_go_on.set()
        await session.aclose()
    finally:
        await room.disconnect()


async def _obey(connection: Connection, **orders: Callable[[], None]) -> None:
    """Carry out what is ordered until the connection ends."""
    async for line in connection[0]:
        orders[json.loads(line)["order"]]()
        tell(connection, event="done")


# A worker


class Gate:
    """Where jobs wait; each of them is in a thread and an event loop of its own."""

    def __init__(self) -> None:
        self._opened: concurrent.futures.Future[bool] = concurrent.futures.Future()

    def hold(self) -> None:
        if self._opened.done():
            self._opened = concurrent.futures.Future()

    def release(self, let_in: bool = True) -> None:
        if not self._opened.done():
            self._opened.set_result(let_in)

    async def passed(self) -> bool:
        """True when it is open; False when the worker ends instead."""
        return await asyncio.wrap_future(self._opened)


async def _work(connection: Connection, agent_name: str, held: bool, **livekit: str) -> None:
    """A worker that is registered until the connection ends; `livekit` says where."""
    gate = Gate()
    if not held:
        gate.release()
    worker = AgentServer(
        **livekit,
        job_executor_type=JobExecutorType.THREAD,
        # Nobody asks for its health: any free port, and not for the network around.
        host="127.0.0.1",
        port=0,
        num_idle_processes=0,
        # By the machine's own load, LiveKit would give a worker on a busy one no job at all.
        load_fnc=lambda: 0.0,
    )
    worker.rtc_session(_job(connection, gate), agent_name=agent_name)
    worker.on("worker_registered", lambda *_: tell(connection, event="registered"))
    working = asyncio.create_task(worker.run(devmode=True))
    await _obey(connection, hold=gate.hold, release=gate.release)
    gate.release(let_in=False)
    await worker.aclose()
    await working


def _job(connection: Connection, gate: Gate) -> Callable[[JobContext], Awaitable[None]]:
    loop = asyncio.get_running_loop()

    async def job(context: JobContext) -> None:
        """One dispatch: accepted at once, and in its room when the gate is open."""

        def report(event: str) -> None:
            line = partial(tell, connection, event=event, room=context.job.room.name)
            loop.call_soon_threadsafe(line)

        report("dispatched")
        if await gate.passed():
            await _start(context.room, EchoModel())
            report("ready")

    return job


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    asyncio.run(carry_out(Path(sys.argv[1]), {"join": _join, "work": _work}))
