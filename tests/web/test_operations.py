"""Probes, the contract, the page, CORS, and what has no route."""

import asyncio
import json
import socket
from typing import Any

import pytest

from gateway.server import DEAD_AFTER, UNSENT_BYTES
from tests.conftest import Serve
from tests.running_gateway import DEADLINE, RunningGateway


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_answer(serve_memory: Serve, path: str) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.get(path)

    assert answer.status_code == 200


async def test_the_contract_is_served(serve_memory: Serve) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.get("/openapi.yaml")

    assert answer.status_code == 200
    assert answer.text.startswith("openapi: 3.1")


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css"])
async def test_the_page_is_served_and_can_be_turned_off(serve_memory: Serve, path: str) -> None:
    async with serve_memory() as gateway:
        on = await gateway.client.get(path)
    async with serve_memory(page=False) as gateway:
        off = await gateway.client.get(path)

    assert on.status_code == 200
    assert "script-src 'self'" in on.headers["content-security-policy"]
    assert off.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("GET", "/rooms/r/text/", 404, None),
        ("GET", "/rooms/r/text", 405, {"POST", "OPTIONS"}),
        ("POST", "/rooms/r/topics/t/events", 405, {"GET", "HEAD"}),
        ("DELETE", "/livez", 405, {"GET", "HEAD"}),
    ],
)
async def test_what_is_not_there_is_a_problem(
    serve_memory: Serve, method: str, path: str, status: int, allow: set[str] | None
) -> None:
    async with serve_memory() as gateway:
        answer = await gateway.client.request(method, path)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == ("not_found" if status == 404 else "method_not_allowed")
    if allow is not None:
        assert set(answer.headers["allow"].split(", ")) == allow


async def test_a_path_that_is_not_encoded_is_a_problem(serve_memory: Serve) -> None:
    status, body = await _raw(serve_memory, "GET /rooms/m\u00fcnchen HTTP/1.1\r\nHost: x\r\n\r\n")

    assert (status, body["code"]) == (400, "malformed_request")


@pytest.mark.parametrize("count", [1, 2])
async def test_who_sends_no_more_reads_what_it_has_asked_for(
    serve_memory: Serve, count: int
) -> None:
    """As `nc -N` does, and scripts that shut their side down."""
    async with serve_memory() as gateway:
        reader, writer = await _connected(gateway)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * count)
        writer.write_eof()
        async with asyncio.timeout(DEADLINE):
            answers = (await reader.read()).decode()
        writer.close()

    assert answers.count("HTTP/1.1 200 OK\r\n") == count


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_an_offer_to_upgrade_is_ignored_and_no_text_is_lost(
    serve_memory: Serve, room: str, protocol: str
) -> None:
    """As `curl --http2` and Java's client make it with every request."""
    async with serve_memory() as gateway:
        reader, writer = await _connected(gateway)
        for _ in range(2):
            writer.write(
                f"POST /rooms/{room}/text HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n"
                f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\n"
                "HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Type: text/plain\r\n"
                f"Authorization: Bearer {gateway.token('carol', room)}\r\n\r\n"
                "an important text".encode()
            )
            async with asyncio.timeout(DEADLINE):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
            assert head.startswith("HTTP/1.1 200 ")
            assert body["size"] == 17
        writer.close()


