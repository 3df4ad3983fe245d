"""Many texts at once, own stream ids, requests that come twice: POST /rooms/{room}/text."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import httpx

from gateway.events import StreamChunk, StreamClosed, StreamOpened
from gateway.settings import Settings
from tests.conftest import Serve
from tests.gated_rooms import GatedRooms
from tests.guests import guest, join
from tests.polling import poll_until
from tests.running_gateway import DEADLINE, RunningGateway, Uploading, running


async def _key(
    gateway: RunningGateway, room: str, key: str, content: Any, **more: str
) -> httpx.Response:
    """A POST with an idempotency key."""
    query = {name: value for name, value in more.items() if name != "content_type"}
    return await gateway.client.post(
        f"/rooms/{room}/text",
        params=query,
        content=content,
        headers={
            **gateway.bearer("carol", room),
            "Content-Type": more.get("content_type", "text/plain"),
            "Idempotency-Key": key,
        },
    )


# Stream ids


async def test_an_own_stream_id_is_taken_and_may_come_again_with_an_update(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        first = await gateway.post(room, "carol", "helo", stream_id="m-1")
        body = {
            "text": "hello",
            "stream_id": "m-1",
            "operation": "update",
            "version": 1,
            "generated": True,
            "attached_stream_ids": ["image-1"],
        }
        edit = await gateway.post(room, "carol", json.dumps(body), content_type="application/json")
        texts = [await bob.text() for _ in range(2)]

    assert (first.json()["stream_id"], edit.json()["stream_id"]) == ("m-1", "m-1")
    assert [text.text for text in texts] == ["helo", "hello"]
    shown = texts[1].header
    assert (shown["stream_id"], shown["operation"], shown["version"]) == ("m-1", "update", 1)
    assert (shown["generated"], shown["attached_stream_ids"]) == (True, ["image-1"])


async def test_the_same_in_the_query_of_a_streamed_text(serve: Serve, room: str) -> None:
    query = (
        "?stream_id=m-2&operation=update&version=7&generated=1"
        "&attached_stream_ids=a&attached_stream_ids=b"
    )
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.events(room, "carol") as carol,
        gateway.upload(room, "carol", query=query) as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"text")
        upload.finish()
        status, sent = await upload.answer()
        headers = [(await events.text()).header for events in (bob, carol)]

    assert (status, sent["stream_id"]) == (200, "m-2")
    for header in headers:
        assert header["operation"] == "update"
        assert (header["version"], header["generated"]) == (7, True)
        assert header["attached_stream_ids"] == ["a", "b"]


async def test_a_stream_id_that_is_open_in_the_room_is_refused(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol", query="?stream_id=m-1") as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"open")
        await bob.until("stream.chunk")
        whole = await gateway.post(room, "dave", "x", stream_id="m-1")
        streamed = await gateway.begin_upload(room, "carol", stream_id="m-1")
        elsewhere = await gateway.post(f"{room}-2", "carol", "x", stream_id="m-1")
        upload.finish()
        await upload.answer()
        afterwards = await gateway.post(room, "dave", "x", stream_id="m-1")

    for refused in (whole, streamed.created):
        assert (refused.status_code, refused.json()["code"]) == (409, "stream_id_in_use")
    assert (elsewhere.status_code, afterwards.status_code) == (200, 200)


# Many at once


async def test_a_slow_text_does_not_hold_up_the_others(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol") as slow,
        gateway.upload(room, "carol") as fast,
    ):
        await bob.until("gateway.opened")
        slow.send(b"slow")
        await bob.until("stream.chunk")
        for number in range(20):
            fast.send(f"{number} ".encode())
            assert (await bob.until("stream.chunk")).data["text"] == f"{number} "
        fast.finish()
        assert (await fast.answer())[0] == 200
        assert (await gateway.post(room, "carol", "whole")).status_code == 200
        slow.finish()
        assert (await slow.answer())[1]["size"] == 4


async def test_receivers_see_texts_open_and_close_in_the_order_of_their_sender(
    serve: Serve, room: str
) -> None:
    """Their closing is told to the sender before it goes on to the next, so its order is known."""
    count = 40
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(serve())
        bob = await stack.enter_async_context(guest(gateway, room, "bob"))
        uploads = []
        opened = []
        for _ in range(count):
            upload = await gateway.begin_upload(room, "carol", b"x")
            uploads.append(upload)
            opened.append(upload.created.json()["stream_id"])
        closing = uploads[::2] + uploads[1::2][::-1]
        for upload in closing:
            assert (await upload.patch(1, b"", "?1")).status_code == 200
        heard_opened: list[str] = []
        heard_closed: list[str] = []
        async with asyncio.timeout(DEADLINE):
            while len(heard_closed) < count:
                event = await bob.heard.get()
                if isinstance(event, StreamOpened):
                    heard_opened.append(event.stream_id)
                elif isinstance(event, StreamClosed):
                    heard_closed.append(event.stream_id)

    assert heard_opened == opened
    assert heard_closed == [upload.created.json()["stream_id"] for upload in closing]


async def test_open_texts_are_bounded(serve_memory: Serve, room: str) -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(
            serve_memory(max_open_streams=3, max_open_streams_of_identity=2)
        )
        bob = await stack.enter_async_context(gateway.events(room, "bob"))
        await bob.until("gateway.opened")
        first = await stack.enter_async_context(gateway.upload(room, "carol"))
        first.send(b"x")
        await bob.until("stream.chunk")
        upload = await gateway.begin_upload(room, "carol")
        of_identity = await gateway.begin_upload(room, "carol")
        other = await gateway.begin_upload(room, "dave")
        of_process = await gateway.begin_upload(room, "erin")
        whole = await gateway.post(room, "carol", "a whole text is not counted")
        await upload.delete()
        again = await gateway.begin_upload(room, "carol")

    for refused in (of_identity, of_process):
        assert refused.created.status_code == 429
        assert refused.created.json()["code"] == "too_many_open_streams"
        assert refused.created.headers["retry-after"] == "5"
    assert "GATEWAY_MAX_OPEN_STREAMS_OF_IDENTITY" in of_identity.created.json()["detail"]
    assert [each.created.status_code for each in (upload, other, again)] == [201, 201, 201]
    assert whole.status_code == 200


async def test_uploads_that_are_sent_whole_count_as_open(serve_memory: Serve, room: str) -> None:
    json_part = {"Content-Type": "application/json"}
    async with serve_memory(max_open_streams_of_identity=2) as gateway:
        begun = [await gateway.begin_upload(room, "carol", headers=json_part) for _ in range(3)]
        await begun[0].delete()
        again = await gateway.begin_upload(room, "carol", headers=json_part)

    assert [each.created.status_code for each in (*begun, again)] == [201, 201, 429, 201]


async def test_what_is_held_of_whole_texts_is_bounded(serve_memory: Serve, room: str) -> None:
    async def begun(identity: str, content: bytes) -> Uploading:
        return await gateway.begin_upload(
            room, identity, content, headers={"Content-Type": "application/json"}
        )

    # 64 times the longest whole text are held, a quarter of that of one sender.
    async with serve_memory(max_text_bytes=20) as gateway:
        of_carol = [await begun("carol", b'{"text": "0123456789') for _ in range(17)]
        others = ("dave", "erin", "frank")
        of_others = [await begun(each, b"{" * 20) for each in others for _ in range(16)]
        last = await gateway.post(room, "grace", "no room left")
        await of_carol[0].delete()
        after = await gateway.post(room, "grace", "there is now")

    assert [each.created.status_code for each in of_carol] == [201] * 16 + [429]
    assert of_carol[-1].created.json()["code"] == "too_many_bodies"
    assert {each.created.status_code for each in of_others} == {201}
    assert (last.status_code, last.json()["code"]) == (429, "too_many_bodies")
    assert after.status_code == 200


async def test_a_text_that_livekit_has_taken_is_answered_so_though_its_sender_leaves(
    room: str,
) -> None:
    rooms = GatedRooms()
    rooms.gate.set()
    settings = Settings("ws://in-process", "devkey", "secret")
    async with running(rooms, settings) as gateway, gateway.upload(room, "carol") as upload:
        bob = await join(gateway, room, "bob")
        upload.send(b"text")
        while not isinstance(await bob.heard.get(), StreamChunk):
            pass
        rooms.taking.clear()
        rooms.gate.clear()
        upload.finish()
        await rooms.taking.wait()  # the end is on its way
        leaving = asyncio.create_task(
            gateway.client.delete(
                f"/rooms/{room}/participants/carol", headers=gateway.bearer("carol", room)
            )
        )
        await poll_until(lambda: _ended(gateway))
        rooms.gate.set()
        closed = await bob.closed()
        status, sent = await upload.answer()
        await leaving

    assert closed.complete
    assert (status, sent["size"]) == (200, 4)


def _ended(gateway: RunningGateway) -> bool:
    """Whether the one connection is on its way out."""
    return all(slot.connection.ended for slot in gateway.hub._slots.values())


# Requests that come twice


async def test_a_key_sends_its_text_once(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        first = await _key(gateway, room, "k-1", "once")
        again = await _key(gateway, room, '"k-1"', "once")
        other = await _key(gateway, room, "k-2", "another")

        assert again.status_code == 200
        assert again.json() == first.json()
        assert other.json()["stream_id"] != first.json()["stream_id"]
        assert [(await bob.text()).text for _ in range(2)] == ["once", "another"]


async def test_a_key_holds_for_streamed_bodies_however_they_are_cut(
    serve: Serve, room: str
) -> None:
    async def in_parts(size: int) -> Any:
        for start in range(0, len(BODY), size):
            yield BODY[start : start + size]

    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        first = await _key(gateway, room, "k", in_parts(7))
        again = await _key(gateway, room, "k", in_parts(3))
        await gateway.post(room, "carol", "next")

        assert again.json() == first.json()
        assert (await bob.text()).text == BODY.decode()
        assert (await bob.text()).text == "next"


BODY = "Grüße an alle 👋".encode()


async def test_a_key_with_something_else_is_refused(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        await _key(gateway, room, "k", "text")
        refused = [
            await _key(gateway, room, "k", "next"),
            await _key(gateway, room, "k", "tex"),
            await _key(gateway, room, "k", "texts"),
            await _key(gateway, room, "k", "text", topic="lk.chat"),
            await _key(gateway, room, "k", '"text"', content_type="application/x-ndjson"),
        ]
        of_another = await gateway.client.post(
            f"/rooms/{room}/text",
            content="mine",
            headers={
                **gateway.bearer("dave", room),
                "Content-Type": "text/plain",
                "Idempotency-Key": "k",
            },
        )

        for answer in refused:
            assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
        assert of_another.status_code == 200
        assert [(await bob.text()).text for _ in range(2)] == ["text", "mine"]


async def test_while_the_first_is_under_way_the_second_is_refused(
    serve_memory: Serve, room: str
) -> None:
    async with (
        serve_memory() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol", headers={"Idempotency-Key": "k"}) as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"half ")
        await bob.until("stream.chunk")
        second = await _key(gateway, room, "k", "half done")
        upload.send(b"done")
        upload.finish()
        first = (await upload.answer())[1]
        third = await _key(gateway, room, "k", "half done")

    assert (second.status_code, second.json()["code"]) == (409, "idempotency_key_in_use")
    assert third.json() == first


async def test_a_failure_is_not_remembered(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        failed = await _key(gateway, room, "k", b"\xff")
        async with gateway.upload(room, "carol", headers={"Idempotency-Key": "k"}) as upload:
            upload.send(b"half")
            await bob.until("stream.chunk")
            upload.break_off()
        assert (await bob.until("stream.closed")).data["complete"] is False
        whole = await _key(gateway, room, "k", "whole")

        assert failed.status_code == 400
        assert whole.status_code == 200
        assert (await bob.text()).text == "whole"


async def test_an_answer_that_was_lost_is_given_again(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        async with gateway.upload(room, "carol", headers={"Idempotency-Key": "k"}) as upload:
            upload.send(b"sent")
            upload.finish()
            heard = await bob.text()
        again = await _key(gateway, room, "k", "sent")

        assert again.json()["stream_id"] == heard.header["stream_id"]
        await gateway.post(room, "carol", "next")
        assert (await bob.text()).text == "next"


async def test_a_creation_with_a_key_is_one_upload(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        first, again = [
            await gateway.begin_upload(room, "carol", b"x", headers={"Idempotency-Key": "k"})
            for _ in range(2)
        ]
        other = await _key(gateway, room, "k", "x")

    assert again.created.status_code == 201
    assert again.url == first.url
    assert again.created.content == first.created.content
    assert other.json()["code"] == "idempotency_key_reused"


# Before the body is sent


async def test_who_asks_first_is_refused_before_it_has_sent(serve_memory: Serve, room: str) -> None:
    async with serve_memory(max_connections=1) as gateway:
        await gateway.begin_upload(room, "somebody", stream_id="taken")
        for content_type, query, more, status in (
            ("image/png", "", "", 415),
            ("text/plain", "", "", 503),
            ("text/plain", "", "Upload-Complete: ?0", 503),
            ("text/plain", "", "Upload-Complete: ?1", 503),
            ("text/plain", "", "Transfer-Encoding: chunked", 503),
            ("application/x-ndjson", "", "", 503),
            ("text/plain", "?stream_id=taken", "", 409),
            ("application/json", "?stream_id=taken", "", 409),
            ("application/json", "?topic=lk.agent", "", 403),
            ("application/json", "", "Upload-Length: 9999999\r\nUpload-Complete: ?0", 413),
        ):
            head = await _asked(gateway, room, content_type, query, more)

            assert head.startswith(f"HTTP/1.1 {status} "), (content_type, query, more)
            # Whether the body follows, nobody could tell from what comes next.
            assert "connection: close" in head.lower()


async def test_who_asks_first_and_may_is_told_to_go_on(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        assert (await _asked(gateway, room, "text/plain")).startswith("HTTP/1.1 100 ")


async def _asked(
    gateway: RunningGateway, room: str, content_type: str, query: str = "", more: str = ""
) -> str:
    """The head of what a request with a body that has not been sent is answered."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [
        f"POST /rooms/{room}/text{query} HTTP/1.1",
        f"Host: {host}:{port}",
        f"Authorization: {gateway.bearer('carol', room)['Authorization']}",
        f"Content-Type: {content_type}",
        *([more] if more else []),
        *([] if "chunked" in more else ["Content-Length: 4"]),
        "Expect: 100-continue",
        "",
        "",
    ]
    writer.write("\r\n".join(lines).encode())
    try:
        async with asyncio.timeout(5):
            return (await reader.readuntil(b"\r\n\r\n")).decode()
    finally:
        writer.close()
