"""A process of the benchmark, with one role: `python -m benchmarks.worker ROLE`.

It is told what to do by lines of JSON on its standard input, answers each with one on its standard
output, and ends with its input, so that it never outlives whoever started it. The first line says
where to go.
"""

import asyncio
import contextlib
import json
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import uvloop
from jwt.warnings import InsecureKeyLengthWarning
from livekit import rtc

from benchmarks import machine
from benchmarks.agent_clients import (
    ColdAskers,
    Conversations,
    HttpAsker,
    SdkAsker,
    SdkEvents,
    SseEvents,
)
from benchmarks.connections import Connections, GatewayConnections, Newcomers, SdkConnections
from benchmarks.receivers import (
    Arrivals,
    DigestReceiver,
    Receiver,
    StreamReceiver,
    listen,
    subscribe,
)
from benchmarks.senders import (
    TOPIC,
    HttpSender,
    RoomsSender,
    SdkSender,
    Sender,
    at_once,
    bulk,
    one_by_one,
    piecewise,
    until_heard,
)
from gateway.rooms.base import Listener
from gateway.rooms.livekit import LiveKitRooms

T = TypeVar("T")

Command = Callable[..., Awaitable[Any]]

Commands = contextlib.AbstractAsyncContextManager[Mapping[str, Command]]
"""Of one role, by name, while it lasts."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker goes."""

    livekit_url: str
    gateway_port: int
    room: str
    token: str
    api_key: str
    api_secret: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@contextlib.asynccontextmanager
async def http_sender(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    sender = HttpSender(place.gateway_port, f"/rooms/{place.room}/text?topic={TOPIC}", place.token)
    try:
        yield _sender_commands(sender)
    finally:
        await sender.close()


@contextlib.asynccontextmanager
async def sdk_sender(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    sender = SdkSender(await _joined(place, rtc.Room()))
    try:
        yield _sender_commands(sender)
    finally:
        await sender.close()


@contextlib.asynccontextmanager
async def rooms_sender(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    rooms = LiveKitRooms(place.livekit_url, place.api_key, place.api_secret, max_stream_bytes=1)
    sender = RoomsSender(await rooms.join(place.room, "sender", place.token, (), DEAF))
    try:
        yield _sender_commands(sender)
    finally:
        await sender.close()
        await rooms.aclose()


@contextlib.asynccontextmanager
async def http_receiver(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    receiver = Receiver()
    path = f"/rooms/{place.room}/topics/{TOPIC}/events"
    following = await subscribe(receiver.take_block, place.gateway_port, path, place.token)
    try:
        yield {"take": receiver.take}
    finally:
        following.cancel()


@contextlib.asynccontextmanager
async def sdk_receiver(
    arrivals: Callable[[], Arrivals[T]], place: Place
) -> AsyncIterator[Mapping[str, Command]]:
    receiver = arrivals()
    room = rtc.Room()
    listen(receiver, room)
    await _joined(place, room)
    try:
        yield {"take": receiver.take}
    finally:
        await room.disconnect()


@contextlib.asynccontextmanager
async def gateway_connections(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    connections = GatewayConnections(place.livekit_url, place.room, place.api_key, place.api_secret)
    try:
        yield _connection_commands(connections)
    finally:
        await connections.close()


@contextlib.asynccontextmanager
async def sdk_connections(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    connections = SdkConnections(place.livekit_url, place.room, place.api_key, place.api_secret)
    try:
        yield _connection_commands(connections)
    finally:
        await connections.close()


@contextlib.asynccontextmanager
async def newcomers(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    coming = Newcomers(
        place.livekit_url, place.gateway_port, place.room, place.api_key, place.api_secret
    )
    try:
        yield {"bring_agent": coming.bring_agent, "join": coming.join, "post": coming.post}
    finally:
        await coming.close()


@contextlib.asynccontextmanager
async def http_agent_events(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    events = SseEvents()
    path = f"/rooms/{place.room}/agent/events"
    following = await subscribe(events.take_block, place.gateway_port, path, place.token)
    try:
        yield {"take": events.take}
    finally:
        following.cancel()


@contextlib.asynccontextmanager
async def sdk_agent_events(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    room = rtc.Room()
    events = SdkEvents(room)
    await _joined(place, room)
    try:
        yield {"take": events.take}
    finally:
        await room.disconnect()


@contextlib.asynccontextmanager
async def http_asker(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    asker = await HttpAsker.open(place.gateway_port, place.room, place.token)
    try:
        yield {"ask": asker.ask}
    finally:
        asker.close()


@contextlib.asynccontextmanager
async def sdk_asker(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    room = rtc.Room()
    asker = SdkAsker(room)
    await _joined(place, room)
    try:
        yield {"ask": asker.ask}
    finally:
        await asker.close()


@contextlib.asynccontextmanager
async def cold_askers(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    askers = ColdAskers(
        place.livekit_url, place.gateway_port, place.room, place.api_key, place.api_secret
    )
    yield {"turn": askers.turn, "turns": askers.turns, "sdk_turn": askers.sdk_turn}


@contextlib.asynccontextmanager
async def conversations(place: Place) -> AsyncIterator[Mapping[str, Command]]:
    held = Conversations(place.gateway_port, place.room, place.api_key, place.api_secret)
    try:
        yield {"open": held.open, "converse": held.converse, "told": held.told}
    finally:
        await held.close()


DEAF = Listener(lambda event: None, lambda: None, lambda: None, lambda reason: None)

ROLES: Mapping[str, Callable[[Place], Commands]] = {
    "http_sender": http_sender,
    "sdk_sender": sdk_sender,
    "rooms_sender": rooms_sender,
    "http_receiver": http_receiver,
    "sdk_receiver": partial(sdk_receiver, Receiver),
    "sdk_stream_receiver": partial(sdk_receiver, StreamReceiver),
    "sdk_digest_receiver": partial(sdk_receiver, DigestReceiver),
    "gateway_connections": gateway_connections,
    "sdk_connections": sdk_connections,
    "newcomers": newcomers,
    "http_agent_events": http_agent_events,
    "sdk_agent_events": sdk_agent_events,
    "http_asker": http_asker,
    "sdk_asker": sdk_asker,
    "cold_askers": cold_askers,
    "conversations": conversations,
}


def _sender_commands(sender: Sender) -> Mapping[str, Command]:
    commands = (until_heard, one_by_one, at_once, piecewise, bulk)
    return {command.__name__: partial(command, sender) for command in commands}


def _connection_commands(connections: Connections) -> Mapping[str, Command]:
    return {
        "open": connections.open,
        "come_and_go": connections.come_and_go,
        "take": connections.take,
        "cpu": connections.cpu,
        "memory": connections.memory,
    }


async def _joined(place: Place, room: rtc.Room) -> rtc.Room:
    await room.connect(place.livekit_url, place.token, rtc.RoomOptions(auto_subscribe=False))
    return room


async def work(role: str) -> None:
    lines = await input_lines()
    place = Place(**json.loads(await lines.readline()))
    async with ROLES[role](place) as commands:
        answer(None)
        while line := await lines.readline():
            name, arguments = json.loads(line)
            answer(await commands[name](*arguments))


async def input_lines() -> asyncio.StreamReader:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    return lines


def answer(value: object) -> None:
    print(json.dumps(value, default=asdict), flush=True)


if __name__ == "__main__":
    # LiveKit's development secret is six bytes long.
    warnings.simplefilter("ignore", InsecureKeyLengthWarning)
    machine.allow_many_files()
    uvloop.run(work(sys.argv[1]))
