"""LiveKit goes away and comes back: a server of the tests' own is really killed and started again."""

import asyncio
import time

import httpx
import pytest

from gateway.rooms import livekit as livekit_rooms
from gateway.rooms.base import TextOptions
from tests.conftest import serve_on
from tests.guests import guest
from tests.running_gateway import DEADLINE, EventStream, RunningGateway
from tools.livekit_server import LiveKitServer

BACK_WITHIN = 5.0
"""Seconds after the server's return until live events come again."""


async def _heard(
    gateway: RunningGateway, room: str, text: str, bob: EventStream, carol: EventStream
) -> float:
    """Posts as carol, once both are back, and waits until the text comes out as bob's event; how long
    that took, in seconds. What is sent before may be missing, which the gap says."""
    begun = time.monotonic()
    for events in (bob, carol):
        await events.until("room.reconnected")
    assert (await gateway.post(room, "carol", text)).status_code == 200
    while (await bob.text()).text != text:
        pass
    return time.monotonic() - begun


@pytest.mark.parametrize("by", ["the SDK", "joining anew"])
async def test_event_streams_outlast_a_restart_of_livekit(
    server: LiveKitServer, room: str, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    # By itself the SDK tries every 5 s only, which is why it is not left to it for long.
    monkeypatch.setattr(livekit_rooms, "RESUME_TIMEOUT", 60.0 if by == "the SDK" else 0.05)
    back_within = 15.0 if by == "the SDK" else BACK_WITHIN
    monkeypatch.setattr("tests.running_gateway.DEADLINE", back_within)
    async with (
        serve_on(server, heartbeat=1.0) as gateway,
        gateway.events(room, "bob") as bob,
        gateway.events(room, "carol") as carol,
    ):
        for events in (bob, carol):
            await events.until("gateway.opened")
        await gateway.post(room, "carol", "before")
        await bob.text()
        server.kill()
        reconnecting = await bob.until("room.reconnecting")
        begun = time.monotonic()
        away = await gateway.post(room, "bob", "lost?")
        answered_within = time.monotonic() - begun
        fresh = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/events", headers=gateway.bearer("dave", room)
        )
        back = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/events",
            headers={**gateway.bearer("dave", room), "Last-Event-ID": "0123456789abcdef-7"},
        )
        await asyncio.to_thread(server.start)
        took = await _heard(gateway, room, "after", bob, carol)
        # What came in between was told, in this order.
        async with gateway.events(room, "bob", last_event_id=reconnecting.id) as again:
            await again.until("gateway.opened")
            told = [await again.next() for _ in range(2)]

    assert (away.status_code, away.json()["code"]) == (503, "livekit_unavailable")
    assert int(away.headers["retry-after"]) > 0
    assert answered_within < DEADLINE
    assert (fresh.status_code, fresh.json()["code"]) == (503, "livekit_unavailable")
    assert back.status_code == 200
    assert '"reason":"disconnected","reconnect":true' in back.text
    assert took < back_within
    assert [event.name for event in told] == ["gateway.gap", "room.reconnected"]
    assert told[0].data["reason"] == "unknown"


async def test_an_observer_outlasts_a_restart_of_livekit(server: LiveKitServer, room: str) -> None:
    async with (
        serve_on(server) as gateway,
        gateway.admin_events(room) as events,
        guest(gateway, room, "bob") as bob,
    ):
        await events.until("room.opened")
        server.kill()
        await events.until("room.reconnecting")
        async with asyncio.timeout(2 * DEADLINE):
            await bob.lost.get()  # given up; his room went with the server
        await asyncio.to_thread(server.start)
        names = [(await events.next()).name for _ in range(3)]
        async with guest(gateway, room, "carol") as carol:
            await events.until("room.opened")
            await carol.room.send_text("after", TextOptions("lk.chat"))
            text = await events.text()

    assert names == ["gateway.gap", "room.reconnected", "room.waiting"]
    assert text.text == "after"


async def test_a_stream_that_is_open_when_livekit_goes_is_told_to_its_sender(
    server: LiveKitServer, room: str
) -> None:
    async with (
        serve_on(server) as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "bob") as upload,
    ):
        upload.send(b"half")
        await bob.until("stream.chunk")
        server.kill()
        await bob.until("room.reconnecting")
        upload.send(b"more")
        upload.finish()
        status, answer = await upload.answer()
        closed = await bob.until("stream.closed")
        await asyncio.to_thread(server.start)
        await bob.until("room.reconnected")

    assert (status, answer["code"]) == (503, "livekit_unavailable")
    assert closed.data["complete"] is False


async def test_the_room_s_end_stays_an_end_after_the_server_is_back(
    server: LiveKitServer, room: str
) -> None:
    async with serve_on(server) as gateway:
        async with gateway.events(room, "bob") as bob:
            await bob.until("gateway.opened")
            last = await bob.cursor()
            await gateway.delete_room(room)
            closing = await bob.until("gateway.closing")
        await asyncio.to_thread(server.restart)
        async with guest(gateway, room, "carol"):  # a room of that name is there again
            back = await gateway.client.get(
                f"/rooms/{room}/topics/lk.chat/events",
                headers={**gateway.bearer("bob", room), "Last-Event-ID": last},
            )

    assert closing.data == {
        "type": "gateway.closing",
        "reason": "room_closed",
        "reconnect": False,
    }
    assert back.status_code == 204


async def test_a_join_that_fails_is_told_with_its_reason(room: str) -> None:
    """Nothing listens there; the client is answered, and told when to try again."""
    async with serve_on(None) as gateway:
        answer: httpx.Response = await gateway.post(room, "bob", "hi")

    assert (answer.status_code, answer.json()["code"]) == (503, "livekit_unavailable")
    assert "server API" in answer.json()["detail"]
