"""GET /rooms/{room}/topics/{topic}/events, as a client on the wire sees it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from livekit import api

from gateway.rooms.base import Listener
from gateway.rooms.memory import MemoryRooms
from gateway.settings import Settings
from tests.conftest import Serve
from tests.gated_rooms import GatedRooms
from tests.polling import poll_until
from tests.running_gateway import DEADLINE, EventStream, RunningGateway, running


async def _texts(events: EventStream, count: int) -> list[str]:
    return [(await events.text()).text for _ in range(count)]


async def test_the_exact_text_on_the_wire(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        sent = (await gateway.post(room, "bob", 'say "hi"\nü\u2028', to="carol")).json()
        epoch, stream_id, timestamp = (
            sent["position"].partition("-")[0],
            sent["stream_id"],
            sent["timestamp"],
        )
        async with gateway.events(room, "bob", replay="none") as bob:
            await gateway.post(room, "carol", "")
            lines = [line async for line in _raw(bob, 11)]
            headers = dict(bob.response.headers)
        async with gateway.events(room, "bob", last_event_id=sent["position"]) as resumed:
            await resumed.until("gateway.opened")
            text = "".join([line async for line in _raw(resumed, 9)])

    retry = int(lines[1].removeprefix("retry: "))
    assert 1_000 <= retry <= 3_000  # not all of them come back at once
    assert "".join(lines[:8]) == (
        ": livekit gateway\n"
        f"retry: {retry}\n"
        "\n"
        "event: gateway.opened\n"
        'data: {"type":"gateway.opened","presence":"participant","identity":"bob",'
        f'"position":"{epoch}-3"}}\n'
        "\n"
        f"id: {epoch}-3\n"
        "\n"
    )
    # Between them, a number went to carol's coming, which is not shown here.
    assert lines[8:10] == [f"id: {epoch}-5\n", "event: stream.opened\n"]
    assert text == (
        f"id: {epoch}-0\n"
        "\n"
        f"id: {epoch}-1\n"
        "event: stream.opened\n"
        f'data: {{"type":"stream.opened","stream_id":"{stream_id}","topic":"lk.chat",'
        f'"participant_identity":"bob","timestamp":{timestamp},"size":14,"mime_type":"text/plain",'
        '"attributes":{},"destination_identities":["carol"],"reply_to_stream_id":null,'
        '"attached_stream_ids":[],"generated":false,"operation":"create","version":0,"local":true}\n'
        "\n"
        f"id: {epoch}-2\n"
        "event: stream.chunk\n"
        f'data: {{"type":"stream.chunk","stream_id":"{stream_id}","topic":"lk.chat",'
        '"participant_identity":"bob","index":0,"text":"say \\"hi\\"\\nü\u2028"}\n'
    )
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"


async def _raw(events: EventStream, count: int) -> Any:
    for _ in range(count):
        yield await asyncio.wait_for(anext(events._lines), 5)


async def test_two_readers_share_one_connection(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as first,
        gateway.events(room, "bob") as second,
    ):
        positions = [
            (await reader.until("gateway.opened")).data["position"] for reader in (first, second)
        ]
        answer = await gateway.post(room, "carol", "once")

        assert answer.json()["listeners"] == 1
        assert await _texts(first, 1) == await _texts(second, 1) == ["once"]
        assert positions[0] == positions[1]


async def test_a_reader_of_another_topic_hears_nothing_but_its_cursor_moves(
    serve: Serve, room: str
) -> None:
    async with serve(heartbeat=0.2) as gateway, gateway.events(room, "bob", "quiet") as bob:
        await bob.until("gateway.opened")
        armed = await bob.cursor()
        await gateway.post(room, "carol", "on lk.chat")
        moved = await bob.cursor()
        async with gateway.events(room, "bob", "quiet", last_event_id=moved) as resumed:
            await resumed.until("gateway.opened")
            await gateway.post(room, "carol", "for me", topic="quiet")
            event = await resumed.next()

    assert int(moved.partition("-")[2]) > int(armed.partition("-")[2])
    assert event.name == "stream.opened"


async def test_a_heartbeat_comes_when_nothing_else_does(serve_memory: Serve, room: str) -> None:
    async with serve_memory(heartbeat=0.1) as gateway, gateway.events(room, "bob") as bob:
        armed = await bob.cursor()
        async with asyncio.timeout(5):
            while bob.comments.count("heartbeat") < 2:
                await bob._block()

        assert bob.last_event_id == armed


async def test_what_goes_on_elsewhere_does_not_put_the_heartbeat_off(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory(heartbeat=0.3) as gateway, gateway.events(room, "bob", "quiet") as bob:
        await bob.until("gateway.opened")
        posting = asyncio.create_task(_post_on_and_on(gateway, room))
        async with asyncio.timeout(5):
            while bob.comments.count("heartbeat") < 2:
                await bob._block()
        posting.cancel()
        await asyncio.wait({posting})


async def _post_on_and_on(gateway: RunningGateway, room: str) -> None:
    while True:
        await gateway.post(room, "carol", "elsewhere")


async def test_last_event_id_resumes_exactly(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        async with gateway.events(room, "bob") as bob:
            await bob.until("gateway.opened")
            await gateway.post(room, "carol", "one")
            await bob.until("stream.closed")
            last = bob.last_event_id
            # The connection lingers, so what comes while nobody listens is kept.
        await gateway.post(room, "carol", "two")
        async with gateway.events(room, "bob", last_event_id=last) as bob:
            opened = await bob.next()
            first = await bob.next()
            assert (await bob.next()).data["text"] == "two"

    assert opened.name == "gateway.opened"
    assert opened.id is None
    assert first.name == "stream.opened"
    assert first.id == _after(last)


async def test_the_header_beats_the_query(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        one = (await gateway.post(room, "bob", "one")).json()["position"]
        two = (await gateway.post(room, "bob", "two")).json()["position"]
        async with gateway.events(room, "bob", last_event_id=two) as bob:
            assert await _texts(bob, 1) == ["two"]
        response = gateway.client.stream(
            "GET",
            f"/rooms/{room}/topics/lk.chat/events?last_event_id={one}",
            headers={**gateway.bearer("bob", room), "Last-Event-ID": two},
        )
        async with response as answer:
            body = ""
            async with asyncio.timeout(5):
                async for piece in answer.aiter_text():
                    body += piece
                    if "stream.closed" in body:
                        break

    assert '"text":"two"' in body
    assert '"text":"one"' not in body


@pytest.mark.parametrize("value", ["x", "1-1", "0123456789abcdef-01", "0123456789ABCDEF-1", "-"])
async def test_a_malformed_last_event_id_is_refused(
    serve_memory: Serve, room: str, value: str
) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/events",
            headers={**gateway.bearer("bob", room), "Last-Event-ID": value},
        )

    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_parameter"


async def test_two_last_event_ids_are_refused(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        twice = [("Last-Event-ID", f"{'0' * 16}-{number}") for number in (1, 2)]
        answer = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/events",
            headers=[*gateway.bearer("bob", room).items(), *twice],
        )

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


async def test_who_comes_back_after_a_restart_is_shown_all_that_the_new_log_keeps_if_it_asks(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as first:
        await first.until("gateway.opened")
        await gateway.post(room, "carol", "kept")
        await first.text()
        coming = gateway.events(room, "bob", replay="all", last_event_id="0123456789abcdef-7")
        async with coming as back:
            gap = await back.until("gateway.gap")
            text = await back.text()

    assert gap.data["reason"] == "restarted"
    assert text.text == "kept"


async def test_an_id_of_another_log_is_answered_with_a_gap(serve: Serve, room: str) -> None:
    foreign = "0123456789abcdef-7"
    async with serve() as gateway:
        position = (await gateway.post(room, "bob", "kept")).json()["position"]
        async with gateway.events(room, "bob", last_event_id=foreign) as bob:
            await bob.until("gateway.opened")
            gap = await bob.next()

    head = f"{position.partition('-')[0]}-3"
    assert gap.name == "gateway.gap"
    assert gap.data == {
        "type": "gateway.gap",
        "reason": "restarted",
        "from": foreign,
        "to": head,
        "presence": None,
    }
    assert gap.id == head


async def test_an_id_from_the_future_is_answered_with_a_gap(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        position = (await gateway.post(room, "bob", "kept")).json()["position"]
        future = f"{position.partition('-')[0]}-99"
        async with gateway.events(room, "bob", last_event_id=future) as bob:
            gap = await bob.until("gateway.gap")

    assert gap.data["reason"] == "unknown"
    assert gap.data["from"] == future


async def test_what_the_log_has_dropped_is_answered_with_a_gap(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory(log_events=4) as gateway:
        position = (await gateway.post(room, "bob", "one")).json()["position"]
        await gateway.post(room, "bob", "two")
        async with gateway.events(room, "bob", last_event_id=position) as bob:
            gap = await bob.until("gateway.gap")

    assert gap.data["reason"] == "evicted"
    assert (gap.data["from"], gap.data["to"]) == (position, f"{position.partition('-')[0]}-6")


async def test_a_topic_that_was_not_received_then_is_answered_with_a_gap(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway:
        position = (await gateway.post(room, "bob", "mine")).json()["position"]
        async with gateway.events(room, "bob", "news", last_event_id=position) as bob:
            gap = await bob.until("gateway.gap")

    assert gap.data["reason"] == "unknown"


async def test_who_joins_in_the_middle_reads_the_stream_from_its_beginning(
    serve: Serve, room: str
) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol") as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"one ")
        await bob.until("stream.chunk")
        upload.send(b"two ")
        await bob.until("stream.chunk")
        async with gateway.events(room, "bob") as late:
            replayed = (await late.take(4))[1:]
            armed = await late.cursor()
            upload.send(b"three")
            upload.finish()
            live = await late.take(2)

    assert [event.name for event in replayed] == ["stream.opened", "stream.chunk", "stream.chunk"]
    assert [event.id for event in replayed] == [None, None, None]
    assert [event.data["text"] for event in replayed[1:]] == ["one ", "two "]
    assert [event.name for event in live] == ["stream.chunk", "stream.closed"]
    assert live[0].data["text"] == "three"
    assert live[0].id == _after(armed)


async def test_replay_none_begins_with_what_comes_next(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        async with gateway.upload(room, "carol") as upload:
            upload.send(b"one ")
            await bob.until("stream.chunk")
            async with gateway.events(room, "bob", replay="none") as late:
                await late.until("gateway.opened")
                upload.send(b"two")
                event = await late.next()

    assert (event.name, event.data["text"]) == ("stream.chunk", "two")


async def test_replay_all_begins_with_all_that_is_kept(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        await gateway.post(room, "bob", "one")
        await gateway.post(room, "bob", "elsewhere", topic="other")
        await gateway.post(room, "bob", "two")
        async with gateway.events(room, "bob", replay="all") as bob:
            assert await _texts(bob, 2) == ["one", "two"]
            assert bob.last_event_id == ""


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("topics/lk.chat/events?replay=some", 400, "invalid_parameter"),
        ("topics/lk.chat/events?topic=x", 400, "invalid_parameter"),
        ("topics/lk.agent.session/events", 403, "topic_reserved"),
        (f"topics/{'t' * 257}/events", 400, "invalid_parameter"),
        ("topics/%00/events", 400, "invalid_parameter"),
        ("topics/%2e/events", 400, "invalid_parameter"),
        ("topics//events", 404, "not_found"),
        ("topics/a/b/events", 404, "not_found"),
    ],
)
async def test_what_is_wrong_with_a_request_is_said(
    serve_memory: Serve, room: str, path: str, status: int, code: str
) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.get(
            f"/rooms/{room}/{path}", headers=gateway.bearer("bob", room)
        )

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_head_answers_the_headers_and_does_not_join(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        answer = await gateway.client.head(
            f"/rooms/{room}/topics/lk.chat/events", headers=gateway.bearer("bob", room)
        )
        heard = await gateway.post(room, "carol", "anybody?")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.content == b""
    assert heard.json()["listeners"] == 0


async def test_draining_ends_the_stream_properly_and_says_why(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        gateway.server.should_exit = True
        closing = await bob.until("gateway.closing")
        await bob.ends()

    assert closing.data == {"type": "gateway.closing", "reason": "drain", "reconnect": True}
    assert closing.id is None


async def test_draining_closes_an_upload_as_incomplete_and_tells_its_sender(
    serve: Serve, room: str
) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "carol") as carol,
        gateway.upload(room, "carol") as upload,
    ):
        await carol.until("gateway.opened")
        upload.send(b"half")
        await carol.until("stream.chunk")
        gateway.server.should_exit = True
        closed = await carol.until("stream.closed")
        status, problem = await upload.answer()

    assert (closed.data["complete"], closed.data["reason"]) == (False, "drain")
    assert (status, problem["code"]) == (503, "draining")


async def test_draining_is_the_reason_of_a_stream_also_while_another_text_is_in_flight(
    room: str,
) -> None:
    rooms = GatedRooms()
    rooms.gate.set()
    async with (
        running(rooms, Settings("ws://in-process", "devkey", "secret")) as gateway,
        gateway.events(room, "carol") as carol,
        gateway.upload(room, "carol") as upload,
    ):
        await carol.until("gateway.opened")
        upload.send(b"half")
        await carol.until("stream.chunk")
        rooms.gate.clear()
        rooms.taking.clear()
        posting = asyncio.create_task(gateway.post(room, "carol", "in flight"))
        await asyncio.wait_for(rooms.taking.wait(), 5)
        gateway.server.should_exit = True
        closed = await carol.until("stream.closed")
        rooms.gate.set()

        assert (closed.data["complete"], closed.data["reason"]) == (False, "drain")
        assert (await upload.answer())[0] == 503
        assert (await posting).status_code == 200


async def test_a_whole_text_that_is_still_arriving_is_refused_when_the_gateway_drains(
    serve: Serve, room: str
) -> None:
    async with (
        serve() as gateway,
        gateway.upload(room, "carol", content_type="application/json") as upload,
    ):
        upload.send(b'{"text": ')
        await poll_until(lambda: len(gateway.hub._drain_watchers) > 1)  # uploads have one
        gateway.server.should_exit = True
        status, problem = await upload.answer()

    assert (status, problem["code"]) == (503, "draining")


async def test_a_token_that_expires_ends_the_upload_too(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol", token=gateway.token_that_lives("carol", room, 2.0)) as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"half")
        closed = await bob.until("stream.closed")
        status, problem = await upload.answer()

    assert (status, problem["code"]) == (401, "token_expired")
    assert (closed.data["complete"], closed.data["reason"]) == (False, "token_expired")


async def test_while_draining_new_clients_are_refused_and_returning_ones_sent_back(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        gateway.hub.draining = True
        path = f"/rooms/{room}/topics/lk.chat/events"
        fresh = await gateway.client.get(path, headers=gateway.bearer("bob", room))
        back = await gateway.client.get(
            path, headers={**gateway.bearer("bob", room), "Last-Event-ID": "0123456789abcdef-7"}
        )
        posted = await gateway.post(room, "bob", "hi")
        ready = await gateway.client.get("/readyz")
        gateway.hub.draining = False

    assert (fresh.status_code, fresh.json()["code"]) == (503, "draining")
    assert int(fresh.headers["retry-after"]) > 0
    assert back.status_code == 200
    assert back.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert back.text == (
        "retry: 2000\n\nevent: gateway.closing\n"
        'data: {"type":"gateway.closing","reason":"drain","reconnect":true}\n\n'
    )
    assert (posted.status_code, posted.json()["code"]) == (503, "draining")
    assert ready.status_code == 503


async def test_over_the_limit_of_event_streams(serve_memory: Serve, room: str) -> None:
    async with serve_memory(max_event_streams=1) as gateway:
        path = f"/rooms/{room}/topics/lk.chat/events"
        async with gateway.events(room, "bob") as bob:
            await bob.until("gateway.opened")
            fresh = await gateway.client.get(path, headers=gateway.bearer("bob", room))
            back = await gateway.client.get(
                path,
                headers={**gateway.bearer("bob", room), "Last-Event-ID": "0123456789abcdef-7"},
            )
        await _eventually_open(gateway, room)

    assert (fresh.status_code, fresh.json()["code"]) == (503, "too_many_event_streams")
    assert '"reason":"overloaded"' in back.text


async def test_one_identity_does_not_take_all_event_streams(serve_memory: Serve, room: str) -> None:
    async with (
        serve_memory(max_event_streams_of_identity=1) as gateway,
        gateway.events(room, "bob"),
        gateway.events(room, "carol") as carol,
    ):
        answer = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/events", headers=gateway.bearer("bob", room)
        )
        await carol.until("gateway.opened")

    assert (answer.status_code, answer.json()["code"]) == (503, "too_many_event_streams")
    assert "'bob' has 1 event streams open" in answer.json()["detail"]


async def _eventually_open(gateway: RunningGateway, room: str) -> None:
    """The place of a reader that left is free again."""
    async with asyncio.timeout(5):
        while True:
            async with gateway.events(room, "bob") as bob:
                if bob.response.status_code == 200:
                    return


async def test_over_the_limit_of_connections(serve_memory: Serve, room: str) -> None:
    async with serve_memory(max_connections=1) as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        answer = await gateway.post(room, "carol", "hi")

    assert (answer.status_code, answer.json()["code"]) == (503, "too_many_connections")


async def test_a_position_can_be_followed_on_a_topic_that_nobody_read_before(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway:
        position = (await gateway.post(room, "bob", "mine", topic="custom")).json()["position"]
        await gateway.post(room, "carol", "the answer", topic="custom")
        async with gateway.events(room, "bob", "custom", last_event_id=position) as bob:
            assert await _texts(bob, 2) == ["mine", "the answer"]


async def test_a_reader_that_stands_still_is_dropped(serve_memory: Serve, room: str) -> None:
    """It costs its socket, and neither its place nor its connection to LiveKit."""
    async with (
        serve_memory(write_timeout=0.3, linger=0) as gateway,
        _standing_still(gateway, room),
        asyncio.timeout(20),
    ):
        while "bob" in _present(gateway, room):
            await gateway.post(room, "carol", "x" * 1_000_000)


def _present(gateway: RunningGateway, room: str) -> set[str]:
    assert isinstance(gateway.rooms, MemoryRooms)
    return gateway.rooms.identities(room)


async def test_a_reader_that_falls_behind_the_log_is_told_so(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory(log_events=6) as gateway:
        async with _standing_still(gateway, room) as (reader, transport):
            # More than the sockets hold, and than the log keeps.
            for _ in range(12):
                await gateway.post(room, "carol", "x" * 1_000_000)
            transport.resume_reading()
            async with asyncio.timeout(DEADLINE):
                rest = await reader.read()
        last = rest.rpartition(b"\nid: ")[2].partition(b"\n")[0].decode()
        async with gateway.events(room, "bob", last_event_id=last) as back:
            gap = await back.until("gateway.gap")

    closing = b'{"type":"gateway.closing","reason":"slow","reconnect":true}\n\n'
    assert rest.endswith(b"\ndata: " + closing + b"\r\n0\r\n\r\n")
    assert (gap.data["reason"], gap.data["from"]) == ("evicted", last)


@asynccontextmanager
async def _standing_still(
    gateway: RunningGateway, room: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.Transport]]:
    """A reader of events that has read the first one, and takes nothing more until it is let."""
    path = f"/rooms/{room}/topics/lk.chat/events?access_token={gateway.token('bob', room)}"
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    await reader.readuntil(b"gateway.opened")
    transport: asyncio.Transport = writer.transport  # type: ignore[assignment]
    transport.pause_reading()
    try:
        yield reader, transport
    finally:
        transport.abort()


async def test_an_expired_token_ends_the_stream(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        token = gateway.token_that_lives("bob", room, 2.0)
        async with gateway.events(room, "bob", token=token) as bob:
            await bob.until("gateway.opened")
            closing = await bob.until("gateway.closing")
            await bob.ends()

    assert closing.data["reason"] == "token_expired"
    assert closing.data["reconnect"] is False


async def test_a_deleted_room_ends_the_stream_for_good(serve_livekit: Serve, room: str) -> None:
    async with serve_livekit() as gateway:
        server = api.LiveKitAPI(gateway.settings.livekit_url, "devkey", "secret")
        async with gateway.events(room, "bob") as bob:
            await bob.until("gateway.opened")
            last = await bob.cursor()
            await server.room.delete_room(api.DeleteRoomRequest(room=room))
            closing = await bob.until("gateway.closing")
            await bob.ends()
        back = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/events",
            headers={**gateway.bearer("bob", room), "Last-Event-ID": last},
        )
        await server.aclose()

    assert closing.data["reason"] == "room_closed"
    assert closing.data["reconnect"] is False
    assert back.status_code == 204


async def test_a_live_permission_taken_away_is_a_403_and_not_a_lost_text(
    serve_livekit: Serve, room: str
) -> None:
    async with serve_livekit() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        assert (await gateway.post(room, "carol", "allowed")).status_code == 200
        server = api.LiveKitAPI(gateway.settings.livekit_url, "devkey", "secret")
        await server.room.update_participant(
            api.UpdateParticipantRequest(
                room=room,
                identity="carol",
                permission=api.ParticipantPermission(can_subscribe=True, can_publish_data=False),
            )
        )
        async with asyncio.timeout(5):
            while (answer := await gateway.post(room, "carol", "?")).status_code == 200:
                pass
        await server.aclose()

    assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted")


_DEAF = Listener(lambda event: None, lambda: None, lambda: None, lambda reason: None)


def _after(position: str) -> str:
    epoch, _, seq = position.partition("-")
    return f"{epoch}-{int(seq) + 1}"