async def test_an_offer_to_upgrade_in_pieces_is_refused_and_not_answered_as_empty(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        reader, writer = await _connected(gateway)
        writer.write(f"POST /rooms/{room}/text HTTP/1.1\r\nConnection: Upgrade\r\n".encode())
        await writer.drain()
        # The server has the first piece once it has answered something that was sent after it.
        assert (await gateway.client.get("/livez")).status_code == 200
        writer.write(b"Upgrade: h2c\r\nContent-Length: 4\r\n\r\ntext")
        async with asyncio.timeout(DEADLINE):
            answer = (await reader.read()).decode()
        writer.close()

    assert answer.startswith("HTTP/1.1 400 ")
    assert "upgrade" in answer


async def test_trailers_are_not_headers(serve_memory: Serve, room: str) -> None:
    async with serve_memory() as gateway:
        reader, writer = await _connected(gateway)
        writer.write(
            f"POST /rooms/{room}/text HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
            "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nhi\r\n0\r\n"
            f"Authorization: Bearer {gateway.token('carol', room)}\r\n\r\n".encode()
        )
        async with asyncio.timeout(DEADLINE):
            answer = (await reader.read()).decode()
        writer.close()

    assert answer.startswith("HTTP/1.1 401 ")


async def _connected(
    gateway: RunningGateway,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to say on it what no client would."""
    host, port = gateway.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def _answered(gateway: RunningGateway, room: str, head: str, body: str) -> str:
    """All that comes back on a connection of its own, to its end."""
    reader, writer = await _connected(gateway)
    writer.write(
        f"POST /rooms/{room}/text HTTP/1.1\r\nHost: x\r\n{head}"
        f"Authorization: Bearer {gateway.token('carol', room)}\r\n\r\n{body}".encode()
    )
    async with asyncio.timeout(DEADLINE):
        answer = (await reader.read()).decode()
    writer.close()
    return answer


async def test_a_transfer_coding_other_than_chunked_is_refused(
    serve_memory: Serve, room: str
) -> None:
    head = "Content-Type: text/plain\r\nTransfer-Encoding: gzip, chunked\r\nConnection: close\r\n"
    async with serve_memory() as gateway:
        answer = await _answered(gateway, room, head, "2\r\nhi\r\n0\r\n\r\n")

    assert answer.startswith("HTTP/1.1 501 ")
    assert '"code": "not_supported"' in answer


async def test_what_is_wrong_with_the_rest_of_a_body_is_not_answered_once_more(
    serve_memory: Serve, room: str
) -> None:
    async with (
        serve_memory() as gateway,
        gateway.upload(room, "carol", content_type="image/png") as upload,
    ):
        upload.send(b"hi")
        status, _ = await upload.answer()
        upload.writer.write(b"no chunk at all\r\n")
        async with asyncio.timeout(DEADLINE):
            rest = await upload.reader.read()

    assert status == 415
    assert rest == b""


async def test_nobody_fills_the_log_with_what_is_not_http(
    serve_memory: Serve, room: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_memory() as gateway:
        answer = await _answered(gateway, room, "no header\r\n", "")

    assert answer.startswith("HTTP/1.1 400 ")
    assert not [each for each in caplog.records if "HTTP" in each.getMessage()]


async def test_what_is_wrong_with_a_later_request_is_not_the_answer_to_an_earlier(
    serve_memory: Serve, room: str
) -> None:
    """Its sender would send the text again."""
    head = "Content-Type: text/plain\r\nContent-Length: 5\r\n"
    second = "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with serve_memory() as gateway:
        answer = await _answered(gateway, room, head, f"first{second}")

    assert answer.startswith("HTTP/1.1 200 ")
    assert answer.count("HTTP/1.1 ") == 1


async def test_head_and_body_of_an_answer_are_one_packet_after_an_interim_answer_and_a_head_alone(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway:
        reader, writer = await _connected(gateway)
        async with asyncio.timeout(DEADLINE):
            writer.write(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            alone = await reader.read(10_000)
            writer.write(
                f"POST /rooms/{room}/text HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
                f"Authorization: Bearer {gateway.token('carol', room)}\r\n"
                "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode()
            )
            interim = await reader.read(10_000)
            writer.write(b"hi")
            answer = (await reader.read(10_000)).decode()
        writer.close()

    assert alone.startswith(b"HTTP/1.1 200 ")
    assert alone.endswith(b"\r\n\r\n")
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith("HTTP/1.1 200 ")
    assert json.loads(answer.partition("\r\n\r\n")[2])["size"] == 2


@pytest.mark.parametrize(
    ("tail", "refused"),
    [
        ("zz\r\n", (400, "malformed_request")),
        ("0\r\n" + "X: y\r\n" * 500_000, (431, "head_too_large")),
    ],
    ids=["bad chunk", "endless trailers"],
)
async def test_a_body_that_is_not_http_ends_the_connection_and_the_stream_incomplete(
    serve_memory: Serve, room: str, tail: str, refused: tuple[int, str]
) -> None:
    """And says why also to a client that has not read it yet when more comes from it."""
    async with (
        serve_memory() as gateway,
        gateway.events(room, "bob") as bob,
        gateway.upload(room, "carol") as upload,
    ):
        await bob.until("gateway.opened")
        upload.send(b"half")
        await bob.until("stream.chunk")
        upload.writer.write(tail.encode())
        async with asyncio.timeout(DEADLINE):
            await upload.writer.drain()
        closed = await bob.until("stream.closed")
        status, problem = await upload.answer()
        async with asyncio.timeout(DEADLINE):
            rest = await upload.reader.read()

    assert (status, problem["code"]) == refused
    assert rest == b""
    assert closed.data["complete"] is False


async def test_a_head_without_end_is_refused(serve_memory: Serve) -> None:
    lines = "".join(f"X-{number}: {'x' * 1000}\r\n" for number in range(3_000))
    status, body = await _raw(serve_memory, f"GET / HTTP/1.1\r\n{lines}")

    assert (status, body["code"]) == (431, "head_too_large")


@pytest.mark.parametrize(
    "parts",
    [
        # An app that answers after its request was refused.
        (b"POST /none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",),
        # What is wrong twice over.
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 60_000,
            b"b" * 10_000 + b"\r\nbad header\x00\r\n\r\n",
        ),
    ],
    ids=["answered late", "refused twice"],
)
async def test_what_is_refused_is_refused_once_and_fills_no_log(
    serve_memory: Serve, parts: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_memory() as gateway:
        reader, writer = await _connected(gateway)
        for part in parts:
            writer.write(part)
            await gateway.client.get("/livez")  # it has been read by then
        async with asyncio.timeout(DEADLINE):
            answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_what_is_behind_the_last_answer_is_not_carried_out(
    serve_memory: Serve, room: str
) -> None:
    """Its sender would not hear of it, and send it again."""
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        reader, writer = await _connected(gateway)
        texts = "".join(
            f"POST /rooms/{room}/text HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n"
            f"Authorization: Bearer {gateway.token('carol', room)}\r\n"
            f"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\n{text}"
            for text in ("first", "other")
        )
        writer.write(f"{texts}GET / HTTP/1.0\r\nHost: x\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            answer = await reader.read()
        writer.close()
        first = await bob.until("stream.chunk")
        await gateway.post(room, "carol", "later")
        second = await bob.until("stream.chunk")

    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert [first.data["text"], second.data["text"]] == ["first", "later"]


async def _raw(serve: Serve, request: str) -> tuple[int, dict[str, Any]]:
    async with serve() as gateway:
        reader, writer = await _connected(gateway)
        writer.write(request.encode())
        async with asyncio.timeout(DEADLINE):
            await writer.drain()  # and only then looks what is answered
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.partition("Content-Length: ")[2].partition("\r\n")[0])
            body = json.loads(await reader.readexactly(length))
        writer.close()
    assert "application/problem+json" in head
    return int(head.split(" ")[1]), body


async def test_pages_of_other_origins_may_call_only_if_listed(
    serve_memory: Serve, room: str
) -> None:
    origin = {"Origin": "https://app.example"}
    asking = {
        **origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with serve_memory(cors_origins=("https://app.example",)) as gateway:
        listed = await gateway.client.get(f"/rooms/{room}/topics/t/events", headers=origin)
        preflight = await gateway.client.options(f"/rooms/{room}/text", headers=asking)
    async with serve_memory() as gateway:
        unlisted = await gateway.client.get(f"/rooms/{room}/topics/t/events", headers=origin)
        refused = await gateway.client.options(f"/rooms/{room}/text", headers=asking)

    assert listed.status_code == 401
    assert listed.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in listed.headers
    assert preflight.status_code == 200
    assert "access-control-allow-origin" not in unlisted.headers
    assert (
        refused.status_code == 204
    )  # to whoever asks how large an upload may be; a page is told nothing
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has these options of a socket"
)
async def test_the_kernel_holds_little_for_a_client_and_gives_up_one_that_is_dead(
    serve_memory: Serve, room: str
) -> None:
    async with serve_memory() as gateway, gateway.events(room, "bob") as bob:
        await bob.until("gateway.opened")
        (connection,) = gateway.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        options = [
            accepted.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_NOTSENT_LOWAT, socket.TCP_USER_TIMEOUT)
        ]

    assert options == [UNSENT_BYTES, DEAD_AFTER * 1_000]
