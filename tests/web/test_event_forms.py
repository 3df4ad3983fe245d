"""What of a room an event stream shows, and how it is written: several topics, messages, JSON lines."""

import asyncio
import json
from typing import Any

import pytest

from tests.conftest import Serve
from tests.running_gateway import DEADLINE, EventStream, RunningGateway

LINES = "application/x-ndjson"


# Several topics


async def test_several_topics_come_on_one_connection_in_order(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob", ("lk.chat", "news")) as bob:
        await bob.until("gateway.opened")
        sent = (("one", "lk.chat"), ("two", "news"), ("three", "lk.chat"))
        for text, topic in sent:
            await gateway.post(room, "carol", text, topic=topic)
        events = await bob.take(9)

    # Of different streams they may be interleaved.
    assert [event.name for event in events].count("stream.closed") == 3
    chunks = [event.data for event in events if event.name == "stream.chunk"]
    assert sorted((chunk["text"], chunk["topic"]) for chunk in chunks) == sorted(sent)
    opened = [event.data["topic"] for event in events if event.name == "stream.opened"]
    assert opened == ["lk.chat", "news", "lk.chat"]
    numbers = [_number(event.id) for event in events]
    assert numbers == sorted(set(numbers))


async def test_one_cursor_resumes_several_topics(serve: Serve, room: str) -> None:
    topics = ("lk.chat", "news")
    async with serve() as gateway:
        async with gateway.events(room, "bob", topics) as bob:
            await bob.until("gateway.opened")
            await gateway.post(room, "carol", "one", topic="news")
            await bob.text()
            last = bob.last_event_id
        await gateway.post(room, "carol", "two", topic="lk.chat")
        await gateway.post(room, "carol", "three", topic="news")
        async with gateway.events(room, "bob", topics, last_event_id=last) as bob:
            await bob.until("gateway.opened")
            texts = [await bob.text() for _ in range(2)]

    assert [(text.header["topic"], text.text) for text in texts] == [
        ("lk.chat", "two"),
        ("news", "three"),
    ]


async def test_a_topic_more_than_before_is_a_gap(serve: Serve, room: str) -> None:
    async with serve() as gateway:
        async with gateway.events(room, "bob", ("lk.chat",)) as bob:
            last = await bob.cursor()
        async with gateway.events(room, "bob", ("lk.chat", "news"), last_event_id=last) as bob:
            gap = await bob.until("gateway.gap")

    assert (gap.data["reason"], gap.data["from"]) == ("unknown", last)


async def test_participants_may_be_all_that_is_read(serve: Serve, room: str) -> None:
    async with serve() as gateway, gateway.events(room, "bob", (), participants="1") as bob:
        await bob.until("gateway.opened")
        await gateway.post(room, "carol", "not shown")
        await gateway.client.delete(
            f"/rooms/{room}/participants/carol", headers=gateway.bearer("carol", room)
        )
        events = await bob.take(2)

    assert [(event.name, event.data["participant_identity"]) for event in events] == [
        ("participant.connected", "carol"),
        ("participant.disconnected", "carol"),
    ]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "invalid_parameter"),
        ("?participants=0", 400, "invalid_parameter"),
        ("?participants=yes", 400, "invalid_parameter"),
        ("?topic=", 400, "invalid_parameter"),
        ("?topic=lk.chat&view=texts", 400, "invalid_parameter"),
        ("?topic=lk.chat&view=streams&view=messages", 400, "invalid_parameter"),
        ("?topic=lk.chat&replay=some", 400, "invalid_parameter"),
        ("?topic=lk.chat&topic=lk.agent.session", 403, "topic_reserved"),
    ],
)
async def test_what_is_wrong_with_a_request_is_said(
    serve_memory: Serve, room: str, query: str, status: int, code: str
) -> None:
    async with serve_memory() as gateway:
        for method in ("GET", "HEAD"):
            answer = await gateway.client.request(
                method, f"/rooms/{room}/events{query}", headers=gateway.bearer("bob", room)
            )
            assert answer.status_code == status
            if method == "GET":
                assert answer.json()["code"] == code


# Messages


