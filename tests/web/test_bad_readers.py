"""What readers of events do that nobody should: they take nothing, or send what nobody asked for.

They cost themselves what they are owed, and nobody else anything.
"""

import asyncio
import json
import logging
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from tests.conftest import Serve
from tests.polling import poll_until
from tests.running_gateway import DEADLINE, EventStream, RunningGateway

LARGE = "\x01" * 1_000_000
"""Six times as much as an event, for JSON writes each character in six bytes: far more than sockets hold."""

LINES = "application/x-ndjson"


@pytest.mark.parametrize("query", ["", "&view=messages"])
@pytest.mark.parametrize("accept", ["text/event-stream", LINES])
@pytest.mark.parametrize("is_live", [True, False])
async def test_who_takes_nothing_of_a_large_text_holds_little(
    serve_memory: Serve, room: str, query: str, accept: str, is_live: bool
) -> None:
    readers = 20
    async with serve_memory() as gateway, AsyncExitStack() as holding:
        if not is_live:
            await holding.enter_async_context(gateway.events(room, "bob"))
            await gateway.post(room, "carol", LARGE)
        tracemalloc.start()
        for number in range(readers):
            # Of other topics each, so that what they are written is not the same.
            path = f"/rooms/{room}/events?topic=lk.chat&topic={number}&replay=all{query}"
            await holding.enter_async_context(_standing_still(gateway, room, path, accept))
        held, _ = tracemalloc.get_traced_memory()
        if is_live:
            await gateway.post(room, "carol", LARGE)
        now, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    # The text itself is in two logs, and on its way for the first of them.
    most = 30_000_000 if is_live else 0
    assert now - (held if is_live else 0) < most + readers * 500_000


@pytest.mark.parametrize("is_replayed", [True, False])
async def test_a_large_text_comes_whole_in_every_form(
    serve_memory: Serve, room: str, is_replayed: bool
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as first:
        position = (await first.until("gateway.opened")).data["position"]
        texts = ["small", LARGE, "", 'a comma and ,"text":" too', LARGE[:70_000]]
        for text in texts:
            await gateway.post(room, "carol", text, **{"attr.quoted": ',"text":"'})
        asked = {"replay": "all"} if is_replayed else {"last_event_id": position}
        async with gateway.events(room, "bob", **asked) as bob:
            streams = [(await bob.text()).text for _ in texts]
        async with gateway.events(room, "bob", view="messages", **asked) as bob:
            messages = [(await bob.until("message")).data["text"] for _ in texts]
        async with gateway.events(room, "bob", accept=LINES, view="messages", **asked) as bob:
            lines = [line["text"] for line in await _lines(bob, "message", len(texts))]
        async with gateway.events(room, "bob", accept=LINES, **asked) as bob:
            chunks = [line["text"] for line in await _lines(bob, "stream.chunk", len(texts) - 1)]

    assert streams == messages == lines == texts
    assert chunks == [text for text in texts if text]


async def _lines(events: EventStream, kind: str, count: int) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    while len(found) < count:
        line = await events.line()
        if line["type"] == kind:
            found.append(line)
    return found


async def test_an_event_stream_that_ends_in_the_middle_of_a_large_text_says_so_behind_it(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        path = f"/rooms/{room}/topics/lk.chat/events"
        token = gateway.token_that_lives("bob", room, 1.5)
        async with (
            _standing_still(gateway, room, path, token=token) as (reader, transport),
            gateway.events(room, "bob", token=token) as other,
        ):
            await other.until("gateway.opened")
            await gateway.post(room, "carol", LARGE)
            await other.until("gateway.closing")
            transport.resume_reading()
            async with asyncio.timeout(DEADLINE):
                rest = _unchunked(await reader.read())

    *_, chunk, closing, end = rest.split(b"\n\n")
    assert json.loads(chunk.partition(b"\ndata: ")[2])["text"] == LARGE
    assert closing.startswith(b"event: gateway.closing\n")
    assert end == b""


def _unchunked(data: bytes) -> bytes:
    """Of the rest of a body, whose first chunk has begun."""
    _, _, data = data.partition(b"\r\n")
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        found += data[:length]
        data = data[length + 2 :]
    return found


async def test_who_is_slower_than_the_log_does_not_hold_what_it_has_dropped(
    serve_memory: Serve, room: str
) -> None:
    """Nor by taking a little of a large text now and then, which is not standing still."""
    bounds = {"log_events": 6, "heartbeat": 0.1, "write_timeout": 1.0}
    async with serve_memory(**bounds) as gateway:
        await gateway.post(room, "bob", "I am here")
        await gateway.post(room, "carol", LARGE)
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            slow.connect((host, int(port)))
            path = f"/rooms/{room}/topics/lk.chat/events?replay=all"
            bearer = gateway.token("bob", room)
            slow.sendall(
                f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\n\r\n".encode()
            )
            slow.setblocking(False)
            streams = gateway.hub.metrics
            await poll_until(lambda: streams.event_streams_opened == 1)
            for _ in range(6):
                await gateway.post(room, "carol", "more")

            def takes_little() -> bool:
                with suppress(BlockingIOError):
                    slow.recv(10_000)
                return streams.event_streams_closed["slow"] == 1

            await poll_until(takes_little)


async def test_who_takes_nothing_when_the_gateway_stops_is_dropped_without_an_error(
    serve_memory: Serve, room: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as holding, serve_memory(drain_timeout=1.0) as gateway:
        path = f"/rooms/{room}/topics/lk.chat/events"
        await holding.enter_async_context(_standing_still(gateway, room, path))
        await gateway.post(room, "carol", LARGE)

    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_what_was_not_for_a_reader_does_not_make_it_a_slow_one(
    serve_memory: Serve, room: str
) -> None:
    """It has all up to the event that comes, however much the log has dropped since its last one."""
    async with serve_memory(log_events=10) as gateway, gateway.events(room, "bob", "quiet") as bob:
        await bob.until("gateway.opened")
        for _ in range(10):
            await gateway.post(room, "carol", "elsewhere")
        await gateway.post(room, "carol", LARGE, topic="quiet")
        text = await bob.text()

    assert text.text == LARGE


async def test_the_beginning_of_a_request_behind_an_event_stream_is_not_forgotten(
    serve_memory: Serve, room: str
) -> None:
    """Its rest would be taken for a request of its own."""
    async with serve_memory() as gateway:
        token = gateway.token_that_lives("bob", room, 1.5)
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"GET /rooms/{room}/topics/lk.chat/events?access_token={token} HTTP/1.1\r\nHost: x\r\n\r\n"
            "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Other: ".encode()
        )
        async with asyncio.timeout(DEADLINE):
            await reader.readuntil(b"\r\n0\r\n\r\n")
            writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
            answer = await reader.read()
        writer.close()

    assert answer.endswith(b"\r\n\r\nok\n")


@asynccontextmanager
async def _standing_still(
    gateway: RunningGateway,
    room: str,
    path: str,
    accept: str = "*/*",
    token: str | None = None,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.Transport]]:
    """A reader of events that has read the first one, and takes nothing more until it is let."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n"
        f"Authorization: Bearer {token or gateway.token('bob', room)}\r\n\r\n".encode()
    )
    transport: asyncio.Transport = writer.transport  # type: ignore[assignment]
    try:
        async with asyncio.timeout(DEADLINE):
            await reader.readuntil(b"gateway.opened")
        transport.pause_reading()
        yield reader, transport
    finally:
        transport.abort()
