"""A gateway on a real socket, in this process, and the clients that tests speak to it with."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
from livekit import api

from gateway.__main__ import make_hub, make_server
from gateway.auth import LEEWAY
from gateway.hub import Hub
from gateway.rooms.base import Rooms
from gateway.rooms.memory import MemoryRooms
from gateway.rooms.tokens import mint
from gateway.server import Server, listen
from gateway.settings import Settings
from tests.agent_schemas import problems_of
from tools.livekit_server import LiveKitServer

DEADLINE = 5.0
"""Seconds for anything to happen that a test waits for."""


async def emptied(hub: Hub) -> None:
    """Once every connection of the process has ended by itself, or has been left."""
    async with asyncio.timeout(DEADLINE):
        while hub._tasks:
            await asyncio.wait(hub._tasks)
    assert hub.connections == 0


def livekit_token(server: LiveKitServer, room: str, identity: str) -> str:
    """A token for who joins without a gateway."""
    return mint(
        server.api_key,
        server.api_secret,
        room=room,
        identity=identity,
        ttl=timedelta(minutes=5),
    )


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event as a browser sees it."""

    name: str
    id: str | None
    """Of this very block; None where it has none."""
    data: dict[str, Any]


@dataclass(slots=True)
class Text:
    """One stream, folded from its events."""

    header: dict[str, Any]
    text: str = ""
    chunks: int = 0
    end: dict[str, Any] | None = None

    def add(self, event: ServerSentEvent) -> None:
        if event.name == "stream.chunk":
            assert event.data["index"] == self.chunks
            self.text += event.data["text"]
            self.chunks += 1
        else:
            assert event.data["chunks"] == self.chunks
            self.end = event.data


class EventStream:
    """A reader of one event stream, by the rules of the HTML standard."""

    def __init__(self, response: httpx.Response, lines: AsyncGenerator[str]) -> None:
        self.response = response
        self.last_event_id = ""
        self.comments: list[str] = []
        self.retry: int | None = None
        self._lines = lines
        self._texts: list[Text] = []

    async def next(self, within: float = DEADLINE) -> ServerSentEvent:
        """The next event that is dispatched. Raises StopAsyncIteration at the proper end of the body."""
        async with asyncio.timeout(within):
            return await self._next()

    async def until(self, name: str, within: float = DEADLINE) -> ServerSentEvent:
        """The next event of that name; what comes before it is passed over."""
        while (event := await self.next(within)).name != name:
            pass
        return event

    async def text(self) -> "Text":
        """The next stream, whole, in the order of opening: pieces of others may come in between."""
        while not self._texts or self._texts[0].end is None:
            event = await self.next()
            if event.name == "stream.opened":
                self._texts.append(Text(event.data))
            elif event.name.startswith("stream."):
                stream = next(
                    text
                    for text in self._texts
                    if text.header["stream_id"] == event.data["stream_id"] and text.end is None
                )
                stream.add(event)
        return self._texts.pop(0)

    async def take(self, count: int) -> list[ServerSentEvent]:
        return [await self.next() for _ in range(count)]

    async def cursor(self) -> str:
        """The id of the next block that has one, whether it fires an event or not."""
        async with asyncio.timeout(DEADLINE):
            before = self.last_event_id
            while self.last_event_id == before:
                await self._block()
        return self.last_event_id

    async def ends(self) -> None:
        """The body ends here, properly."""
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    assert await self._block() is None
                except StopAsyncIteration:
                    return

    async def raw(self, count: int) -> str:
        """So many lines, as they are."""
        async with asyncio.timeout(DEADLINE):
            return "".join([await anext(self._lines) for _ in range(count)])

    async def line(self) -> dict[str, Any]:
        """The next one of JSON lines. Raises StopAsyncIteration at the proper end of the body."""
        line: dict[str, Any] = json.loads(await self.raw(1))
        return line

    async def _next(self) -> ServerSentEvent:
        while (event := await self._block()) is None:
            pass
        return event

    async def _block(self) -> ServerSentEvent | None:
        fields: dict[str, str] = {}
        while line := (await anext(self._lines)).rstrip("\n"):
            if line.startswith(":"):
                self.comments.append(line[1:].strip())
                continue
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        if "id" in fields:
            self.last_event_id = fields["id"]
        if "retry" in fields:
            self.retry = int(fields["retry"])
        if "data" not in fields:
            return None
        data = json.loads(fields["data"])
        assert data["type"] == fields["event"]
        if data["type"].startswith("agent."):
            assert problems_of(data) == []
        return ServerSentEvent(fields["event"], fields.get("id"), data)


