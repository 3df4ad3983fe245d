"""What the benchmark runs on: a LiveKit server, a gateway, and worker processes; all of them ours."""

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.worker import Place
from gateway.rooms.tokens import mint
from tools.child_process import ChildProcess, http_status, last_lines
from tools.livekit_server import LiveKitServer, find_livekit_server, start_livekit_server

READY_SECONDS = 20.0
"""The gateway is ready within two."""

STOP_SECONDS = 10.0
"""Twice what the gateway gives its event streams to end by themselves."""

ANSWER_SECONDS = 120.0
"""The longest rounds take half of it: a worker that is silent for so long has failed."""

ANSWER_BYTES = 1024 * 1024
"""A round's figures are one line of some 20 to 150 kB."""

TOKEN_TTL = timedelta(hours=1)


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Stage:
    livekit: LiveKitServer
    gateway_port: int
    pids: dict[str, int]
    """Of the LiveKit server, and of the gateway if there is one."""

    def place(self, room: str, identity: str) -> Place:
        key, secret = self.livekit.api_key, self.livekit.api_secret
        token = mint(key, secret, room=room, identity=identity, ttl=TOKEN_TTL)
        return Place(self.livekit.url, self.gateway_port, room, token, key, secret)


@contextmanager
def staged(*, gateway: bool = True) -> Iterator[Stage]:
    """A LiveKit server on free ports, with a gateway in front of it or without, ended with the context."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        log = Path(folder, "livekit-server.log")
        binary = find_livekit_server(report)
        with start_livekit_server(binary, report=report, log=log, port=0) as livekit:
            port = free_port()
            environment = {
                # With its defaults, whatever this shell has set for another gateway.
                **{name: os.environ[name] for name in os.environ if "GATEWAY" not in name},
                "LIVEKIT_URL": livekit.url,
                "LIVEKIT_API_KEY": livekit.api_key,
                "LIVEKIT_API_SECRET": livekit.api_secret,
                "GATEWAY_PORT": str(port),
            }
            pids = {"livekit-server": livekit.pid}
            stage = Stage(livekit, port, pids)
            if not gateway:
                yield stage
                return
            with _gateway(environment, port, Path(folder, "gateway.log")) as child:
                pids["gateway"] = child.pid
                yield stage


@contextmanager
def _gateway(environment: dict[str, str], port: int, log: Path) -> Iterator[ChildProcess]:
    with log.open("wb") as output:
        command = [sys.executable, "-m", "gateway"]
        child = ChildProcess(command, env=environment, output=output)
    try:
        child.wait_until(
            lambda: http_status("127.0.0.1", port, "/readyz") == 200, within=READY_SECONDS
        )
        yield child
    except BaseException:
        report(f"The end of the gateway's log:\n{last_lines(log)}")
        raise
    finally:
        child.stop(within=STOP_SECONDS)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class WorkerFailed(Exception):
    """A worker ended or said nothing; what it had to say is on standard error."""


class Worker:
    def __init__(self, role: str, process: asyncio.subprocess.Process) -> None:
        self.beginning: Any = None
        """What it answered to its first line; most have nothing to say."""
        self._role = role
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def do(self, command: str, *arguments: float | str) -> Any:
        return await self._ask(json.dumps([command, arguments]))

    async def begin(self, line: str) -> None:
        """The first line, which says where to go."""
        self.beginning = await self._ask(line)

    async def _ask(self, line: str) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                stdin.write(line.encode() + b"\n")
                if answer := await stdout.readline():
                    return json.loads(answer)
        raise WorkerFailed(f"The worker {self._role} gave no answer to {line[:80]}.")


@asynccontextmanager
async def working(role: str, place: Place) -> AsyncIterator[Worker]:
    """A worker process in that role, ended with the context."""
    command = (sys.executable, "-m", "benchmarks.worker", role)
    async with started(role, command, place.to_json()) as worker:
        yield worker


@asynccontextmanager
async def started(role: str, command: Sequence[str], first: str) -> AsyncIterator[Worker]:
    """A process that does as workers do, ended with the context; `first` is its first line."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=ANSWER_BYTES,
        # A terminal's Ctrl-C is for us alone; the worker ends with its input.
        start_new_session=True,
    )
    try:
        worker = Worker(role, process)
        await worker.begin(first)
        yield worker
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """The end of its input is what a worker ends with; one that does not is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
