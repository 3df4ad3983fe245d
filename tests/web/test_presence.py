"""Who is in the room, as whom: sessions, observers, and identities that are there by other means."""

import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest

from gateway.events import StreamOpened
from gateway.rooms.base import TextOptions
from tests.conftest import InBrowser, Serve
from tests.guests import Guest, guest, join
from tests.running_gateway import DEADLINE, RunningGateway

CHAT = TextOptions("lk.chat")


async def test_an_observer_waits_for_the_room_and_does_not_create_it(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway, gateway.admin_events(room, participants="1") as admin:
        opened = await admin.next()
        waiting = await admin.next()
        existed = await gateway.rooms.room_exists(room)
        async with guest(gateway, room, "bob") as bob:
            gap = await admin.until("gateway.gap")
            assert (await admin.next()).name == "room.opened"
            async with guest(gateway, room, "carol"):
                carol = await admin.until("participant.connected")
                seen = set(bob.room.identities)
                await bob.room.send_text("hello", CHAT)
                text = await admin.text()

    assert opened.data["presence"] == "observer"
    assert waiting.name == "room.waiting"
    assert waiting.id is None
    assert existed is False
    assert gap.data["reason"] == "unknown"
    assert carol.data["participant_identity"] == "carol"
    assert seen <= {"carol"}
    assert (text.text, text.header["participant_identity"]) == ("hello", "bob")


async def test_an_observer_sees_the_room_end_and_is_there_again(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        guest(gateway, room, "bob") as bob,
        gateway.admin_events(room) as admin,
    ):
        first = await admin.next()
        await gateway.delete_room(room)
        names = [(await admin.next()).name for _ in range(2)]
        assert (await bob.lost.get()).value == "room_closed"
        async with guest(gateway, room, "carol") as carol:
            await admin.until("room.opened")
            await carol.room.send_text("again", CHAT)
            text = await admin.text()

    assert first.name == "gateway.opened"
    assert names == ["room.closed", "room.waiting"]
    assert text.text == "again"


async def test_reading_unseen_is_for_who_is_there_otherwise(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        path = f"/rooms/{room}/topics/lk.chat/events?presence=none"
        refused = await gateway.client.get(path, headers=gateway.bearer("bob", room))
        async with guest(gateway, room, "carol") as carol:
            bob = await join(gateway, room, "bob")
            async with gateway.events(room, "bob", presence="none") as reading:
                opened = await reading.next()
                await carol.sees("bob")
                await carol.room.send_text("for all", CHAT)
                text = await reading.text()
                await bob.room.leave()
                closing = await reading.until("gateway.closing")
                await reading.ends()
            back = await gateway.client.get(
                path,
                headers={**gateway.bearer("bob", room), "Last-Event-ID": reading.last_event_id},
            )

    assert (refused.status_code, refused.json()["code"]) == (403, "presence_required")
    assert opened.data["presence"] == "observer"
    assert text.text == "for all"
    assert closing.data == {"type": "gateway.closing", "reason": "absent", "reconnect": True}
    assert back.status_code == 200
    assert '"reason":"absent"' in back.text


async def test_a_hidden_token_reads_unseen_and_never_sends(serve: Serve, room: str) -> None:
    async with serve() as gateway, guest(gateway, room, "carol") as carol:
        hidden = gateway.token("spy", room, hidden=True)
        async with gateway.events(room, "spy", token=hidden, presence="none") as spy:
            await spy.until("gateway.opened")
            await carol.room.send_text("overheard", CHAT)
            text = await spy.text()
            posted = await gateway.client.post(
                f"/rooms/{room}/text?presence=none",
                content="hi",
                headers={"Authorization": f"Bearer {hidden}", "Content-Type": "text/plain"},
            )

    assert text.text == "overheard"
    assert (posted.status_code, posted.json()["code"]) == (403, "missing_grant")


async def test_sending_on_behalf_of_who_is_there_evicts_nobody(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        guest(gateway, room, "carol") as carol,
        guest(gateway, room, "bob") as bob,
    ):
        answers = [
            await gateway.post(room, "bob", "unseen", presence="none"),
            await gateway.post(room, "bob", "as usual"),
        ]
        texts = [await carol.text() for _ in answers]
        async with gateway.upload(room, "bob") as upload:
            upload.send(b"in ")
            upload.send(b"pieces")
            upload.finish()
            assert (await upload.answer())[0] == 200
        streamed = await carol.text()
        refused = await gateway.post(room, "dave", "from nobody", presence="none")
        still_there = bob.lost.empty()

    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.json()["listeners"] for answer in answers] == [1, 1]
    assert texts == [("bob", "unseen"), ("bob", "as usual")]
    assert streamed == ("bob", "in pieces")
    assert (refused.status_code, refused.json()["code"]) == (403, "presence_required")
    assert still_there


async def test_an_administrator_sends_unseen_but_creates_no_room(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        headers = {**gateway.admin_bearer(room), "Content-Type": "text/plain"}
        path = f"/rooms/{room}/text?presence=none"
        early = await gateway.client.post(path, content="?", headers=headers)
        existed = await gateway.rooms.room_exists(room)
        async with guest(gateway, room, "carol") as carol:
            sent = await gateway.client.post(path, content="to all", headers=headers)
            text = await carol.text()

    assert (early.status_code, early.json()["code"]) == (404, "room_not_open")
    assert existed is False
    assert sent.json()["listeners"] == 1
    assert text == ("admin", "to all")


async def test_who_is_muted_is_not_heard_through_the_observer_either(
    serve: Serve, room: str
) -> None:
    async with (
        serve() as gateway,
        guest(gateway, room, "carol") as carol,
        guest(gateway, room, "bob") as bob,
    ):
        await carol.sees("bob")
        await gateway.forbid_sending(room, "bob")
        await bob.is_muted()
        unseen = await gateway.post(room, "bob", "?", presence="none")
        async with gateway.events(room, "bob") as events:
            await events.until("gateway.opened")
            seen = await gateway.post(room, "bob", "?")

    assert (unseen.status_code, unseen.json()["code"]) == (403, "not_permitted")
    assert (seen.status_code, seen.json()["code"]) == (403, "not_permitted")


async def test_a_session_is_carried_by_the_observer_until_the_other_presence_goes(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway, guest(gateway, room, "carol") as carol:
        bob = await join(gateway, room, "bob")
        async with gateway.events(room, "bob") as events:
            opened = await events.next()
            await carol.room.send_text("one", CHAT)
            one = await events.text()
            posted = (await gateway.post(room, "bob", "two")).json()
            two = await events.text()
            await bob.room.leave()
            gap = await events.until("gateway.gap")
            await carol.sees("bob")
            await carol.room.send_text("three", CHAT)
            three = await events.text()
            await gateway.post(room, "bob", "four")
            assert [await carol.text() for _ in range(2)] == [("bob", "two"), ("bob", "four")]

    assert opened.data["presence"] == "observer"
    assert gap.data["presence"] == "participant"
    assert one.text == "one"
    assert (two.header["stream_id"], two.header["local"]) == (posted["stream_id"], True)
    assert gap.data["reason"] == "handover"
    assert three.text == "three"
    assert bob.lost.empty()


async def test_a_stream_that_only_the_observer_goes_on_receiving_is_cut_off_for_who_joins(
    serve: Serve, room: str
) -> None:
    async with (
        serve() as gateway,
        guest(gateway, room, "carol") as carol,
        gateway.admin_events(room) as admin,
    ):
        bob = await join(gateway, room, "bob")
        async with gateway.events(room, "bob") as events:
            assert (await events.next()).data["presence"] == "observer"
            writer = await carol.room.open_text_stream(CHAT)
            await writer.write("half")
            await events.until("stream.chunk")
            await bob.room.leave()
            closed = await events.until("stream.closed")
            gap = await events.next()
            async with guest(gateway, room, "bob"):  # carried once more: what was cut off stays so
                assert (await events.until("gateway.gap")).data["presence"] == "observer"
                await writer.write(" and half")
                await writer.close()
                whole = await admin.text()
                await carol.room.send_text("the next", CHAT)
                following = await events.text()

    assert closed.data["stream_id"] == writer.header.stream_id
    assert (closed.data["complete"], closed.data["reason"]) == (False, "handover")
    assert (closed.data["size"], closed.data["chunks"]) == (4, 1)
    assert (gap.name, gap.data["presence"]) == ("gateway.gap", "participant")
    assert whole.text == "half and half"
    assert following.text == "the next"


async def test_a_session_gives_way_to_another_presence_of_its_identity(
    serve: Serve, room: str
) -> None:
    async with (
        serve() as gateway,
        guest(gateway, room, "carol") as carol,
        gateway.events(room, "bob") as events,
        gateway.upload(room, "bob") as upload,
    ):
        assert (await events.next()).data["presence"] == "participant"
        upload.send(b"half")
        await events.until("stream.chunk")
        bob = await join(gateway, room, "bob")
        broken = await events.until("stream.closed")
        gap = await events.until("gateway.gap")
        upload.send(b"more")
        upload.finish()
        status, answer = await upload.answer()
        await carol.room.send_text("still heard", CHAT)
        text = await events.text()
        await gateway.post(room, "bob", "and said")
        assert await carol.text() == ("bob", "and said")
        evicted = not bob.lost.empty()
        await bob.room.leave()
        assert (await events.until("gateway.gap")).data["reason"] == "handover"

    assert broken.data["complete"] is False
    assert (gap.data["reason"], gap.data["presence"]) == ("handover", "observer")
    assert (status, answer["code"]) == (503, "livekit_unavailable")
    assert text.text == "still heard"
    assert not evicted


async def test_a_newer_token_with_other_grants_joins_anew(serve_livekit: Serve, room: str) -> None:
    async with serve_livekit() as gateway, guest(gateway, room, "carol") as carol:
        hidden = gateway.token("bob", room, hidden=True)
        async with gateway.events(room, "bob", token=hidden) as events:
            await events.until("gateway.opened")
            answer = await gateway.post(room, "bob", "seen now")
            gap = await events.until("gateway.gap")
            text = await carol.text()
            await carol.sees("bob")

    assert answer.status_code == 200
    assert gap.data["reason"] == "handover"
    assert text == ("bob", "seen now")


async def test_who_is_there_hidden_sends_nothing_with_an_older_token(
    serve_livekit: Serve, room: str
) -> None:
    """LiveKit would show it as a text of nobody."""
    async with serve_livekit() as gateway, guest(gateway, room, "carol") as carol:
        claims = jwt.decode(gateway.token("bob", room), options={"verify_signature": False})
        older = {**claims, "iat": time.time() - 10}
        secret = gateway.settings.livekit_api_secret
        headers = {
            "Authorization": f"Bearer {jwt.encode(older, secret, algorithm='HS256')}",
            "Content-Type": "text/plain",
        }
        hidden = gateway.token("bob", room, hidden=True)
        async with gateway.events(room, "bob", token=hidden) as events:
            await events.until("gateway.opened")
            answer = await gateway.client.post(f"/rooms/{room}/text", content="?", headers=headers)
        await gateway.post(room, "dave", "the next")
        text = await carol.text()

    assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted")
    assert "hidden" in answer.json()["detail"]
    assert text == ("dave", "the next")


async def test_a_returning_event_stream_never_creates_a_room(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        back = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/events",
            headers={**gateway.bearer("bob", room), "Last-Event-ID": "0123456789abcdef-7"},
        )
        existed = await gateway.rooms.room_exists(room)
        async with (
            guest(gateway, room, "carol"),
            gateway.events(room, "bob", last_event_id="0123456789abcdef-7") as bob,
        ):
            await bob.until("gateway.opened")
            gap = await bob.next()

    assert back.status_code == 204
    assert existed is False
    assert gap.data["reason"] == "restarted"


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({"presence": "maybe"}, "'presence' must be join or none."),
        ({"participants": "yes"}, "'participants' must be 0 or 1."),
    ],
)
async def test_wrong_parameters(
    serve_memory: Serve, room: str, query: dict[str, Any], detail: str
) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/events",
            params=query,
            headers=gateway.bearer("bob", room),
        )

    assert (answer.status_code, answer.json()["detail"]) == (400, detail)


