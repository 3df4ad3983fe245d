"""A lean HTTP client: on two cores a comfortable one would be most of what is measured."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Self

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class HttpError(Exception):
    """An answer other than 200."""


class KeptConnection:
    """One keep-alive connection for POSTs to one path, one at a time."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head

    @classmethod
    async def open(cls, port: int, path: str, token: str) -> Self:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: text/plain\r\n"
        )
        return cls(reader, writer, head.encode())

    async def post(self, text: str) -> bytes:
        """The answer's body."""
        self._write(text)
        return await _answer(self._reader)

    async def events(self, text: str) -> AsyncGenerator[bytes]:
        """The blocks of an answer that is an event stream, each as soon as it is there."""
        self._write(text)
        async for block in _blocks(self._reader):
            yield block

    def begin(self) -> None:
        """Begins a chunked POST, to be gone on with by `piece` and `end`."""
        self._writer.write(self._head + b"Transfer-Encoding: chunked\r\n\r\n")

    async def piece(self, text: str) -> None:
        """Returns when less than the transport's 64 KiB wait for the kernel to take them."""
        body = text.encode()
        self._writer.write(b"%x\r\n%s\r\n" % (len(body), body))
        await self._writer.drain()

    async def end(self) -> bytes:
        self._writer.write(b"0\r\n\r\n")
        return await _answer(self._reader)

    def close(self) -> None:
        self._writer.close()

    def _write(self, text: str) -> None:
        body = text.encode()
        self._writer.write(b"%sContent-Length: %d\r\n\r\n%s" % (self._head, len(body), body))


async def event_blocks(port: int, path: str, token: str) -> AsyncGenerator[bytes]:
    """The blocks of an event stream, each as soon as it is there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    writer.write(request.encode())
    try:
        async for block in _blocks(reader):
            yield block
    finally:
        writer.close()


def event(block: bytes) -> tuple[str, dict[str, object]]:
    """The event's name and data; an empty name for a block that is none."""
    fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if ": " in line)
    return fields.get("event", ""), json.loads(fields.get("data", "{}"))


def is_event(block: bytes, name: str) -> bool:
    """Without reading its data."""
    return f"event: {name}\n".encode() in block


async def _blocks(reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    await _answer(reader)
    rest = b""
    while size := int(await reader.readline(), 16):
        *blocks, rest = (rest + await reader.readexactly(size)).split(b"\n\n")
        await reader.readexactly(len(b"\r\n"))
        for block in blocks:
            yield block
    await reader.readexactly(len(b"\r\n"))


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """The body of an answer that says how long it is; of another, its head alone is read."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _CONTENT_LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length else b""
    if not head.startswith(b"HTTP/1.1 200 "):
        raise HttpError((head + body).decode(errors="replace"))
    return body
