"""POST /rooms/{room}/text, as it is heard by others, and every way in which it is refused."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import Serve
from tests.running_gateway import EventStream, RunningGateway


async def _text(events: EventStream) -> dict[str, Any]:
    """The next stream folded: its header, its whole text, its end."""
    text = await events.text()
    return {"header": text.header, "text": text.text, "end": text.end}


async def test_a_whole_text_comes_out_at_another_participant(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        answer = await gateway.post(room, "carol", "Grüße, Bob 👋")
        heard = await _text(bob)

    assert answer.status_code == 200
    sent = answer.json()
    assert sent == {
        "stream_id": heard["header"]["stream_id"],
        "topic": "lk.chat",
        "timestamp": heard["header"]["timestamp"],
        "size": len("Grüße, Bob 👋".encode()),
        "attributes": {},
        "destination_identities": [],
        "listeners": 1,
        "position": sent["position"],
    }
    assert heard["text"] == "Grüße, Bob 👋"
    assert heard["header"] == {
        "type": "stream.opened",
        "stream_id": sent["stream_id"],
        "topic": "lk.chat",
        "participant_identity": "carol",
        "timestamp": sent["timestamp"],
        "size": sent["size"],
        "mime_type": "text/plain",
        "attributes": {},
        "destination_identities": None,
        "reply_to_stream_id": None,
        "attached_stream_ids": [],
        "generated": False,
        "operation": "create",
        "version": 0,
        "local": False,
    }
    assert heard["end"] == {
        "type": "stream.closed",
        "stream_id": sent["stream_id"],
        "topic": "lk.chat",
        "participant_identity": "carol",
        "complete": True,
        "reason": None,
        "attributes": {},
        "size": sent["size"],
        "chunks": 1,
    }


async def test_json_carries_all_options(serve: Serve, room: str) -> None:
    body = {
        "text": "yes",
        "topic": "answers",
        "to": ["bob"],
        "attributes": {"mood": "good"},
        "reply_to_stream_id": "question-1",
    }
    async with serve() as gateway, gateway.events(room, "bob", "answers") as bob:
        await bob.until("gateway.opened")
        answer = await gateway.post(
            room, "carol", json.dumps(body), content_type="application/json; charset=utf-8"
        )
        heard = await _text(bob)

    assert answer.status_code == 200
    assert answer.json()["listeners"] == 1
    assert answer.json()["destination_identities"] == ["bob"]
    assert heard["text"] == "yes"
    assert heard["header"]["topic"] == "answers"
    assert heard["header"]["attributes"] == {"mood": "good"}


async def test_reply_to_stream_id_is_shown_to_the_receiver(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        await gateway.post(room, "carol", "yes", reply_to_stream_id="question-1")
        heard = await _text(bob)

    assert heard["header"]["reply_to_stream_id"] == "question-1"


async def test_the_same_options_in_the_query(serve: Serve, room: str) -> None:
    query: dict[str, Any] = {
        "topic": "answers",
        "to": ["bob", "dave"],
        "attr.mood": "good",
        "attr.n": "ü",
    }
    async with serve() as gateway, gateway.events(room, "bob", "answers") as bob:
        await bob.until("gateway.opened")
        answer = await gateway.post(room, "carol", "yes", **query)
        heard = await _text(bob)

    assert answer.json()["destination_identities"] == ["bob", "dave"]
    assert answer.json()["attributes"] == {"mood": "good", "n": "ü"}
    assert answer.json()["listeners"] == 1
    assert heard["header"]["attributes"] == {"mood": "good", "n": "ü"}


async def test_only_the_addressees_see_a_text_with_to(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.events(room, "dave") as dave,
    ):
        await bob.until("gateway.opened")
        await dave.until("gateway.opened")
        await gateway.post(room, "carol", "for bob", to="bob")
        await gateway.post(room, "carol", "for all")

        assert (await _text(bob))["text"] == "for bob"
        assert (await _text(bob))["text"] == "for all"
        assert (await _text(dave))["text"] == "for all"


async def test_a_text_to_somebody_who_is_not_there_is_sent_to_nobody(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        answer = await gateway.post(room, "carol", "anybody?", to="nobody")
        await gateway.post(room, "carol", "then all")

        assert answer.status_code == 200
        assert answer.json()["listeners"] == 0
        assert (await _text(bob))["text"] == "then all"


async def test_an_empty_text_is_a_text(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        answer = await gateway.post(room, "carol", "")
        heard = await _text(bob)

    assert answer.json()["size"] == 0
    assert heard["text"] == ""
    assert heard["header"]["size"] == 0
    assert heard["end"]["complete"] is True
    assert heard["end"]["chunks"] == 0


async def test_own_texts_are_in_the_senders_own_log(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "carol") as carol:
        await carol.until("gateway.opened")
        await gateway.post(room, "carol", "mine", to="bob")
        heard = await _text(carol)

    assert heard["text"] == "mine"
    assert heard["header"]["local"] is True
    assert heard["header"]["participant_identity"] == "carol"
    assert heard["header"]["destination_identities"] == ["bob"]
    assert heard["end"]["complete"] is True


async def test_following_from_the_answers_position_shows_the_text_and_what_follows(
    serve: Serve, room: str
) -> None:
    async with serve() as gateway:
        await gateway.post(room, "carol", "before")
        position = (await gateway.post(room, "carol", "mine")).json()["position"]
        await gateway.post(room, "carol", "after")
        async with gateway.events(room, "carol", last_event_id=position) as carol:
            assert (await _text(carol))["text"] == "mine"
            assert (await _text(carol))["text"] == "after"


async def test_each_piece_of_a_chunked_body_is_seen_before_the_body_ends(
    serve: Serve, room: str
) -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        for piece in ("one ", "two ", "three"):
            yield piece.encode()
            assert await asyncio.wait_for(seen.get(), 5) == piece

    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        posting = asyncio.create_task(gateway.post(room, "carol", body()))
        opened = await bob.until("stream.opened")
        for _ in range(3):
            seen.put_nowait((await bob.until("stream.chunk")).data["text"])
        closed = await bob.until("stream.closed")
        answer = await posting

    assert opened.data["size"] is None
    assert closed.data["complete"] is True
    assert closed.data["size"] == answer.json()["size"] == 13
    assert answer.json()["stream_id"] == opened.data["stream_id"]


async def test_a_character_cut_by_a_chunk_border_is_held_back(serve: Serve, room: str) -> None:
    whole = "a€b👋".encode()
    seen = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield whole[:2]
        await seen.wait()
        for byte in whole[2:]:
            yield bytes([byte])

    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        posting = asyncio.create_task(gateway.post(room, "carol", body()))
        first = await bob.until("stream.chunk")
        seen.set()
        rest = ""
        while (event := await bob.next()).name == "stream.chunk":
            rest += event.data["text"]
        await posting

    assert first.data["text"] == "a"
    assert rest == "€b👋"
    assert event.data["complete"] is True


async def test_an_empty_chunked_body_is_an_empty_text(serve: Serve, room: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b""

    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        answer = await gateway.post(room, "carol", body())
        heard = await _text(bob)

    assert answer.json()["size"] == 0
    assert heard["text"] == ""
    assert heard["end"]["complete"] is True


async def test_a_sender_that_goes_away_leaves_an_incomplete_stream(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.events(room, "carol") as carol,
    ):
        await bob.until("gateway.opened")
        async with gateway.upload(room, "carol") as upload:
            upload.send(b"half")
            assert (await bob.until("stream.chunk")).data["text"] == "half"
            upload.break_off()
        closed = await bob.until("stream.closed")
        own = await carol.until("stream.closed")

    for end in (closed, own):
        assert end.data["complete"] is False
        assert end.data["reason"] == "client_disconnected"
        assert end.data["size"] == 4


async def test_a_body_that_goes_silent_is_closed_as_incomplete(serve: Serve, room: str) -> None:
    async with (
        serve(body_idle_timeout=0.3) as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol") as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"half")
        closed = await bob.until("stream.closed")
        status, problem = await upload.answer()

    assert (status, problem["code"]) == (408, "body_idle")
    assert closed.data["complete"] is False
    assert closed.data["reason"] == "body_idle"


@pytest.mark.parametrize("tail", [b"\xff", b"\xe2\x82"], ids=["broken", "cut"])
async def test_a_chunked_body_that_is_not_utf8_is_closed_as_incomplete(
    serve: Serve, room: str, tail: bytes
) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol") as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"good ")
        assert (await bob.until("stream.chunk")).data["text"] == "good "
        upload.send(tail)
        upload.finish()
        closed = await bob.until("stream.closed")
        status, problem = await upload.answer()

    assert (status, problem["code"]) == (400, "invalid_text")
    assert closed.data["complete"] is False
    assert closed.data["reason"] == "invalid_text"
    assert closed.data["size"] == 5


async def test_a_chunked_body_that_begins_with_rubbish_leaves_no_trace(
    serve: Serve, room: str
) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol") as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"\xff")
        assert (await upload.answer())[0] == 400
        await gateway.post(room, "carol", "the next one")

        assert (await _text(bob))["text"] == "the next one"


async def test_a_chunked_body_over_the_limit_is_closed_as_incomplete(
    serve: Serve, room: str
) -> None:
    async with (
        serve(max_stream_bytes=16) as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol") as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"12345678")
        assert (await bob.until("stream.chunk")).data["text"] == "12345678"
        upload.send(b"123456789")
        closed = await bob.until("stream.closed")
        status, problem = await upload.answer()

    assert (status, problem["code"]) == (413, "body_too_large")
    assert closed.data["complete"] is False
    assert closed.data["reason"] == "body_too_large"


async def test_json_without_a_length_is_bounded_too(serve_memory: Serve, room: str) -> None:
    async with (
        serve_memory(max_text_bytes=16) as gateway,
        gateway.upload(room, "carol", content_type="application/json") as upload,
    ):
        upload.send(b'{"text": "1234567890"}')
        status, problem = await upload.answer()

    assert (status, problem["code"]) == (413, "body_too_large")


async def test_a_whole_body_that_stops_coming_is_given_up(serve_memory: Serve, room: str) -> None:
    async with (
        serve_memory(body_idle_timeout=0.2) as gateway,
        gateway.upload(room, "carol", content_type="application/json") as upload,
    ):
        upload.send(b'{"text": ')
        status, problem = await upload.answer()

    assert (status, problem["code"]) == (408, "body_idle")


async def test_a_long_whole_text_arrives_whole(serve: Serve, room: str) -> None:
    text = "".join(f"{number} € " for number in range(20_000))
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        answer = await gateway.post(room, "carol", text)
        heard = await _text(bob)

    assert answer.json()["size"] == len(text.encode())
    assert heard["text"] == text
    assert heard["end"]["complete"] is True


GZIP = [("Content-Encoding", "gzip")]

TYPES = {"content": "text/plain", "json": "application/json", "lines": "application/x-ndjson"}
"""Of a body, by how the table below calls it."""

BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "invalid UTF-8": ({"content": b"\xff\xfe"}, 400, "invalid_text"),
    "truncated UTF-8": ({"content": b"\xe2\x82"}, 400, "invalid_text"),
    "unknown query parameter": ({"query": "?topci=x"}, 400, "invalid_parameter"),
    "parameter twice": ({"query": "?topic=a&topic=b"}, 400, "invalid_parameter"),
    "attribute twice": ({"query": "?attr.a=1&attr.a=2"}, 400, "invalid_parameter"),
    "attribute without a name": ({"query": "?attr.=1"}, 400, "invalid_parameter"),
    "query not UTF-8": ({"query": "?topic=%ff"}, 400, "invalid_parameter"),
    "topic empty": ({"query": "?topic="}, 400, "invalid_parameter"),
    "topic too long": ({"query": "?topic=" + "ü" * 129}, 400, "invalid_parameter"),
    "topic with NUL": ({"query": "?topic=a%00b"}, 400, "invalid_parameter"),
    "topic reserved": ({"query": "?topic=lk.transcription"}, 403, "topic_reserved"),
    "agent's topic": ({"query": "?topic=lk.agent.session"}, 403, "topic_reserved"),
    "identity too long": ({"query": "?to=" + "i" * 257}, 400, "invalid_parameter"),
    "identity empty": ({"query": "?to="}, 400, "invalid_parameter"),
    "too many parameters": ({"query": "?" + "to=x&" * 201}, 400, "invalid_parameter"),
    "attributes too large": ({"query": "?attr.a=" + "x" * 14_000}, 413, "header_too_large"),
    "name of an attribute too long": (
        {"query": "?attr." + "n" * 257 + "=1"},
        400,
        "invalid_parameter",
    ),
    "attributes of JSON too large": (
        {"json": json.dumps({"text": "", "attributes": {"a": "x" * 14_000}})},
        413,
        "header_too_large",
    ),
    "no type": ({"type": None}, 415, "unsupported_media_type"),
    "a form, as curl -d sends": (
        {"type": "application/x-www-form-urlencoded"},
        415,
        "unsupported_media_type",
    ),
    "hostile parameters": (
        {"type": 'text/plain; charset="' + "(" * 5000},
        415,
        "unsupported_media_type",
    ),
    "another charset": ({"type": "text/plain; charset=latin1"}, 415, "unsupported_media_type"),
    "two types": ({"headers": [("Content-Type", "text/plain")]}, 415, "unsupported_media_type"),
    "a part of nothing": (
        {"type": "application/partial-upload"},
        415,
        "unsupported_media_type",
    ),
    "a coding other than gzip": (
        {"headers": [("Content-Encoding", "br")]},
        415,
        "unsupported_encoding",
    ),
    "two codings": (
        {"headers": [("Content-Encoding", "gzip, gzip")]},
        415,
        "unsupported_encoding",
    ),
    "the coding twice": (
        {"headers": GZIP * 2},
        400,
        "invalid_parameter",
    ),
    "not gzip": ({"headers": GZIP}, 400, "invalid_encoding"),
    "gzip cut short": (
        {"headers": GZIP, "content": gzip.compress(b"text")[:-1]},
        400,
        "invalid_encoding",
    ),
    "gzip and more": (
        {"headers": GZIP, "content": gzip.compress(b"text") + b"\0"},
        400,
        "invalid_encoding",
    ),
    "gzip of what is not UTF-8": (
        {"headers": GZIP, "content": gzip.compress(b"\xff")},
        400,
        "invalid_text",
    ),
    "gzip of more than the limit": (
        {"headers": GZIP, "content": gzip.compress(b"x" * (1024 * 1024 + 1))},
        413,
        "body_too_large",
    ),
    "gzip of blank lines without end": (
        {"headers": GZIP, "lines": gzip.compress(b"\n" * 2_000_000)},
        400,
        "invalid_line",
    ),
    "stream id empty": ({"query": "?stream_id="}, 400, "invalid_parameter"),
    "stream id too long": ({"query": "?stream_id=" + "s" * 257}, 400, "invalid_parameter"),
    "stream id with NUL": ({"query": "?stream_id=a%00"}, 400, "invalid_parameter"),
    "stream id not a string": (
        {"json": '{"text": "", "stream_id": 1}'},
        400,
        "invalid_parameter",
    ),
    "stream id null": ({"json": '{"text": "", "stream_id": null}'}, 400, "invalid_parameter"),
    "reply to nothing": ({"query": "?reply_to_stream_id="}, 400, "invalid_parameter"),
    "operation unknown": (
        {"query": "?stream_id=a&operation=delete"},
        400,
        "invalid_parameter",
    ),
    "operation not a string": (
        {"json": '{"text": "", "stream_id": "a", "operation": ["update"]}'},
        400,
        "invalid_parameter",
    ),
    "update of nothing": ({"query": "?operation=update"}, 400, "invalid_parameter"),
    "version negative": ({"query": "?version=-1"}, 400, "invalid_parameter"),
    "version not whole": ({"query": "?version=1.5"}, 400, "invalid_parameter"),
    "version with a point": ({"json": '{"text": "", "version": 1.0}'}, 400, "invalid_parameter"),
    "version a bool": ({"json": '{"text": "", "version": true}'}, 400, "invalid_parameter"),
    "version a string": ({"json": '{"text": "", "version": "1"}'}, 400, "invalid_parameter"),
    "version too large": ({"query": f"?version={2**31}"}, 400, "invalid_parameter"),
    "version without end": ({"query": "?version=" + "9" * 5_000}, 400, "invalid_parameter"),
    "version in other digits": ({"query": "?version=%D9%A1"}, 400, "invalid_parameter"),
    "generated neither 1 nor 0": ({"query": "?generated=true"}, 400, "invalid_parameter"),
    "generated not a bool": ({"json": '{"text": "", "generated": 1}'}, 400, "invalid_parameter"),
    "attached stream id empty": ({"query": "?attached_stream_ids="}, 400, "invalid_parameter"),
    "attached stream id too long": (
        {"query": "?attached_stream_ids=" + "s" * 257},
        400,
        "invalid_parameter",
    ),
    "attached stream ids not strings": (
        {"json": '{"text": "", "attached_stream_ids": [1]}'},
        400,
        "invalid_parameter",
    ),
    "attached stream ids too many": (
        {"json": json.dumps({"text": "", "attached_stream_ids": ["s" * 256] * 60})},
        413,
        "header_too_large",
    ),
    "key empty": ({"headers": [("Idempotency-Key", "")]}, 400, "invalid_parameter"),
    "key of quotes": ({"headers": [("Idempotency-Key", '""')]}, 400, "invalid_parameter"),
    "key too long": ({"headers": [("Idempotency-Key", "k" * 256)]}, 400, "invalid_parameter"),
    "key not ASCII": (
        {"headers": [("Idempotency-Key", "ü".encode())]},
        400,
        "invalid_parameter",
    ),
    "key of two words": ({"headers": [("Idempotency-Key", "a b")]}, 400, "invalid_parameter"),
    "key quoted by half": ({"headers": [("Idempotency-Key", '"a')]}, 400, "invalid_parameter"),
    "two keys": ({"headers": [("Idempotency-Key", "k")] * 2}, 400, "invalid_parameter"),
    "complete neither ?0 nor ?1": (
        {"headers": [("Upload-Complete", "1")]},
        400,
        "invalid_parameter",
    ),
    "complete empty": ({"headers": [("Upload-Complete", "")]}, 400, "invalid_parameter"),
    "complete twice": ({"headers": [("Upload-Complete", "?0")] * 2}, 400, "invalid_parameter"),
    "length negative": (
        {"headers": [("Upload-Complete", "?0"), ("Upload-Length", "-1")]},
        400,
        "invalid_parameter",
    ),
    "length not a number": (
        {"headers": [("Upload-Complete", "?0"), ("Upload-Length", "1e3")]},
        400,
        "invalid_parameter",
    ),
    "length of too many digits": (
        {"headers": [("Upload-Complete", "?0"), ("Upload-Length", "1" * 16)]},
        400,
        "invalid_parameter",
    ),
    "length over the limit": (
        {"headers": [("Upload-Complete", "?0"), ("Upload-Length", str(2**30 + 1))]},
        413,
        "body_too_large",
    ),
    "length of another body": (
        {"headers": [("Upload-Complete", "?1"), ("Upload-Length", "5")]},
        400,
        "length_mismatch",
    ),
    "an expectation unknown": ({"headers": [("Expect", "a-miracle")]}, 417, "expectation_failed"),
    "two expectations": (
        {"headers": [("Expect", "100-continue")] * 2},
        417,
        "expectation_failed",
    ),
    "a line that is not JSON": ({"lines": "{"}, 400, "invalid_line"),
    "a line that is a number": ({"lines": "1"}, 400, "invalid_line"),
    "a line that is an array": ({"lines": '["text"]'}, 400, "invalid_line"),
    "a line nested beyond reason": ({"lines": "[" * 20_000}, 400, "invalid_line"),
    "a line without a text": ({"lines": "{}"}, 400, "invalid_line"),
    "a line with an unknown member": (
        {"lines": '{"text": "a", "topic": "b"}'},
        400,
        "invalid_line",
    ),
    "a line with two members": ({"lines": '{"text": "a", "close": {}}'}, 400, "invalid_line"),
    "a line with a member twice": ({"lines": '{"text": "a", "text": "b"}'}, 400, "invalid_line"),
    "a line whose text is no string": ({"lines": '{"text": 1}'}, 400, "invalid_line"),
    "a line not UTF-8": ({"lines": b'"\xff"'}, 400, "invalid_text"),
    "a line with a lone surrogate": ({"lines": '"\\ud800"'}, 400, "invalid_text"),
    "a line too long": ({"lines": json.dumps("x" * 65_536)}, 413, "body_too_large"),
    "a line after the last": ({"lines": '{"close": {}}\n"text"'}, 400, "invalid_line"),
    "a last line of another form": ({"lines": '{"close": true}'}, 400, "invalid_line"),
    "a last line with an unknown member": ({"lines": '{"close": {"a": "b"}}'}, 400, "invalid_line"),
    "attributes of the last line not strings": (
        {"lines": '{"close": {"attributes": {"a": 1}}}'},
        400,
        "invalid_line",
    ),
    "name of an attribute of the last line too long": (
        {"lines": json.dumps({"close": {"attributes": {"n" * 257: ""}}})},
        400,
        "invalid_line",
    ),
    "attributes of the last line too large": (
        {"lines": json.dumps({"close": {"attributes": {"a": "x" * 14_000}}})},
        413,
        "header_too_large",
    ),
    "whole text over the limit": ({"content": b"x" * (1024 * 1024 + 1)}, 413, "body_too_large"),
    "not JSON": ({"json": "{"}, 400, "invalid_parameter"),
    "nested beyond reason": ({"json": "[" * 1000}, 400, "invalid_parameter"),
    "not an object": ({"json": '["text"]'}, 400, "invalid_parameter"),
    "no text": ({"json": "{}"}, 400, "invalid_parameter"),
    "text not a string": ({"json": '{"text": 1}'}, 400, "invalid_parameter"),
    "a number without end": ({"json": '{"text": ' + "1" * 5_000}, 400, "invalid_parameter"),
    "lone surrogate": ({"json": '{"text": "\\ud800"}'}, 400, "invalid_text"),
    "lone surrogate in an attribute": (
        {"json": '{"text": "", "attributes": {"a": "\\ud800"}}'},
        400,
        "invalid_parameter",
    ),
    "unknown member": ({"json": '{"text": "", "txt": ""}'}, 400, "invalid_parameter"),
    "member twice": ({"json": '{"text": "", "text": "x"}'}, 400, "invalid_parameter"),
    "topic not a string": ({"json": '{"text": "", "topic": 1}'}, 400, "invalid_parameter"),
    "to not identities": ({"json": '{"text": "", "to": [1]}'}, 400, "invalid_parameter"),
    "attributes not strings": (
        {"json": '{"text": "", "attributes": {"a": 1}}'},
        400,
        "invalid_parameter",
    ),
    "option in both places": (
        {"json": '{"text": "", "topic": "a"}', "query": "?topic=a"},
        400,
        "invalid_parameter",
    ),
    "room too long": ({"room": "r" * 257}, 400, "invalid_parameter"),
    "room with NUL": ({"room": "a%00b"}, 400, "invalid_parameter"),
    "room not UTF-8": ({"room": "%ff"}, 400, "invalid_parameter"),
    "a dot segment": ({"room": "%2e%2e"}, 400, "invalid_parameter"),
}


@pytest.mark.parametrize("case", BAD, ids=list(BAD))
async def test_bad_input_gets_a_clear_problem_and_nothing_is_sent(
    serve_memory: Serve, room: str, case: str
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        await _refuses(gateway, room, case)
        await gateway.post(room, "dave", "the next one")

        assert (await _text(bob))["text"] == "the next one"


async def test_nothing_of_any_bad_input_reaches_a_real_room(
    serve_livekit: Serve, room: str
) -> None:
    async with serve_livekit() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        for case in BAD:
            await _refuses(gateway, room, case)
        await gateway.post(room, "dave", "the next one")

        assert (await _text(bob))["text"] == "the next one"


async def _refuses(gateway: RunningGateway, room: str, case: str) -> None:
    request, status, code = BAD[case]
    body = next((name for name in TYPES if name in request), "content")
    headers = [*gateway.bearer("carol", room).items(), *request.get("headers", ())]
    if content_type := request.get("type", TYPES[body]):
        headers.append(("Content-Type", content_type))
    answer = await gateway.client.post(
        f"/rooms/{request.get('room', room)}/text{request.get('query', '')}",
        content=request.get(body, b"text"),
        headers=headers,
    )

    assert (answer.status_code, answer.json()["code"]) == (status, code), case
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["detail"]


BAD_TAILS: dict[str, tuple[bytes, int, str]] = {
    "not JSON": (b"{\n", 400, "invalid_line"),
    "not JSON, at the end": (b"{", 400, "invalid_line"),
    "no text": (b"1\n", 400, "invalid_line"),
    "not UTF-8": (b'"\xff"\n', 400, "invalid_text"),
    "lone surrogate": (b'"\\ud800"\n', 400, "invalid_text"),
    "too long": (b'"' + b"x" * 65_536, 413, "body_too_large"),
    "after the last": (b'{"close": {}}\n"more"\n', 400, "invalid_line"),
    "wrong attributes": (b'{"close": {"attributes": {"a": 1}}}\n', 400, "invalid_line"),
    "attributes too large": (
        json.dumps({"close": {"attributes": {"a": "x" * 14_000}}}).encode(),
        413,
        "header_too_large",
    ),
}
"""What is wrong with a line after good ones."""


@pytest.mark.parametrize("case", BAD_TAILS, ids=list(BAD_TAILS))
async def test_a_line_that_is_wrong_after_good_ones_ends_the_text_as_incomplete(
    serve: Serve, room: str, case: str
) -> None:
    tail, status, code = BAD_TAILS[case]
    async with (
        serve() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol", content_type="application/x-ndjson") as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b'"good "\n')
        assert (await bob.until("stream.chunk")).data["text"] == "good "
        upload.send(tail)
        upload.finish()
        closed = await bob.until("stream.closed")
        answer = await upload.answer()

    assert (answer[0], answer[1]["code"]) == (status, code)
    assert (closed.data["complete"], closed.data["reason"]) == (False, code)
    assert (closed.data["size"], closed.data["attributes"]) == (5, {})


@pytest.mark.parametrize(
    ("tail", "status", "code"),
    [
        (b"not gzip", 400, "invalid_encoding"),
        (gzip.compress(b"more")[:-1], 400, "invalid_encoding"),
        (gzip.compress(b"\xff"), 400, "invalid_text"),
        (gzip.compress(b"x" * 50_000_000), 413, "body_too_large"),
    ],
    ids=["garbage", "cut short", "not UTF-8", "bomb"],
)
async def test_a_compressed_body_that_is_wrong_after_a_good_part_ends_the_text_as_incomplete(
    serve_memory: Serve, room: str, tail: bytes, status: int, code: str
) -> None:
    seen = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield gzip.compress(b"good ")
        await seen.wait()
        yield tail

    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        headers = {**gateway.bearer("carol", room), "Content-Type": "text/plain", **dict(GZIP)}
        posting = asyncio.create_task(
            gateway.client.post(f"/rooms/{room}/text", content=body(), headers=headers)
        )
        assert (await bob.until("stream.chunk")).data["text"] == "good "
        seen.set()
        closed = await bob.until("stream.closed")
        answer = await posting

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (closed.data["complete"], closed.data["reason"]) == (False, code)
    # A body that is made to expand is given up at a hundred times its size.
    assert closed.data["size"] <= 5 + 100 * (len(tail) + 25)


TAKEN = "Send 'Content-Type: text/plain', 'application/json' or 'application/x-ndjson'"

REFUSED_HEADERS: dict[str, tuple[dict[str, str], str]] = {
    "no type": ({}, f"There is no Content-Type. {TAKEN}."),
    "a form, as curl -d sends": (
        {"Content-Type": "application/x-www-form-urlencoded"},
        f"'application/x-www-form-urlencoded' is not taken. {TAKEN}"
        " (curl -d sends a form unless told: -H 'Content-Type: text/plain').",
    ),
    "a type too long to repeat": (
        {"Content-Type": "x" * 65},
        f"'{'x' * 64}' is not taken. {TAKEN}.",
    ),
    "tus 1.0": (
        {"Tus-Resumable": "1.0.0"},
        "This is tus 1.0; resumable uploads here are the IETF draft: tus-js-client with protocol"
        " 'ietf-draft-05'.",
    ),
    "a coding other than gzip": (
        {"Content-Type": "text/plain", "Content-Encoding": "br"},
        "Content-Encoding 'br' is not supported; use gzip or none.",
    ),
    "an expectation unknown": (
        {"Content-Type": "text/plain", "Expect": "x"},
        "Expect 'x' is not supported; only 100-continue is.",
    ),
    "gzip that expands too much": (
        {"Content-Type": "text/plain", "Content-Encoding": "gzip"},
        "The compressed body expands to more than 1 MiB and more than 100 times its size; send it"
        " without compression.",
    ),
}


@pytest.mark.parametrize(("headers", "detail"), REFUSED_HEADERS.values(), ids=REFUSED_HEADERS)
async def test_a_refusal_names_what_came(
    headers: dict[str, str], detail: str, serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.post(
            f"/rooms/{room}/text",
            content=gzip.compress(b"x" * 2_000_000),
            headers={**gateway.bearer("carol", room), **headers},
        )

    assert answer.json()["detail"] == detail


async def test_a_room_may_contain_an_encoded_slash(serve: Serve, room: str) -> None:
    name = f"{room}/a b"
    async with serve() as gateway:
        path = f"/rooms/{room}%2Fa%20b/text"
        answer = await gateway.client.post(
            path,
            content="hi",
            headers={**gateway.bearer("carol", name), "Content-Type": "text/plain"},
        )

    assert answer.status_code == 200