@pytest.mark.needs("chromium")
@pytest.mark.needs("npm")
async def test_a_browser_on_webrtc_and_http_share_one_identity(
    gateway: RunningGateway, browser_participant: InBrowser, room: str
) -> None:
    async with (
        guest(gateway, room, "carol") as carol,
        browser_participant(room, "bob") as browser,
        gateway.events(room, "bob") as events,
    ):
        opened = await events.next()
        posted = await gateway.post(room, "bob", "by HTTP")
        by_http = await carol.text()
        own = await events.text()
        await carol.sees("bob")
        await browser.send_text("by WebRTC")
        by_webrtc = await carol.text()
        heard = await events.text()
        await carol.room.send_text("to both", CHAT)
        texts = [await browser.next_text(), await browser.next_text()]
        both = await events.text()
        await browser.leave()
        gap = await events.until("gateway.gap")
        await carol.sees("bob")
        after = await gateway.post(room, "bob", "alone now")
        assert await carol.text() == ("bob", "alone now")

    assert opened.data["presence"] == "observer"
    assert posted.status_code == after.status_code == 200
    assert by_http == ("bob", "by HTTP")
    assert own.header["local"] is True
    assert by_webrtc == ("bob", "by WebRTC")
    assert (heard.text, heard.header["local"]) == ("by WebRTC", False)
    # What HTTP sends for bob also reaches bob's own browser, as bob's.
    assert [(text.sender, text.text) for text in texts] == [
        ("bob", "by HTTP"),
        ("carol", "to both"),
    ]
    assert both.text == "to both"
    assert gap.data["reason"] == "handover"


