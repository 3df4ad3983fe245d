"""curl, for what httpx cannot: HTTP/2, and an answer that is read while the body is being sent."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

from tests.running_gateway import DEADLINE, EventStream


class Curl:
    """One request under way."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def send(self, piece: str) -> None:
        """More of the body of who was started with `--upload-file -`."""
        assert self._process.stdin is not None
        self._process.stdin.write(piece.encode())

    def finish(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def break_off(self) -> None:
        """As a browser's tab that is closed."""
        self._process.kill()

    async def head(self) -> httpx.Response:
        """The answer without its body."""
        async with asyncio.timeout(DEADLINE):
            version, status, *_ = (await self._line()).split()
            headers = []
            while line := (await self._line()).rstrip():
                name, _, value = line.partition(": ")
                headers.append((name, value))
        return httpx.Response(
            int(status), headers=headers, extensions={"http_version": version.encode()}
        )

    async def events(self) -> EventStream:
        return EventStream(await self.head(), self._lines())

    async def problem(self) -> tuple[httpx.Response, dict[str, Any]]:
        head = await self.head()
        return head, json.loads(await self.rest())

    async def rest(self) -> str:
        """All that is still to come."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            return (await self._process.stdout.read()).decode()

    async def _lines(self) -> AsyncGenerator[str]:
        while line := await self._line():
            yield line

    async def _line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode()


@asynccontextmanager
async def curl(*arguments: str) -> AsyncIterator[Curl]:
    """`curl ARGUMENTS`; what it complains of is on standard error."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--include", "--no-buffer", "--noproxy", "*"),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Curl(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
