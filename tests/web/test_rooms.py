"""Participants, leaving, registered topics."""

from typing import Any

import httpx
import pytest

from gateway import observer
from gateway.rooms.base import Listener, TextOptions
from tests.conftest import Serve
from tests.guests import guest
from tests.running_gateway import RunningGateway


async def _participants(
    gateway: RunningGateway, room: str, headers: dict[str, str], **query: str
) -> dict[str, Any]:
    answer = await gateway.client.get(f"/rooms/{room}/participants", headers=headers, params=query)
    assert answer.status_code == 200
    listed: dict[str, Any] = answer.json()
    return listed


async def test_participants_are_listed_and_their_changes_follow(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        listed = await _participants(gateway, room, gateway.bearer("bob", room))
        following = gateway.events(room, "bob", participants="1", last_event_id=listed["position"])
        async with following as events:
            await events.until("gateway.opened")
            async with guest(gateway, room, "carol"):
                connected = await events.next()
                both = await _participants(gateway, room, gateway.bearer("bob", room))
            disconnected = await events.next()

    assert [each["identity"] for each in listed["participants"]] == ["bob"]
    assert listed["participants"][0].keys() == {
        "identity",
        "sid",
        "name",
        "kind",
        "state",
        "attributes",
        "can_publish_data",
    }
    assert connected.name == "participant.connected"
    assert connected.data["participant_identity"] == "carol"
    assert connected.data["kind"] == "standard"
    assert {each["identity"] for each in both["participants"]} == {"bob", "carol"}
    assert disconnected.name == "participant.disconnected"
    assert disconnected.data["reason"] == "user_unavailable"


async def test_observers_are_not_listed_and_not_told_of(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob", participants="1") as bob:
        await bob.until("gateway.opened")
        unseen = await _participants(gateway, room, gateway.admin_bearer(room), presence="none")
        seen = await _participants(gateway, room, gateway.bearer("bob", room))
        async with guest(gateway, room, "carol"):
            first = await bob.next()

    assert [each["identity"] for each in unseen["participants"]] == ["bob"]
    assert [each["identity"] for each in seen["participants"]] == ["bob"]
    assert first.data["participant_identity"] == "carol"


async def test_who_is_there_is_not_told_while_the_connection_is_broken(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        (slot,) = gateway.hub._slots.values()
        livekit: Listener = slot.connection._carrier.room.listener
        path = f"/rooms/{room}/participants"
        livekit.reconnecting()
        broken = await gateway.client.get(path, headers=gateway.bearer("bob", room))
        livekit.reconnected()
        mended = await _participants(gateway, room, gateway.bearer("bob", room))

    assert (broken.status_code, broken.json()["code"]) == (503, "livekit_unavailable")
    assert "not known" in broken.json()["detail"]
    assert [each["identity"] for each in mended["participants"]] == ["bob"]


async def test_nobody_is_in_a_room_that_does_not_exist(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        listed = await _participants(gateway, room, gateway.admin_bearer(room), presence="none")

    assert listed["participants"] == []


async def test_participants_are_not_shown_unless_asked_for(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        async with guest(gateway, room, "carol") as carol:
            await carol.room.send_text("hi", TextOptions("lk.chat"))
            first = await bob.next()

    assert first.name == "stream.opened"


async def test_leaving_is_for_good(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        guest(gateway, room, "carol") as carol,
        gateway.events(room, "bob") as bob,
    ):
        await bob.until("gateway.opened")
        last = await bob.cursor()
        await carol.sees("bob")
        path = f"/rooms/{room}/participants/bob"
        other = await gateway.client.delete(path, headers=gateway.bearer("carol", room))
        left = await gateway.client.delete(path, headers=gateway.bearer("bob", room))
        closing = await bob.until("gateway.closing")
        again = await gateway.client.delete(path, headers=gateway.bearer("bob", room))
        back = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/events",
            headers={**gateway.bearer("bob", room), "Last-Event-ID": last},
        )
        await carol.sees("bob", gone=True)
        reason = await carol.reason_of_leaving("bob")

    assert (other.status_code, other.json()["code"]) == (403, "identity_mismatch")
    assert left.status_code == 204
    assert closing.data == {"type": "gateway.closing", "reason": "left", "reconnect": False}
    assert (again.status_code, again.json()["code"]) == (404, "not_in_room")
    assert reason == "client_initiated"
    assert back.status_code == 204


async def test_a_registered_topic_is_logged_with_no_subscriber(serve: Serve, room: str) -> None:
    async with serve() as gateway, guest(gateway, room, "carol") as carol:
        path = f"/rooms/{room}/topics/later"
        admin = gateway.admin_bearer(room)
        refused = await gateway.client.put(path, headers=gateway.bearer("bob", room))
        put = [await gateway.client.put(path, headers=admin) for _ in range(2)]
        await carol.room.send_text("unread", TextOptions("later"))
        async with gateway.admin_events(room, "later", replay="all") as events:
            text = await events.text()
            kept = await gateway.client.delete(path, headers=admin)
            await carol.room.send_text("followed still", TextOptions("later"))
            followed = await events.text()
        listed = (await gateway.client.get(f"/rooms/{room}/topics", headers=admin)).json()
        gone = await gateway.client.delete(path, headers=admin)
        fixed = await gateway.client.delete(f"/rooms/{room}/topics/lk.chat", headers=admin)

    assert (refused.status_code, refused.json()["code"]) == (403, "missing_grant")
    assert [each.status_code for each in put] == [201, 204]
    assert text.text == "unread"
    assert kept.status_code == 204
    assert followed.text == "followed still"
    assert listed == {"topics": ["lk.chat", "lk.transcription"]}
    assert (gone.status_code, gone.json()["code"]) == (404, "topic_not_registered")
    assert (fixed.status_code, fixed.json()["code"]) == (409, "topic_fixed")


async def test_a_topic_is_received_by_who_is_there_when_it_is_registered(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        admin = gateway.admin_bearer(room)
        await gateway.client.put(f"/rooms/{room}/topics/later", headers=admin)
        listed: httpx.Response = await gateway.client.get(
            f"/rooms/{room}/topics", headers=gateway.bearer("bob", room)
        )
        await gateway.post(room, "carol", "unread", topic="later")
        async with gateway.events(room, "bob", "later", replay="all") as events:
            text = await events.text()

    assert listed.json() == {"topics": ["lk.chat", "lk.transcription", "later"]}
    assert text.text == "unread"


async def test_a_topic_registered_before_the_room_exists_is_heard_from_its_beginning(
    serve: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also unseen, where nothing but our own joining tells that the room is there now."""
    monkeypatch.setattr(observer, "POLL_FIRST", 3600.0)
    async with serve() as gateway:
        admin = gateway.admin_bearer(room)
        await gateway.client.put(f"/rooms/{room}/topics/later", headers=admin)
        existed = await gateway.rooms.room_exists(room)
        for number in range(3):
            await gateway.post(room, "carol", str(number), topic="later")
        async with gateway.admin_events(room, "later", replay="all") as events:
            texts = [(await events.text()).text for _ in range(3)]

    assert existed is False
    assert texts == ["0", "1", "2"]


async def test_head_of_participants_joins_nothing(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.head(
            f"/rooms/{room}/participants", headers=gateway.bearer("bob", room)
        )
        existed = await gateway.rooms.room_exists(room)

    assert answer.status_code == 200
    assert existed is False


async def test_a_topic_says_what_it_takes(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.get(
            f"/rooms/{room}/topics/later", headers=gateway.bearer("bob", room)
        )

    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"PUT", "DELETE"}