@pytest.mark.needs("chromium")
@pytest.mark.needs("npm")
async def test_a_browser_that_comes_later_takes_over_and_stays(
    gateway: RunningGateway, browser_participant: InBrowser, room: str
) -> None:
    async with (
        guest(gateway, room, "carol") as carol,
        gateway.events(room, "bob") as events,
    ):
        assert (await events.next()).data["presence"] == "participant"
        async with browser_participant(room, "bob") as browser:
            gap = await events.until("gateway.gap")
            await gateway.post(room, "bob", "by HTTP")
            await carol.room.send_text("to both", CHAT)
            texts = {(await browser.next_text()).text for _ in range(2)}
            heard = [(await events.text()).text for _ in range(2)]

    assert gap.data["reason"] == "handover"
    assert texts == {"by HTTP", "to both"}
    assert sorted(heard) == ["by HTTP", "to both"]


async def test_a_text_is_local_to_its_sender_alone(serve: Serve, room: str) -> None:
    """Over the observer, which carries both, and shows what it sends to all whom it carries."""
    async with (
        serve() as gateway,
        guest(gateway, room, "bob"),
        guest(gateway, room, "carol"),
        gateway.events(room, "bob") as bob,
        gateway.events(room, "carol") as carol,
        gateway.admin_events(room) as operator,
    ):
        for events in (bob, carol, operator):
            assert (await events.next()).data["presence"] == "observer"
        await gateway.post(room, "bob", "hi")
        local = [(await events.text()).header["local"] for events in (bob, carol, operator)]

    assert local == [True, False, False]


