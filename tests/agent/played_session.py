"""Agent sessions that tests play, in a process of their own: what they are told, what they saw."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.agent.running_agent import EVENT_SECONDS, AgentProgram, Order, agent_token
from tools.livekit_server import LiveKitServer

SESSION_PROGRAM = Path(__file__).with_name("session_program.py")


@dataclass(frozen=True, slots=True)
class Seen:
    """An event, as a handler inside the agent saw it."""

    kind: str
    members: dict[str, Any]


class PlayedSession:
    """A session that does what it is told."""

    def __init__(self, order: Order) -> None:
        self.seen: list[Seen] = []
        self._order = order
        self._done: asyncio.Queue[None] = asyncio.Queue()
        self._told = asyncio.Event()

    async def tell(self, order: str, **options: Any) -> None:
        """Give an order (session_program.py has them), and wait until it is carried out."""
        self._order.send(order, **options)
        try:
            async with asyncio.timeout(EVENT_SECONDS):
                await self._done.get()
        except TimeoutError as error:
            raise self._order.program.failed(f"did not {order!r} in time") from error

    async def script(self, model: str, *steps: dict[str, Any]) -> None:
        await self.tell("script", model=model, steps=steps)

    async def sees(self, kind: str, which: Callable[[dict[str, Any]], bool] = bool) -> Seen:
        """The first event of a kind that its handlers see, of those that `which` is true of."""
        try:
            async with asyncio.timeout(EVENT_SECONDS):
                while True:
                    self._told.clear()
                    for seen in self.seen:
                        if seen.kind == kind and which(seen.members):
                            return seen
                    await self._told.wait()
        except TimeoutError as error:
            raise self._order.program.failed(f"saw no {kind!r} in time") from error

    def log(self) -> str:
        """Of the process that it is in."""
        return self._order.program.log.read_text(errors="replace")

    async def read(self) -> None:
        async for line in self._order.reader:
            told = json.loads(line)
            if told["event"] == "saw":
                self.seen.append(Seen(told["kind"], told["members"]))
            elif told["event"] == "done":
                self._done.put_nowait(None)
            self._told.set()


@asynccontextmanager
async def played_session(
    program: AgentProgram, server: LiveKitServer, room: str, identity: str = "agent", **options: Any
) -> AsyncIterator[PlayedSession]:
    """A session that listens in its room; it is closed and has left at the end of the block.

    `voice=True` gives it ears and a voice, `fallback=True` a second one of each model.
    """
    token = agent_token(server, room, identity)
    async with program.ordered("join", url=server.url, token=token, **options) as order:
        session = PlayedSession(order)
        reading = asyncio.create_task(session.read())
        try:
            await session.sees("agent_state_changed", lambda to: to["new_state"] == "listening")
            yield session
        finally:
            order.writer.write_eof()
            async with asyncio.timeout(EVENT_SECONDS):
                await reading
