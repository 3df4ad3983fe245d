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
        self._registered = False

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

    async def sees(
        self, kind: str, which: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> Seen:
        """The first event of a kind that its handlers see, of those that `which` is true of."""
        found: list[Seen] = []

        def is_seen() -> bool:
            found.extend(seen for seen in self.seen if seen.kind == kind and which(seen.members))
            return bool(found)

        await self._until(is_seen, f"saw no {kind!r}")
        return found[0]

    async def listens(self) -> None:
        await self.sees("agent_state_changed", lambda to: bool(to["new_state"] == "listening"))

    async def is_registered(self) -> None:
        await self._until(lambda: self._registered, "was not registered")

    async def _until(self, true: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(EVENT_SECONDS):
                while not true():
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError as error:
            raise self._order.program.failed(f"{what} in time") from error

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
            elif told["event"] == "registered":
                self._registered = True
            self._told.set()


@asynccontextmanager
async def played_session(
    program: AgentProgram, server: LiveKitServer, room: str, identity: str = "agent", **options: Any
) -> AsyncIterator[PlayedSession]:
    """A session that listens in its room; it is closed and has left at the end of the block.

    `voice=True` gives it ears and a voice, `fallback=True` a second one of each model. `wrapped=True`
    hides the two voices from the helper, which is given them then; `helper=False` leaves it out. `timed=True`
    has it write its answers as timed strings. `bargein="interruption"` or `"backchannel"` is what it takes for
    it when somebody speaks over it.
    """
    options |= {"url": server.url, "token": agent_token(server, room, identity)}
    async with _playing(program, "join", options) as session:
        await session.listens()
        yield session


@asynccontextmanager
async def worked_session(
    program: AgentProgram, server: LiveKitServer, agent_name: str, **options: Any
) -> AsyncIterator[PlayedSession]:
    """The same of a worker that LiveKit knows: it begins when `agent_name` is dispatched."""
    livekit = {"ws_url": server.url, "api_key": server.api_key, "api_secret": server.api_secret}
    options |= {"agent_name": agent_name, "livekit": livekit}
    async with _playing(program, "work", options) as session:
        await session.is_registered()
        yield session


@asynccontextmanager
async def _playing(
    program: AgentProgram, order: str, options: dict[str, Any]
) -> AsyncIterator[PlayedSession]:
    async with program.ordered(order, **options) as running:
        session = PlayedSession(running)
        reading = asyncio.create_task(session.read())
        try:
            yield session
        finally:
            running.writer.write_eof()
            async with asyncio.timeout(EVENT_SECONDS):
                await reading
