"""Rooms in which somebody listens to all that is sent, and to how it ends."""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from gateway.events import (
    Happening,
    StreamChunk,
    StreamClosed,
    StreamOpened,
)
from gateway.rooms.base import Listener
from tests.running_gateway import DEADLINE, RunningGateway


@dataclass(slots=True)
class Heard:
    """One stream, as somebody heard it."""

    tag: str
    text: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """All, at its end."""
    has_ended: bool = False
    is_whole: bool = False
    reason: str | None = None
    """Why it is not."""


class Ear:
    """All streams of a room, by their ids."""

    def __init__(self) -> None:
        self.streams: dict[str, Heard] = {}
        self.of: defaultdict[str, list[str]] = defaultdict(list)
        """The ids of those with a tag."""
        self.faults: list[str] = []
        self._changed = asyncio.Event()

    def hear(self, event: Happening) -> None:
        match event:
            case StreamOpened():
                self.opened(event.stream_id, event.attributes or {})
            case StreamChunk():
                self.streams[event.stream_id].text += event.text
            case StreamClosed():
                self.closed(event.stream_id, event.complete, event.reason, event.attributes)
            case _:
                pass  # of participants
        self._changed.set()

    def opened(self, stream_id: str, attributes: Mapping[str, str]) -> None:
        if stream_id in self.streams:
            self.faults.append(f"The stream {stream_id} is opened a second time.")
        tag = attributes["tag"]
        self.streams[stream_id] = Heard(tag)
        self.of[tag].append(stream_id)

    def closed(
        self, stream_id: str, complete: bool, reason: str | None, attributes: Mapping[str, str]
    ) -> None:
        stream = self.streams[stream_id]
        if stream.has_ended:
            self.faults.append(f"The stream {stream_id} is closed a second time.")
        stream.has_ended = True
        stream.is_whole = complete
        stream.reason = reason
        stream.attributes = attributes

    async def all_ended(self, last: str = "first") -> None:
        """`last`: the tag of one that is to come."""
        async with asyncio.timeout(DEADLINE):
            while last not in self.of or not all(each.has_ended for each in self.streams.values()):
                self._changed.clear()
                await self._changed.wait()


class Place:
    """A room with somebody who listens in it."""

    SENDER = "carol"

    def __init__(self, gateway: RunningGateway, room: str, ear: Ear, beginning: str) -> None:
        """`beginning`: the position in the sender's log before its first text here."""
        self.room = room
        self.ear = ear
        self.path = f"/rooms/{room}/text"
        self.headers = tuple(gateway.bearer(self.SENDER, room).items())
        self._gateway = gateway
        self._beginning = beginning

    async def settle(self) -> None:
        """Once all that was begun has ended, and is heard."""
        with suppress(TimeoutError):  # it is told of each whose stream that is
            await self.ear.all_ended()
        await say(self._gateway, self.room, "last")
        with suppress(TimeoutError):
            await self.ear.all_ended("last")

    async def compare(self) -> list[str]:
        """What is wrong with the sender's own log, which is to have all that the others heard."""
        own = Ear()
        if "last" not in self.ear.of:
            return [*self.ear.faults, "The last text in a room did not come."]
        last = self.ear.of["last"][0]
        async with self._gateway.events(
            self.room, self.SENDER, last_event_id=self._beginning
        ) as events:
            while last not in own.streams or not own.streams[last].has_ended:
                event = await events.next()
                data = event.data
                if event.name == "stream.opened":
                    own.opened(data["stream_id"], data["attributes"])
                elif event.name == "stream.chunk":
                    own.streams[data["stream_id"]].text += data["text"]
                elif event.name == "stream.closed":
                    own.closed(
                        data["stream_id"], data["complete"], data["reason"], data["attributes"]
                    )
                elif event.name != "gateway.opened":
                    own.faults.append(f"The sender's own log has {event.name}.")
        differing = [
            f"{stream_id}: the others heard {heard}, its sender's own log has {logged}"
            for stream_id in {**self.ear.streams, **own.streams}
            if (heard := self.ear.streams.get(stream_id)) != (logged := own.streams.get(stream_id))
        ]
        return [*self.ear.faults, *own.faults, *differing]


@asynccontextmanager
async def listening(gateway: RunningGateway) -> AsyncIterator[Place]:
    room = f"room-{secrets.token_hex(4)}"
    ear = Ear()
    listener = Listener(ear.hear, _nothing, _nothing, lambda reason: ear.faults.append(reason))
    joined = await gateway.rooms.join(
        room, "bob", gateway.token("bob", room), ("lk.chat",), listener
    )
    try:
        beginning = await say(gateway, room, "first")
        await ear.all_ended()
        yield Place(gateway, room, ear, beginning)
    finally:
        await joined.leave()


def _nothing() -> None:
    pass


async def say(gateway: RunningGateway, room: str, tag: str) -> str:
    """A text for its sender's log; the position before it."""
    answer = await gateway.post(room, Place.SENDER, tag, **{"attr.tag": tag})
    assert answer.status_code == 200
    position = answer.json()["position"]
    assert isinstance(position, str)
    return position