async def test_waiting_for_an_agent_in_a_room_that_does_not_exist_is_no_waiting(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.post(
            f"/rooms/{room}/text?presence=none&agent_timeout=30",
            content="?",
            headers={**gateway.admin_bearer(room), "Content-Type": "text/plain"},
        )

    assert (answer.status_code, answer.json()["code"]) == (404, "room_not_open")


async def test_no_agent_in_time_is_told_and_nothing_is_sent(serve: Serve, room: str) -> None:
    async with serve() as gateway, guest(gateway, room, "carol") as carol:
        begun = await gateway.post(room, "bob", "lost?", agent_timeout="0.1")
        await gateway.post(room, "bob", "not lost")
        text = await carol.text()

    assert (begun.status_code, begun.json()["code"]) == (504, "agent_unavailable")
    assert int(begun.headers["retry-after"]) > 0
    assert text == ("bob", "not lost")


async def test_who_came_and_went_unannounced_does_not_read_on(
    serve_livekit: Serve, room: str
) -> None:
    """LiveKit tells an observer that is there already neither of the coming nor of the leaving."""
    async with (
        serve_livekit(heartbeat=1.0) as gateway,
        guest(gateway, room, "carol"),
        gateway.admin_events(room) as operator,
    ):
        await operator.until("gateway.opened")
        bob = await join(gateway, room, "bob")
        async with gateway.events(room, "bob", presence="none") as reading:
            await reading.until("gateway.opened")
            await bob.room.leave()
            # LiveKit is up to 3 s late, whoever asks; heartbeats keep the reading client from giving up.
            closing = await reading.until("gateway.closing", within=2 * DEADLINE)

    assert closing.data["reason"] == "absent"


async def test_an_upload_on_behalf_of_who_was_removed_is_refused(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        guest(gateway, room, "carol") as carol,
        guest(gateway, room, "bob") as bob,
        gateway.upload(room, "bob", query="?presence=none") as upload,
    ):
        await carol.sees("bob")
        upload.send(b"")  # the head is out; the body waits
        await gateway.remove(room, "bob")
        assert (await bob.lost.get()).value == "removed"
        upload.send(b"from nobody")
        upload.finish()
        status, answer = await upload.answer()
        await carol.room.send_text("nothing came before", CHAT)
        heard = carol.heard.empty() or not any(
            isinstance(event, StreamOpened) for event in _all(carol)
        )

    assert (status, answer["code"]) == (403, "presence_required")
    assert heard


async def test_who_is_removed_while_the_observer_carries_is_removed(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway, guest(gateway, room, "carol") as carol:
        bob = await join(gateway, room, "bob")
        await carol.sees("bob")
        async with gateway.events(room, "bob") as events:
            assert (await events.next()).data["presence"] == "observer"
            await gateway.remove(room, "bob")
            closing = await events.until("gateway.closing")
        assert (await bob.lost.get()).value == "removed"

    assert closing.data == {"type": "gateway.closing", "reason": "removed", "reconnect": False}


async def test_a_token_that_expires_while_its_body_comes_sends_nothing(
    serve_memory: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_memory() as gateway, guest(gateway, room, "carol") as carol:
        token = gateway.token("bob", room)

        async def slowly() -> AsyncIterator[bytes]:
            yield b'{"text": '
            later = time.time() + 7 * 3600
            monkeypatch.setattr(time, "time", lambda: later)
            yield b'"late"}'

        answer = await gateway.client.post(
            f"/rooms/{room}/text",
            content=slowly(),
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/json",
            },
        )
        heard = [event for event in _all(carol) if isinstance(event, StreamOpened)]

    assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")
    assert heard == []


async def test_nobody_may_be_our_observer(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.post(room, "gateway-observer-0123", "hi")

    assert (answer.status_code, answer.json()["code"]) == (403, "token_not_standard")


def _all(guest: Guest) -> list[object]:
    """What it has heard so far."""
    heard: list[object] = []
    while not guest.heard.empty():
        heard.append(guest.heard.get_nowait())
    return heard
