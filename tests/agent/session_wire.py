"""A participant with LiveKit's own SDK, which reads what agent sessions send to their room."""

import asyncio
import json
import math
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict
from livekit import api, rtc
from livekit.protocol.agent_pb import agent_session as agent_pb

from tests.leaving import leave_for_good
from tests.running_gateway import livekit_token
from tools.livekit_server import LiveKitServer

TOPIC = "lk.agent.session"

MARKER = "livekit-sse-gateway"

DEADLINE = 10.0

SAMPLE_RATE = 48_000

FRAME_SAMPLES = SAMPLE_RATE // 100

TONE_HERTZ = 400
"""A frame holds it a whole number of times."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One event on the wire."""

    kind: str
    members: dict[str, Any]
    by_helper: bool
    replaces: str | None = None
    is_cut: bool = False
    left_out: int = 0
    size: int = 0
    """Bytes of the whole message."""


class SessionWire:
    """What came, in its order; and the participant's own voice."""

    def __init__(self, room: rtc.Room, server: LiveKitServer) -> None:
        self.room = room
        self._server = server
        self._has_left = False
        self.sent: list[Sent] = []
        self.is_loud = False
        self._readers: asyncio.Queue[rtc.ByteStreamReader] = asyncio.Queue()
        self._told = asyncio.Event()
        room.register_byte_stream_handler(TOPIC, lambda reader, _: self._readers.put_nowait(reader))

    async def leave(self) -> None:
        """For good, in the middle of whatever is sent."""
        self._has_left = True
        await leave_for_good(self.room, self._server)

    async def read(self) -> None:
        while True:
            reader = await self._readers.get()
            try:
                data = b"".join([chunk async for chunk in reader])
            except rtc.StreamError:
                if not self._has_left:
                    raise
                return
            message = agent_pb.AgentSessionMessage.FromString(data)
            if message.HasField("event"):
                self.sent.append(_sent(message.event, len(data)))
                self._told.set()

    async def until(
        self, kind: str, which: Callable[[Sent], bool] = lambda _: True, count: int = 1
    ) -> Sent:
        """The event of a kind, of those that `which` is true of; the `count`th of them."""
        try:
            async with asyncio.timeout(DEADLINE):
                while (
                    len(found := [one for one in self.sent if one.kind == kind and which(one)])
                    < count
                ):
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError as error:
            kinds = [(sent.kind, sent.by_helper) for sent in self.sent]
            raise AssertionError(f"No {kind} came in time, but {kinds}") from error
        return found[count - 1]

    async def until_helper(
        self,
        kind: str,
        which: Callable[[dict[str, Any]], bool] = lambda _: True,
        count: int = 1,
    ) -> Sent:
        return await self.until(kind, lambda sent: sent.by_helper and which(sent.members), count)

    def of_helper(self, kind: str) -> list[dict[str, Any]]:
        return [sent.members for sent in self.sent if sent.by_helper and sent.kind == kind]

    async def write(self, text: str) -> None:
        """As a stock front end does it."""
        await self.room.local_participant.send_text(text, topic="lk.chat")

    async def speak(self) -> None:
        """Publish a microphone, and fill it with a tone while `is_loud`."""
        source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=100)
        track = rtc.LocalAudioTrack.create_audio_track("tone", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self.room.local_participant.publish_track(track, options)
        turns = (TONE_HERTZ * sample / SAMPLE_RATE for sample in range(FRAME_SAMPLES))
        tone = array("h", [int(16_000 * math.sin(2 * math.pi * turn)) for turn in turns]).tobytes()
        while True:
            data = tone if self.is_loud else bytes(2 * FRAME_SAMPLES)
            # It returns when there is room for the frame: this is the pace.
            await source.capture_frame(rtc.AudioFrame(data, SAMPLE_RATE, 1, FRAME_SAMPLES))


def _sent(event: agent_pb.AgentSessionEvent, size: int) -> Sent:
    kind = event.WhichOneof("event") or ""
    payload = event.debug_message.payload.fields
    if MARKER not in payload:
        whole = MessageToDict(event, preserving_proto_field_name=True)
        return Sent(kind, whole.get(kind, {}), by_helper=False, size=size)
    assert payload[MARKER].number_value == 1
    return Sent(
        payload["type"].string_value,
        json.loads(payload["members"].string_value),
        by_helper=True,
        replaces=payload["replaces"].string_value if "replaces" in payload else None,
        is_cut="cut" in payload and payload["cut"].bool_value,
        left_out=int(payload["left_out"].number_value) if "left_out" in payload else 0,
        size=size,
    )


@asynccontextmanager
async def session_wire(
    server: LiveKitServer,
    room: str,
    identity: str = "alice",
    voice: bool = False,
    agent_name: str = "",
) -> AsyncIterator[SessionWire]:
    """A participant in the room, who reads from before it is connected.

    With `agent_name`, the room is made with that agent on its way.
    """
    joined = rtc.Room()
    wire = SessionWire(joined, server)
    token = _token(server, room, identity, agent_name)
    await joined.connect(server.url, token)
    tasks = [asyncio.create_task(wire.read())]
    if voice:
        tasks.append(asyncio.create_task(wire.speak()))
    try:
        yield wire
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await joined.disconnect()
        for task in tasks:
            assert task.cancelled() or task.exception() is None, task.exception()


def _token(server: LiveKitServer, room: str, identity: str, agent_name: str) -> str:
    if not agent_name:
        return livekit_token(server, room, identity)
    configuration = api.RoomConfiguration(agents=[api.RoomAgentDispatch(agent_name=agent_name)])
    return (
        api.AccessToken(server.api_key, server.api_secret)
        .with_identity(identity)
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .with_room_config(configuration)
        .to_jwt()
    )