@dataclass(slots=True)
class RunningGateway:
    url: str
    settings: Settings
    rooms: Rooms
    hub: Hub
    server: Server
    client: httpx.AsyncClient

    def token(self, identity: str, room: str, **grants: Any) -> str:
        """A token as an application's back end mints it."""
        return (
            api.AccessToken(self.settings.livekit_api_key, self.settings.livekit_api_secret)
            .with_identity(identity)
            .with_grants(api.VideoGrants(room_join=True, room=room, **grants))
            .to_jwt()
        )

    def token_that_lives(self, identity: str, room: str, seconds: float) -> str:
        """One that is taken for so long from now, within the leeway that clocks are given."""
        return (
            api.AccessToken(self.settings.livekit_api_key, self.settings.livekit_api_secret)
            .with_identity(identity)
            .with_ttl(timedelta(seconds=seconds - LEEWAY))
            .with_grants(api.VideoGrants(room_join=True, room=room))
            .to_jwt()
        )

    def bearer(self, identity: str, room: str, **grants: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(identity, room, **grants)}"}

    def admin_bearer(self, room: str) -> dict[str, str]:
        return self.bearer("admin", room, room_admin=True)

    async def post(
        self,
        room: str,
        identity: str,
        content: Any,
        *,
        content_type: str = "text/plain",
        **query: Any,
    ) -> httpx.Response:
        return await self.client.post(
            f"/rooms/{room}/text",
            params=query,
            content=content,
            headers={**self.bearer(identity, room), "Content-Type": content_type},
        )

    async def begin_upload(
        self,
        room: str,
        identity: str,
        content: bytes = b"",
        *,
        complete: str = "?0",
        token: str | None = None,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> "Uploading":
        """A POST that begins a resumable upload, as a client of the IETF draft makes it."""
        authorization = {"Authorization": f"Bearer {token or self.token(identity, room)}"}
        answer = await self.client.post(
            f"/rooms/{room}/text",
            params=query,
            content=content,
            headers={**authorization, "Upload-Complete": complete, **(headers or {})},
        )
        return Uploading(self.client, answer, authorization)

    async def delete_room(self, room: str) -> None:
        """What an operator does by LiveKit's server API."""
        if isinstance(self.rooms, MemoryRooms):
            self.rooms.delete_room(room)
            return
        async with self._server_api() as server:
            await server.room.delete_room(api.DeleteRoomRequest(room=room))

    async def remove(self, room: str, identity: str) -> None:
        """Likewise."""
        if isinstance(self.rooms, MemoryRooms):
            self.rooms.remove_participant(room, identity)
            return
        async with self._server_api() as server:
            await server.room.remove_participant(
                api.RoomParticipantIdentity(room=room, identity=identity)
            )

    async def forbid_sending(self, room: str, identity: str) -> None:
        """Likewise."""
        if isinstance(self.rooms, MemoryRooms):
            self.rooms.set_can_publish_data(room, identity, False)
            return
        permission = api.ParticipantPermission(can_subscribe=True, can_publish_data=False)
        async with self._server_api() as server:
            await server.room.update_participant(
                api.UpdateParticipantRequest(room=room, identity=identity, permission=permission)
            )

    def _server_api(self) -> api.LiveKitAPI:
        settings = self.settings
        return api.LiveKitAPI(
            settings.livekit_url, settings.livekit_api_key, settings.livekit_api_secret
        )

    @asynccontextmanager
    async def upload(
        self,
        room: str,
        identity: str,
        *,
        content_type: str = "text/plain",
        token: str | None = None,
        query: str = "",
        path: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator["ChunkedUpload"]:
        """A POST, or a PATCH of `path`, with a chunked body on a bare socket: httpx reads no answer before the body's end."""
        host, port = self.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = [
            f"POST /rooms/{room}/text{query} HTTP/1.1"
            if path is None
            else f"PATCH {path} HTTP/1.1",
            f"Host: {host}:{port}",
            f"Content-Type: {content_type}",
            "Transfer-Encoding: chunked",
            f"Authorization: Bearer {token or self.token(identity, room)}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
            "",
            "",
        ]
        writer.write("\r\n".join(lines).encode())
        try:
            yield ChunkedUpload(reader, writer)
        finally:
            writer.close()

    @asynccontextmanager
    async def events(
        self,
        room: str,
        identity: str,
        topic: str | tuple[str, ...] = "lk.chat",
        *,
        last_event_id: str | None = None,
        token: str | None = None,
        accept: str | None = None,
        path: str | None = None,
        **query: Any,
    ) -> AsyncIterator[EventStream]:
        """An open event stream, past its headers; of several topics on one connection, where it is a tuple."""
        headers = {"Authorization": f"Bearer {token or self.token(identity, room)}"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        if accept is not None:
            headers["Accept"] = accept
        if path is None:
            path = f"/rooms/{room}/topics/{topic}/events"
        if isinstance(topic, tuple):
            path = f"/rooms/{room}/events"
            query["topic"] = topic
        async with (
            self.client.stream("GET", path, params=query, headers=headers) as response,
            aclosing(_lines(response)) as lines,
        ):
            yield EventStream(response, lines)

    @asynccontextmanager
    async def turn(
        self,
        room: str,
        identity: str,
        text: str,
        *,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> AsyncIterator[EventStream]:
        """An agent's answer as it is streamed, past its headers."""
        told = {**self.bearer(identity, room), "Content-Type": "text/plain", **(headers or {})}
        path = f"/rooms/{room}/agent/turns"
        async with (
            self.client.stream("POST", path, params=query, content=text, headers=told) as response,
            aclosing(_lines(response)) as lines,
        ):
            yield EventStream(response, lines)

    def agent_events(
        self, room: str, identity: str, **options: Any
    ) -> AbstractAsyncContextManager[EventStream]:
        """Likewise, of the agents in the room."""
        return self.events(room, identity, path=f"/rooms/{room}/agent/events", **options)

    def admin_events(
        self, room: str, topic: str = "lk.chat", **query: Any
    ) -> AbstractAsyncContextManager[EventStream]:
        """Likewise, of an administrator who reads unseen."""
        token = self.token("admin", room, room_admin=True)
        return self.events(room, "admin", topic, token=token, presence="none", **query)


@dataclass(frozen=True, slots=True)
class Uploading:
    """One resumable upload that has been begun, and its next requests."""

    client: httpx.AsyncClient
    created: httpx.Response
    authorization: dict[str, str]

    @property
    def url(self) -> str:
        return self.created.headers["location"]

    async def head(self, **headers: str) -> httpx.Response:
        return await self.client.head(self.url, headers=self.authorization | _dashed(headers))

    async def patch(
        self, offset: int, content: Any, complete: str | None = "?0", **headers: str
    ) -> httpx.Response:
        told = {"content_type": "application/partial-upload", "upload_offset": str(offset)}
        if complete is not None:
            told["upload_complete"] = complete
        return await self.client.patch(
            self.url, content=content, headers=self.authorization | _dashed(told | headers)
        )

    async def delete(self, **headers: str) -> httpx.Response:
        return await self.client.delete(self.url, headers=self.authorization | _dashed(headers))


def _dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True, slots=True)
class ChunkedUpload:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, piece: bytes) -> None:
        if not piece:
            return  # an empty chunk is the end of a body
        self.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def finish(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        self.writer.close()

    async def send_until_answered(self, piece: bytes) -> tuple[int, dict[str, Any]]:
        """For an answer to what goes on beside it, and is noticed with the next piece."""
        answer = asyncio.create_task(self.answer())
        while not answer.done():
            self.send(piece)
            await asyncio.wait({answer}, timeout=0.02)
        return await answer

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of the answer."""
        async with asyncio.timeout(DEADLINE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            return int(head.split(" ")[1]), json.loads(await self.reader.readexactly(length))


async def _lines(response: httpx.Response) -> AsyncGenerator[str]:
    # httpx's aiter_lines also splits at U+2028 and others, which do not end a line of an event stream.
    rest = ""
    async for piece in response.aiter_text():
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            yield line + "\n"


@asynccontextmanager
async def running(rooms: Rooms, settings: Settings) -> AsyncIterator[RunningGateway]:
    """The gateway's own wiring on a free port; drained and stopped at the end."""
    hub = make_hub(rooms, settings)
    server = make_server(hub, settings)
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    listening = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    # No keep-alive: at the end nothing is left that the server would wait for.
    limits = httpx.Limits(max_keepalive_connections=0)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE, limits=limits) as client:
            yield RunningGateway(url, settings, rooms, hub, server, client)
    finally:
        server.should_exit = True
        async with asyncio.timeout(2 * DEADLINE):
            await serving
        await rooms.aclose()


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    yield
