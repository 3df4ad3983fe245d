"""Agents of LiveKit Agents, in a process of their own, and what tests ask of them."""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from livekit import api

from tests.agent.orders import LINE_BYTES
from tools.agent_environment import HELPER, ROOT, agent_environ
from tools.child_process import ChildEnded, ChildNotReady, ChildProcess, last_lines
from tools.livekit_server import LiveKitServer

PROGRAM = Path(__file__).with_name("program.py")

START_SECONDS = 60.0
"""LiveKit Agents is imported within two seconds; the first time, from a cold disk, in many more."""

EVENT_SECONDS = 10.0
"""Whatever an agent does; on a busy machine with several of them joining it takes a second."""

STOP_SECONDS = 5.0


class AgentFailed(Exception):
    """An agent's process did not do what it was to do; the text has the end of its log."""


class AgentProgram:
    """The process that holds agents. They are in rooms while their connections to it last."""

    def __init__(self, python: Path, folder: Path, program: Path = PROGRAM) -> None:
        """Start it and wait until it listens; its log is in `folder`."""
        self.log = folder / "agents.log"
        self._port_file = folder / "port"
        with self.log.open("wb") as output:
            command: list[str | Path] = [python, "-u", program, self._port_file]
            self._child = ChildProcess(command, env=_env(), output=output)
        try:
            self._child.wait_or_kill(self._port_file.exists, within=START_SECONDS)
        except (ChildEnded, ChildNotReady) as error:
            raise self.failed(f"did not start: {error}") from error

    def stop(self) -> None:
        """End it, and with it the agents that are left; their rooms learn it much later."""
        self._child.stop(within=STOP_SECONDS)

    def kill(self) -> None:
        """End it as a crash would."""
        self._child.kill()

    def failed(self, what: str) -> AgentFailed:
        return AgentFailed(f"The agents' process {what}. Its log ends with:\n{self.last_lines()}")

    def last_lines(self) -> str:
        return last_lines(self.log, 40)

    @asynccontextmanager
    async def ordered(self, order: str, **options: Any) -> AsyncIterator["Order"]:
        """What `order` stands for, until the end of the block: it is over then, there too."""
        port = int(self._port_file.read_text())
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LINE_BYTES)
        running = Order(self, reader, writer)
        try:
            running.send(order, **options)
            yield running
        finally:
            # The process may have been killed meanwhile, by the test above all.
            with suppress(ConnectionError):
                writer.write_eof()
                async with asyncio.timeout(EVENT_SECONDS):
                    await reader.read()
            writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True, slots=True)
class Order:
    """A connection to the process."""

    program: AgentProgram
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, order: str, **options: Any) -> None:
        self.writer.write(json.dumps({"order": order, **options}).encode() + b"\n")

    async def carry_out(self, order: str) -> None:
        """What `order` stands for, done within this one."""
        self.send(order)
        await self.until("done")

    async def until(self, event: str, room: str | None = None) -> None:
        """The next event of that name, of that room if one is given; others are passed over."""
        try:
            async with asyncio.timeout(EVENT_SECONDS):
                while (told := await self._next())["event"] != event or (
                    room is not None and told["room"] != room
                ):
                    pass
        except TimeoutError as error:
            raise self.program.failed(f"told of no {event!r} in time") from error

    async def _next(self) -> dict[str, str]:
        line = await self.reader.readline()
        if not line:
            raise self.program.failed("gave up")
        told: dict[str, str] = json.loads(line)
        return told


@dataclass(frozen=True, slots=True)
class RunningAgent:
    """An agent that listens in its room."""

    room: str
    identity: str
    order: Order

    async def hold(self) -> None:
        """From now on it begins its answers with `You` and goes no further."""
        await self.order.carry_out("hold")

    async def release(self) -> None:
        """It ends the answer that it has begun, and gives the next ones whole."""
        await self.order.carry_out("release")


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """A worker that LiveKit knows. Its agents get identities from LiveKit Agents: `agent-…`."""

    agent_name: str
    order: Order

    async def hold(self) -> None:
        """From now on its agents are dispatched, and do not join."""
        await self.order.carry_out("hold")

    async def release(self) -> None:
        """The agents that are held join, and later ones at once."""
        await self.order.carry_out("release")

    async def dispatched(self, room: str) -> None:
        """Its agent for the room is on its way."""
        await self.order.until("dispatched", room)

    async def ready(self, room: str) -> None:
        """Its agent listens in the room."""
        await self.order.until("ready", room)


@asynccontextmanager
async def running_agent(
    program: AgentProgram, server: LiveKitServer, room: str, identity: str = "agent"
) -> AsyncIterator[RunningAgent]:
    """An agent that joins without a dispatch, and has left at the end of the block."""
    token = agent_token(server, room, identity)
    async with program.ordered("join", url=server.url, token=token) as order:
        await order.until("ready")
        yield RunningAgent(room, identity, order)


@asynccontextmanager
async def running_worker(
    program: AgentProgram, server: LiveKitServer, agent_name: str | None = None, held: bool = False
) -> AsyncIterator[RunningWorker]:
    """A worker, registered; its agents leave with it.

    It goes where its name is asked for, by a token's room configuration or the server's API: a name
    that no other test uses unless one is given. With an empty name it goes to every room that is made.
    """
    name = f"agent-{secrets.token_hex(4)}" if agent_name is None else agent_name
    options = {
        "ws_url": server.url,
        "api_key": server.api_key,
        "api_secret": server.api_secret,
        "agent_name": name,
        "held": held,
    }
    async with program.ordered("work", **options) as order:
        await order.until("registered")
        yield RunningWorker(name, order)


def agent_token(server: LiveKitServer, room: str, identity: str) -> str:
    """A token like those that LiveKit gives to agents that it dispatches."""
    grants = api.VideoGrants(room_join=True, room=room, agent=True, can_update_own_metadata=True)
    return (
        api.AccessToken(server.api_key, server.api_secret)
        .with_identity(identity)
        .with_kind("agent")
        .with_ttl(timedelta(minutes=5))
        .with_grants(grants)
        .to_jwt()
    )


def _env() -> dict[str, str]:
    """The program imports what is beside it, too."""
    return agent_environ(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{HELPER}")
