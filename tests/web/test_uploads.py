"""Resumable uploads: /rooms/{room}/uploads/{upload_id}, by the IETF draft (interop version 6)."""

import asyncio
import gzip
import json
import time
from contextlib import AbstractAsyncContextManager

import pytest

from gateway.web import reading, upload as upload_module
from tests.conftest import Serve
from tests.running_gateway import DEADLINE, ChunkedUpload, EventStream, RunningGateway, Uploading


async def _opened(bob: EventStream) -> EventStream:
    await bob.until("gateway.opened")
    return bob


async def test_a_text_is_sent_in_parts_and_each_is_seen_at_once(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol", b"zero")
        created = upload.created
        header = (await bob.until("stream.opened")).data

        assert created.status_code == 201
        assert created.headers["upload-offset"] == "4"
        assert created.headers["upload-complete"] == "?0"
        assert created.headers["upload-limit"].startswith("max-size=1073741824, expires=")
        assert created.json()["stream_id"] == header["stream_id"]
        assert created.json()["position"]
        assert (await bob.until("stream.chunk")).data["text"] == "zero"

        more = await upload.patch(4, b" one")
        assert (more.status_code, more.headers["upload-offset"]) == (201, "8")
        assert more.headers["upload-complete"] == "?0"
        assert (await bob.until("stream.chunk")).data["text"] == " one"

        last = await upload.patch(8, b" two", "?1")
        assert (last.status_code, last.headers["upload-offset"]) == (200, "12")
        assert last.headers["upload-complete"] == "?1"
        assert last.json() == {**created.json(), "size": 12}
        assert (await bob.until("stream.chunk")).data["text"] == " two"
        end = (await bob.until("stream.closed")).data
        assert (end["complete"], end["size"]) == (True, 12)


async def test_head_says_where_to_go_on(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        upload = await gateway.begin_upload(room, "carol", b"12345", headers={"Upload-Length": "9"})
        asked = await upload.head()
        await upload.patch(5, b"6789", "?1")
        afterwards = await upload.head()

    assert asked.status_code == 204
    assert asked.headers["upload-offset"] == "5"
    assert asked.headers["upload-complete"] == "?0"
    assert asked.headers["upload-length"] == "9"
    assert asked.headers["cache-control"] == "no-store"
    assert afterwards.headers["upload-offset"] == "9"
    assert afterwards.headers["upload-complete"] == "?1"
    assert afterwards.headers["upload-length"] == "9"
    assert "upload-limit" not in afterwards.headers


async def test_characters_lines_and_compressed_blocks_may_straddle_requests(
    serve_memory: Serve, room: str
) -> None:
    text = "Grüße 👋 " * 40
    lines = "".join(f"{json.dumps(piece)}\n" for piece in text.split(" "))
    forms = [
        ({}, text.encode()),
        ({"Content-Type": "application/x-ndjson"}, lines.encode()),
        ({"Content-Type": "application/json"}, json.dumps({"text": text}).encode()),
        ({"Content-Type": "text/plain", "Content-Encoding": "gzip"}, gzip.compress(text.encode())),
    ]
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        for headers, body in forms:
            upload = await gateway.begin_upload(room, "carol", headers=headers)
            for offset in range(0, len(body), 7):
                answer = await upload.patch(offset, body[offset : offset + 7])
                assert answer.status_code == 201
            assert (await upload.patch(len(body), b"", "?1")).status_code == 200
            heard = await bob.text()

            assert heard.text.replace(" ", "") == text.replace(" ", "")
            assert heard.end is not None
            assert heard.end["complete"] is True


def _first_part(
    gateway: RunningGateway, room: str, upload: Uploading, complete: str
) -> AbstractAsyncContextManager[ChunkedUpload]:
    """A PATCH from the beginning, whose body goes on until it is finished."""
    return gateway.upload(
        room,
        "carol",
        path=upload.url,
        content_type="application/partial-upload",
        headers={"Upload-Offset": "0", "Upload-Complete": complete},
    )


async def test_requests_that_the_server_gives_up_leave_no_text_that_seems_whole(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol")
        reading = set(gateway.server.server_state.tasks)
        async with (
            gateway.upload(room, "carol") as post,
            _first_part(gateway, room, upload, "?1") as patch,
        ):
            for request in (post, patch):
                request.send(b"half")
                await bob.until("stream.chunk")
            # What uvicorn does with what is left at a hard stop.
            for task in gateway.server.server_state.tasks - reading:
                task.cancel()
            ends = [(await bob.until("stream.closed")).data for _ in range(2)]

    assert [(end["complete"], end["reason"]) for end in ends] == [(False, "interrupted")] * 2


async def test_what_arrived_before_the_connection_broke_is_kept(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol")
        async with _first_part(gateway, room, upload, "?1") as patch:
            patch.send(b"first ")
            assert (await bob.until("stream.chunk")).data["text"] == "first "
            patch.break_off()
        offset = int((await upload.head()).headers["upload-offset"])
        last = await upload.patch(offset, b"second", "?1")

        assert (offset, last.status_code, last.json()["size"]) == (6, 200, 12)
        assert (await bob.until("stream.chunk")).data["text"] == "second"
        assert (await bob.until("stream.closed")).data["complete"] is True


async def test_a_newer_request_takes_over_from_one_that_hangs(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol")
        async with _first_part(gateway, room, upload, "?0") as hanging:
            hanging.send(b"first ")
            assert (await bob.until("stream.chunk")).data["text"] == "first "
            asked = await upload.head()
            status, problem = await hanging.answer()

            assert asked.headers["upload-offset"] == "6"
            assert (status, problem["code"]) == (409, "upload_interrupted")
            assert (await upload.patch(6, b"second", "?1")).status_code == 200


async def test_a_last_request_that_comes_again_is_answered_again(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol", b"text")
        first = await upload.patch(4, b"", "?1")
        again = await upload.patch(4, b"", "?1")
        with_more = await upload.patch(4, b"more", "?1")
        going_on = await upload.patch(4, b"", "?0")
        cancelling = await upload.delete()
        await gateway.post(room, "carol", "next")

        assert (first.status_code, again.status_code) == (200, 200)
        assert again.json() == first.json()
        for refused in (with_more, going_on, cancelling):
            assert (refused.status_code, refused.json()["code"]) == (400, "upload_complete")
            assert refused.json()["type"].endswith("#completed-upload")
            assert refused.headers["upload-offset"] == "4"
        assert [(await bob.text()).text for _ in range(2)] == ["text", "next"]


async def test_one_request_may_be_all_of_it(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol", b"all of it", complete="?1")
        heard = await bob.text()

        assert upload.created.status_code == 200
        assert upload.created.headers["upload-complete"] == "?1"
        assert upload.created.json()["size"] == 9
        # Whole, as without the header: its size is known, and it is one piece.
        assert (heard.header["size"], heard.chunks, heard.text) == (9, 1, "all of it")
        assert (await upload.head()).headers["upload-offset"] == "9"


async def test_an_empty_upload_is_an_empty_text(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        # What tus-js-client sends for an empty file, and nothing after it.
        upload = await gateway.begin_upload(room, "carol", headers={"Upload-Length": "0"})

        assert upload.created.status_code == 200
        assert upload.created.headers["upload-complete"] == "?1"
        assert (await bob.text()).text == ""


async def test_json_options_of_an_upload_count_once_it_is_whole(
    serve_memory: Serve, room: str
) -> None:
    body = json.dumps({"text": "news", "topic": "news", "attributes": {"a": "b"}}).encode()
    async with serve_memory() as gateway, gateway.events(room, "bob", "news") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(
            room, "carol", body[:9], headers={"Content-Type": "application/json"}
        )
        assert (upload.created.status_code, upload.created.content) == (201, b"")
        last = await upload.patch(9, body[9:], "?1")

        assert last.json()["topic"] == "news"
        assert (await bob.text()).header["attributes"] == {"a": "b"}


async def test_a_cancelled_upload_ends_incomplete(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol", b"half")
        gone = await upload.delete()
        end = (await bob.until("stream.closed")).data
        more = await upload.patch(4, b" more", "?1")

        assert gone.status_code == 204
        assert (end["complete"], end["reason"]) == (False, "cancelled")
        assert (more.status_code, more.json()["code"]) == (404, "upload_ended")
        assert "cancelled" in more.json()["detail"]
        assert (await upload.head()).status_code == 404


async def test_an_upload_that_nobody_goes_on_with_is_given_up(serve: Serve, room: str) -> None:
    async with serve(upload_idle_timeout=0.3) as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol", b"half")
        end = (await bob.until("stream.closed")).data
        more = await upload.patch(4, b" more", "?1")

        assert (end["complete"], end["reason"]) == (False, "upload_idle")
        assert (more.status_code, more.json()["code"]) == (404, "upload_ended")


async def test_an_upload_goes_on_as_long_as_requests_come(serve_memory: Serve, room: str) -> None:
    async with serve_memory(upload_idle_timeout=1.0) as gateway:
        upload = await gateway.begin_upload(room, "carol")
        begun = time.monotonic()
        offset = 0
        while time.monotonic() - begun < 1.5:
            offset = int((await upload.patch(offset, b".")).headers["upload-offset"])

        assert (await upload.patch(offset, b"", "?1")).status_code == 200


async def test_an_upload_ends_when_the_token_of_its_last_request_does(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        dying = gateway.token_that_lives("carol", room, 2.0)
        upload = await gateway.begin_upload(room, "carol", b"half", token=dying)
        end = (await bob.until("stream.closed")).data

        assert upload.created.status_code == 201
        assert (end["complete"], end["reason"]) == (False, "token_expired")
        newer = await gateway.client.head(upload.url, headers=gateway.bearer("carol", room))
        assert newer.status_code == 404


@pytest.mark.parametrize("media_type", ["text/plain", "application/json"])
async def test_a_newer_token_keeps_an_upload(
    serve_memory: Serve, room: str, media_type: str
) -> None:
    async with serve_memory() as gateway:
        dying = gateway.token_that_lives("carol", room, 2.0)
        upload = await gateway.begin_upload(
            room, "carol", b'{"te', token=dying, headers={"Content-Type": media_type}
        )
        part = {
            **gateway.bearer("carol", room),
            "Content-Type": "application/partial-upload",
            "Upload-Complete": "?0",
        }
        await gateway.client.patch(
            upload.url, content=b'xt":', headers={**part, "Upload-Offset": "4"}
        )
        async with asyncio.timeout(DEADLINE):
            while (await upload.head()).status_code != 401:
                pass
        last = await gateway.client.patch(
            upload.url,
            content=b'"one"}',
            headers={**part, "Upload-Offset": "8", "Upload-Complete": "?1"},
        )

        assert last.status_code == 200


async def test_draining_ends_an_upload(serve: Serve, room: str) -> None:
    # Read by its sender: the others' connections are left at the same time, and may be first.
    async with serve() as gateway, gateway.events(room, "carol") as carol:
        await _opened(carol)
        upload = await gateway.begin_upload(room, "carol", b"half")
        draining = asyncio.create_task(gateway.hub.drain())
        end = (await carol.until("stream.closed")).data
        await draining
        more = await upload.patch(4, b" more", "?1")

        assert (end["complete"], end["reason"]) == (False, "drain")
        assert (more.status_code, more.json()["code"]) == (404, "upload_ended")
        assert "drain" in more.json()["detail"]


async def test_a_participant_that_is_removed_loses_its_upload(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob", participants=1) as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol", b"half")
        # LiveKit tells nobody of the going of who was never told to have come.
        seen = {(await bob.next()).name for _ in range(3)}
        assert seen == {"participant.connected", "stream.opened", "stream.chunk"}
        await gateway.remove(room, "carol")
        end = (await bob.until("stream.closed")).data
        async with asyncio.timeout(DEADLINE):
            while (await upload.head()).status_code != 404:
                pass

        assert (end["complete"], end["reason"]) == (False, "sender_disconnected")


async def test_an_upload_that_lost_its_place_lets_go_of_its_id(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        await gateway.begin_upload(room, "carol", b"half", stream_id="mine")
        await gateway.remove(room, "carol")
        await bob.until("stream.closed")
        async with asyncio.timeout(DEADLINE):
            while (await gateway.post(room, "carol", "again", stream_id="mine")).status_code == 409:
                pass


async def test_a_sender_whose_right_is_taken_away_is_told_also_while_it_is_silent(
    serve_memory: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "RECHECK", 0.1)
    monkeypatch.setattr(upload_module, "RECHECK", 0.1)
    async with (
        serve_memory() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol") as post,
    ):
        await _opened(bob)
        post.send(b"half")
        await bob.until("stream.chunk")
        await gateway.begin_upload(room, "carol", b"half")
        await bob.until("stream.chunk")
        await gateway.forbid_sending(room, "carol")
        status, problem = await post.answer()
        ends = [(await bob.until("stream.closed")).data for _ in range(2)]

    assert (status, problem["code"]) == (403, "not_permitted")
    assert [end["reason"] for end in ends] == ["not_permitted"] * 2


async def test_an_upload_belongs_to_who_began_it(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        upload = await gateway.begin_upload(room, "carol", b"half")
        of_another = gateway.bearer("mallory", room)
        for method in ("PATCH", "DELETE"):
            answer = await gateway.client.request(method, upload.url, headers=of_another)
            assert (answer.status_code, answer.json()["code"]) == (404, "upload_not_found")
        assert (await gateway.client.head(upload.url, headers=of_another)).status_code == 404
        assert (await gateway.client.head(upload.url)).status_code == 401
        elsewhere = await gateway.client.delete(
            upload.url, headers=gateway.bearer("carol", "another room")
        )
        assert elsewhere.json()["code"] == "room_mismatch"

        assert (await upload.patch(4, b"", "?1")).status_code == 200


async def test_a_refused_part_leaves_the_upload_where_it_was(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol", b"half")
        refused = [
            (await upload.patch(2, b"lf"), 409, "offset_mismatch"),
            (await upload.patch(9, b"lf"), 409, "offset_mismatch"),
            (await upload.patch(4, b"x", content_type="text/plain"), 415, "unsupported_media_type"),
            (await upload.patch(4, b"x", upload_offset="-1"), 400, "invalid_parameter"),
            (await upload.patch(4, b"x", upload_offset="4.0"), 400, "invalid_parameter"),
            (await upload.patch(4, b"x", "true"), 400, "invalid_parameter"),
            (await upload.patch(4, b"x", upload_length="nine"), 400, "invalid_parameter"),
            (await upload.patch(4, b"x", upload_length="3"), 400, "length_mismatch"),
            (await upload.patch(4, b"x", "?1", upload_length="9"), 400, "length_mismatch"),
            (await upload.patch(4, b"x", upload_length=str(2**40)), 413, "body_too_large"),
            (await upload.delete(upload_offset="4"), 400, "invalid_parameter"),
        ]
        for answer, status, code in refused:
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert answer.headers["upload-offset"] == "4"
            assert answer.headers["upload-complete"] == "?0"
        mismatch = refused[0][0].json()
        assert mismatch["type"].endswith("#mismatching-upload-offset")
        assert (mismatch["expected-offset"], mismatch["provided-offset"]) == (4, 2)
        assert (await upload.head(upload_offset="4")).status_code == 400
        assert (await upload.head(upload_complete="?0")).status_code == 400

        assert (await upload.patch(4, b" and half", "?1")).status_code == 200
        assert (await bob.text()).text == "half and half"


async def test_a_part_without_its_offset_is_refused(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        upload = await gateway.begin_upload(room, "carol", b"half")
        answer = await gateway.client.patch(
            upload.url,
            content=b"x",
            headers={**upload.authorization, "Content-Type": "application/partial-upload"},
        )

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


async def test_no_byte_beyond_the_length_is_taken(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol", headers={"Upload-Length": "6"})
        too_much = await upload.patch(0, b"exactly six")
        too_few_said = await upload.patch(6, b"", "?1")

        assert (too_much.status_code, too_much.json()["code"]) == (400, "length_mismatch")
        assert too_much.headers["upload-offset"] == "6"
        assert too_few_said.status_code == 200
        assert (await bob.text()).text == "exactl"


async def test_an_upload_is_not_complete_before_its_length(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        upload = await gateway.begin_upload(room, "carol", headers={"Upload-Length": "6"})
        early = await upload.patch(0, b"four", "?1")
        late = await upload.patch(0, b"in six", "?1")

    assert (early.status_code, early.json()["code"]) == (400, "length_mismatch")
    assert early.headers["upload-offset"] == "0"
    assert late.status_code == 200


async def test_an_end_that_only_its_length_tells_is_one(serve_memory: Serve, room: str) -> None:
    # tus-js-client, whose source ends where a part did.
    async with serve_memory() as gateway:
        upload = await gateway.begin_upload(room, "carol", b"four")
        last = await upload.patch(4, b"", None, upload_length="4")

    assert (last.status_code, last.headers["upload-complete"]) == (200, "?1")


@pytest.mark.parametrize(
    ("content", "headers", "code"),
    [
        (b"\xff", {}, "invalid_text"),
        (b"{}\n", {"Content-Type": "application/x-ndjson"}, "invalid_line"),
        (b"not gzip", {"Content-Encoding": "gzip"}, "invalid_encoding"),
    ],
)
async def test_a_body_that_is_wrong_ends_its_upload(
    serve: Serve, room: str, content: bytes, headers: dict[str, str], code: str
) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        upload = await gateway.begin_upload(room, "carol", headers=headers)
        answer = await upload.patch(0, content)
        end = (await bob.until("stream.closed")).data

        assert (answer.status_code, answer.json()["code"]) == (400, code)
        assert (end["complete"], end["reason"]) == (False, code)
        assert (await upload.head()).status_code == 404


async def test_a_creation_that_is_refused_leaves_no_upload(serve_memory: Serve, room: str) -> None:
    async with serve_memory(max_stream_bytes=100) as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        for content, headers, status, code in (
            (b"", {"Upload-Length": "101"}, 413, "body_too_large"),
            (b"1234", {"Upload-Length": "3"}, 400, "length_mismatch"),
            (b"\xff", {}, 400, "invalid_text"),
            (b"", {"Content-Type": "image/png"}, 415, "unsupported_media_type"),
            (b"", {"Upload-Length": "x"}, 400, "invalid_parameter"),
        ):
            upload = await gateway.begin_upload(room, "carol", content, headers=headers)
            assert (upload.created.status_code, upload.created.json()["code"]) == (status, code)
            assert "location" not in upload.created.headers
        wrong = await gateway.begin_upload(room, "carol", complete="1")
        assert (wrong.created.status_code, wrong.created.json()["code"]) == (
            400,
            "invalid_parameter",
        )
        assert (await bob.text()).end["reason"] == "length_mismatch"  # type: ignore[index]
        await gateway.post(room, "carol", "next")
        assert (await bob.text()).text == "next"


async def test_a_creation_that_breaks_off_is_over(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await _opened(bob)
        async with gateway.upload(room, "carol", headers={"Upload-Complete": "?0"}) as creation:
            creation.send(b"half")
            assert (await bob.until("stream.chunk")).data["text"] == "half"
            creation.break_off()
        end = (await bob.until("stream.closed")).data

    assert (end["complete"], end["reason"]) == (False, "client_disconnected")


async def test_options_says_how_large_an_upload_may_be(gateway: RunningGateway, room: str) -> None:
    answer = await gateway.client.options(f"/rooms/{room}/text")

    assert answer.status_code == 204
    assert answer.headers["upload-limit"] == "max-size=1073741824"
    assert answer.headers["allow"] == "POST, OPTIONS"


async def test_a_page_of_another_origin_may_upload(serve_memory: Serve, room: str) -> None:
    origin = {"Origin": "https://app.example"}
    asking = {
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization,content-type,upload-complete,upload-offset"
        ",upload-length,upload-draft-interop-version,idempotency-key,content-encoding",
    }
    async with serve_memory(cors_origins=("https://app.example",)) as gateway:
        upload = await gateway.begin_upload(room, "carol", headers=origin)
        preflight = await gateway.client.options(upload.url, headers=origin | asking)

    assert preflight.status_code == 200
    exposed = upload.created.headers["access-control-expose-headers"].lower()
    assert {"location", "upload-offset", "upload-complete", "upload-limit"} <= set(
        exposed.split(", ")
    )
