"""What `make run` and `make demo` start, as a person meets it: started, read, pasted from, ended."""

import asyncio
import os
import re
import shlex
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import jwt

START_SECONDS = 30.0
"""Some Python programs and a LiveKit server start, and tokens are made, on a busy machine."""

DEADLINE = 10.0
"""For everything after the start; all of it takes milliseconds, a stop with open streams some more."""


@dataclass(frozen=True, slots=True)
class Running:
    process: Process

    async def ready(self) -> str:
        """What it prints once everything runs."""
        assert self.process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            return (await self.process.stdout.readuntil(b"Ctrl-C ends everything.\n")).decode()

    async def end(self, within: float = DEADLINE) -> tuple[int, str]:
        """Its exit code and log. The gateway writes that log too, so its end is the gateway's end."""
        async with asyncio.timeout(within):
            _, log = await self.process.communicate()
        assert "Traceback" not in log.decode()
        assert self.process.returncode is not None
        return self.process.returncode, log.decode()


@asynccontextmanager
async def running_tool(tool: str, **settings: str) -> AsyncIterator[Running]:
    """`python -m tool`, without what the environment says of LiveKit and the gateway."""
    others = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GATEWAY_", "LIVEKIT_")) or name == "LIVEKIT_SERVER_BIN"
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", tool), env=others | settings, stdout=PIPE, stderr=PIPE
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@asynccontextmanager
async def pasted(command: str) -> AsyncIterator[asyncio.StreamReader]:
    """What a command prints that is pasted into a terminal."""
    process = await asyncio.create_subprocess_exec("bash", "-c", command, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def the_line(text: str, start: str) -> str:
    return next(line.strip() for line in text.splitlines() if line.strip().startswith(start))


def bearer(command: str) -> str:
    return next(part for part in shlex.split(command) if "Bearer " in part).split()[-1]


def identity(token: str) -> str:
    sub: str = jwt.decode(token, options={"verify_signature": False})["sub"]
    return sub


def port_of(text: str, pattern: str) -> int:
    found = re.search(pattern + r":(\d+)", text)
    assert found is not None
    return int(found[1])


async def a_child_of(parent: int, what: str) -> int:
    for pid, command in (await children_of(parent)).items():
        if command.endswith(what):
            return pid
    raise AssertionError(f"no {what}")


async def children_of(parent: int) -> dict[int, str]:
    """The commands of its children, by their numbers."""
    async with asyncio.timeout(DEADLINE), pasted("ps -eww -o pid=,ppid=,args=") as listing:
        lines = (await listing.read()).decode().splitlines()
    processes = (line.split(maxsplit=2) for line in lines)
    return {int(pid): command for pid, ppid, command in processes if int(ppid) == parent}