async def test_the_exact_text_of_a_message(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob", view="messages") as bob:
        await bob.raw(8)
        lines = '"say \\""\n"hi\\"\\nü\u2028"'
        query = {"stream_id": "s", "attr.a": "b"}
        answer = await gateway.post(room, "carol", lines, content_type=LINES, **query)
        sent = answer.json()
        epoch = (await gateway.post(room, "bob", "own")).json()["position"].partition("-")[0]
        message = await bob.raw(4)

    assert message.startswith(f"id: {epoch}-")
    assert message.partition("\n")[2] == (
        "event: message\n"
        'data: {"type":"message","stream_id":"s","topic":"lk.chat","participant_identity":"carol",'
        f'"timestamp":{sent["timestamp"]},"size":14,"mime_type":"text/plain","attributes":{{"a":"b"}},'
        '"destination_identities":null,"reply_to_stream_id":null,"attached_stream_ids":[],'
        '"generated":false,"operation":"create","version":0,"local":false,"complete":true,'
        '"reason":null,"chunks":2,"text":"say \\"hi\\"\\nü\u2028"}\n'
        "\n"
    )


@pytest.mark.parametrize("replay", ["none", "open", "all"])
async def test_a_message_is_whole_for_who_comes_in_its_middle(
    serve: Serve, room: str, replay: str
) -> None:
    async with serve() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        await gateway.post(room, "carol", "before")
        async with gateway.upload(room, "carol") as upload:
            await bob.text()
            upload.send(b"one ")
            await bob.until("stream.chunk")
            async with gateway.events(room, "bob", view="messages", replay=replay) as late:
                begun = await late.take(2 if replay == "all" else 1)
                armed = await late.cursor()
                upload.send(b"two")
                upload.finish()
                message = await late.next()

    assert [event.data.get("text") for event in begun[1:]] == ["before"] * (replay == "all")
    assert [event.id for event in begun] == [None] * len(begun)
    assert (message.name, message.data["text"]) == ("message", "one two")
    assert (message.data["complete"], message.data["chunks"], message.data["size"]) == (True, 2, 7)
    assert _number(message.id) > _number(armed)


async def test_who_comes_back_in_the_middle_of_a_message_is_shown_all_of_it(
    serve: Serve, room: str
) -> None:
    """Its cursor has moved past the beginning meanwhile."""
    async with (
        serve(heartbeat=0.1) as gateway,
        gateway.events(room, "bob") as watch,
        gateway.upload(room, "carol") as upload,
    ):
        async with gateway.events(room, "bob", view="messages") as bob:
            await bob.until("gateway.opened")
            upload.send(b"one ")
            begun = await watch.until("stream.chunk")
            while _number(bob.last_event_id) < _number(begun.id):
                await bob.cursor()
            last = bob.last_event_id
        upload.send(b"two")
        upload.finish()
        await watch.until("stream.closed")
        async with gateway.events(room, "bob", view="messages", last_event_id=last) as bob:
            await bob.until("gateway.opened")
            message = await bob.next()

    assert (message.name, message.data["text"]) == ("message", "one two")


async def test_a_gap_is_in_the_place_of_a_message_whose_beginning_was_dropped(
    serve: Serve, room: str
) -> None:
    async with (
        serve(log_events=4) as gateway,
        gateway.events(room, "bob") as watch,
        gateway.events(room, "bob", view="messages") as bob,
    ):
        await bob.until("gateway.opened")
        async with gateway.upload(room, "carol") as upload:
            for number in range(6):
                upload.send(f"{number} ".encode())
                chunk = await watch.until("stream.chunk")
                assert chunk.data["index"] == number
            upload.finish()
        closed = await watch.until("stream.closed")
        gap = await bob.next()
        await gateway.post(room, "carol", "small")
        message = await bob.next()

    epoch, end = str(closed.id).split("-")
    assert gap.data == {
        "type": "gateway.gap",
        "reason": "evicted",
        "from": f"{epoch}-{int(end) - 8}",
        "to": closed.id,
        "presence": None,
    }
    assert gap.id == closed.id
    assert (message.name, message.data["text"]) == ("message", "small")


async def test_a_message_that_broke_off_says_so(serve: Serve, room: str) -> None:
    async with (
        serve() as gateway,
        gateway.events(room, "bob", view="messages") as bob,
        gateway.events(room, "bob") as watch,
    ):
        await bob.until("gateway.opened")
        async with gateway.upload(room, "carol") as upload:
            upload.send(b"half")
            await watch.until("stream.chunk")
            upload.break_off()
        message = await bob.next()

    assert (message.data["complete"], message.data["reason"]) == (False, "client_disconnected")
    assert (message.data["text"], message.data["chunks"]) == ("half", 1)


# JSON lines


async def test_the_exact_lines(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        sent = (await gateway.post(room, "bob", 'say "hi"\nü\u2028', to="carol")).json()
        epoch = sent["position"].partition("-")[0]
        reading = {"accept": LINES, "last_event_id": sent["position"]}
        async with gateway.events(room, "bob", **reading) as bob:
            streams = await bob.raw(5)
            headers = dict(bob.response.headers)
        async with gateway.events(room, "bob", view="messages", **reading) as bob:
            messages = await bob.raw(3)
        async with gateway.events(room, "bob", view="messages", replay="all", accept=LINES) as bob:
            replayed = await bob.raw(3)

    opened = (
        '{"type":"gateway.opened","presence":"participant","identity":"bob",'
        f'"position":"{epoch}-3"}}\n'
    )
    of_stream = f'"stream_id":"{sent["stream_id"]}","topic":"lk.chat","participant_identity":"bob",'
    header = f'{of_stream}"timestamp":{sent["timestamp"]},"size":14,"mime_type":"text/plain",'
    rest = (
        '"attributes":{},"destination_identities":["carol"],"reply_to_stream_id":null,'
        '"attached_stream_ids":[],"generated":false,"operation":"create","version":0,"local":true'
    )
    end = '"complete":true,"reason":null'
    text = '"text":"say \\"hi\\"\\nü\u2028"}\n'
    message = f'"type":"message",{header}{rest},{end},"chunks":1,{text}'
    begun = f'{opened}{{"id":"{epoch}-0","type":"gateway.position"}}\n'
    assert streams == (
        f'{begun}{{"id":"{epoch}-1","type":"stream.opened",{header}{rest}}}\n'
        f'{{"id":"{epoch}-2","type":"stream.chunk",{of_stream}"index":0,{text}'
        f'{{"id":"{epoch}-3","type":"stream.closed",{of_stream}{end},"attributes":{{}},'
        '"size":14,"chunks":1}\n'
    )
    assert messages == f'{begun}{{"id":"{epoch}-3",{message}'
    assert replayed == f'{opened}{{{message}{{"id":"{epoch}-3","type":"gateway.position"}}\n'
    assert headers["content-type"] == LINES
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"


async def test_lines_go_on_after_the_last_id(serve: Serve, room: str) -> None:
    async with serve(heartbeat=0.1) as gateway:
        async with gateway.events(room, "bob", accept=LINES) as bob:
            await _line(bob, "gateway.position")
            await gateway.post(room, "carol", "one")
            closed = await _line(bob, "stream.closed")
            beat = await _line(bob, "gateway.position")
        await gateway.post(room, "carol", "two")
        for told in ({"last_event_id": beat["id"]}, {"accept": LINES}):
            query = {"accept": LINES, **told}
            headers = query if "last_event_id" in query else query | {"last_event_id": closed["id"]}
            async with gateway.events(room, "bob", **headers) as bob:
                lines = [await bob.line() for _ in range(5)]
            assert [line["type"] for line in lines] == [
                "gateway.opened", "gateway.position", "stream.opened", "stream.chunk", "stream.closed",
            ]  # fmt: skip
            assert lines[3]["text"] == "two"

    assert _number(beat["id"]) >= _number(closed["id"])


async def test_lines_tell_a_gap_and_the_end(serve_memory: Serve, room: str) -> None:
    foreign = "0123456789abcdef-7"
    async with serve_memory() as gateway:
        await gateway.post(room, "bob", "kept")
        async with gateway.events(room, "bob", accept=LINES, last_event_id=foreign) as bob:
            lines = [await bob.line() for _ in range(3)]
            gateway.server.should_exit = True
            closing = await _line(bob, "gateway.closing")
            with pytest.raises(StopAsyncIteration):
                await bob.line()

    head = lines[0]["position"]
    assert lines[1:] == [
        {
            "id": head,
            "type": "gateway.gap",
            "reason": "restarted",
            "from": foreign,
            "to": head,
            "presence": None,
        },
        {"id": head, "type": "gateway.position"},
    ]
    assert closing == {"type": "gateway.closing", "reason": "drain", "reconnect": True}


async def test_a_program_that_reads_lines_is_told_a_failure_as_it_is(
    serve_memory: Serve, room: str
) -> None:
    """Coming back too: it is no EventSource, which any status but 200 would end for good."""
    async with serve_memory() as gateway:
        await gateway.hub.drain()
        answer = await gateway.client.get(
            f"/rooms/{room}/topics/lk.chat/events",
            headers=gateway.bearer("bob", room)
            | {"Accept": LINES, "Last-Event-ID": "0123456789abcdef-7"},
        )

    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert answer.headers["retry-after"]


# Which of the two


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        (None, "text/event-stream"),
        ("", "text/event-stream"),
        ("*/*", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream; charset=utf-8", "text/event-stream"),
        ("application/*", LINES),
        ("application/x-ndjson", LINES),
        ("Application/X-NDJSON", LINES),
        ("text/html, application/x-ndjson;q=0.1", LINES),
        ("application/x-ndjson, text/event-stream", "text/event-stream"),
        ("text/event-stream;q=0.5, application/x-ndjson;q=0.9", LINES),
        ("*/*;q=0.1, application/x-ndjson", LINES),
        ("*/*, text/event-stream;q=0", LINES),
        ("text/*;q=0.2, application/*;q=0.3", LINES),
        ("text/html", None),
        ("text/event-stream;q=0", None),
        ("text/event-stream;q=0.000, application/json", None),
        ("*/*;q=0", None),
        ("text/event-stream;q=2", None),
    ],
)
async def test_the_form_is_the_one_that_the_client_wants_most(
    serve_memory: Serve, room: str, accept: str | None, answered: str | None
) -> None:
    path = f"/rooms/{room}/topics/lk.chat/events"
    async with serve_memory() as gateway:
        del gateway.client.headers["accept"]
        headers = gateway.bearer("bob", room) | ({} if accept is None else {"Accept": accept})
        head = await gateway.client.head(path, headers=headers)
        assert not gateway.hub.connections
        async with gateway.client.stream("GET", path, headers=headers) as got:
            if answered is None:
                await got.aread()

    assert got.status_code == head.status_code == (200 if answered else 406)
    told = got.headers["content-type"].partition(";")[0]
    assert told == (answered or "application/problem+json")
    if answered is None:
        assert got.json()["code"] == "not_acceptable"
        assert head.headers["content-type"] == "application/problem+json"
        assert not gateway.hub.connections
    else:
        assert head.headers["content-type"] == got.headers["content-type"]


async def test_several_accept_headers_are_one(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        headers = [
            *gateway.bearer("bob", room).items(),
            ("Accept", "text/event-stream;q=0.1"),
            ("Accept", LINES),
        ]
        head = await gateway.client.head(f"/rooms/{room}/topics/lk.chat/events", headers=headers)

    assert head.headers["content-type"] == LINES


# The end


async def test_who_has_read_for_long_comes_back_and_misses_nothing(serve: Serve, room: str) -> None:
    async with serve(max_age=0.5) as gateway:
        texts: list[str] = []
        last, ends = "", 0
        sending = asyncio.create_task(_post_numbers(gateway, room, 12))
        async with asyncio.timeout(20):
            while ends < 2 or len(texts) < 12:
                async with gateway.events(
                    room, "bob", view="messages", last_event_id=last, replay="all"
                ) as bob:
                    await bob.until("gateway.opened")
                    while (event := await bob.next()).name == "message":
                        texts.append(event.data["text"])
                    await bob.ends()
                    last = bob.last_event_id
                ends += 1
                assert event.data == {
                    "type": "gateway.closing",
                    "reason": "max_age",
                    "reconnect": True,
                }
        await sending

    assert texts == [str(number) for number in range(12)]


async def test_a_client_of_http_1_0_gets_the_bare_body_and_its_end(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        sent = (await gateway.post(room, "bob", "kept")).json()
        path = f"/rooms/{room}/topics/lk.chat/events?view=messages&last_event_id={sent['position']}"
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        token = gateway.token("bob", room)
        writer.write(f"GET {path} HTTP/1.0\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            body = await reader.readuntil(b"event: message\n")
            gateway.server.should_exit = True
            body += await reader.read()
        writer.close()

    assert head.startswith("http/1.1 200 ")
    assert "transfer-encoding" not in head
    assert "content-length" not in head
    assert "connection: close" in head
    blocks = body.decode().split("\n\n")
    assert blocks.pop(0).startswith(": livekit gateway\nretry: ")
    assert [block.partition("data: ")[0] for block in blocks] == [
        "event: gateway.opened\n",
        f"id: {sent['position']}",
        f"id: {sent['position'].partition('-')[0]}-3\nevent: message\n",
        "event: gateway.closing\n",
        "",
    ]
    assert json.loads(blocks[2].partition("data: ")[2])["text"] == "kept"


async def _post_numbers(gateway: RunningGateway, room: str, count: int) -> None:
    for number in range(count):
        await gateway.post(room, "bob", str(number))


async def _line(events: EventStream, kind: str) -> dict[str, Any]:
    """The next one of that type; what comes before it is passed over."""
    while (line := await events.line())["type"] != kind:
        pass
    return line


def _number(position: str | None) -> int:
    return int(str(position).partition("-")[2] or -1)
