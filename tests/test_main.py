"""`python -m gateway` as a process: its start, its end, its tokens."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import jwt
import pytest

from gateway import __version__
from tests.running_gateway import DEADLINE
from tools.livekit_server import LiveKitServer

KEYS = {"LIVEKIT_API_KEY": "devkey", "LIVEKIT_API_SECRET": "secret"}

START = 20.0
"""Seconds for a start on a busy machine."""


def _environ(**settings: str) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GATEWAY_", "LIVEKIT_"))
    }
    return {**inherited, **settings}


def _livekit(server: LiveKitServer) -> dict[str, str]:
    return {
        "LIVEKIT_URL": server.url,
        "LIVEKIT_API_KEY": server.api_key,
        "LIVEKIT_API_SECRET": server.api_secret,
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


async def _run(*arguments: str, **settings: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        *arguments,
        env=_environ(**settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(START):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def _serving(**settings: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        env=_environ(GATEWAY_PORT=str(port), **settings),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START):
            while f"port {port}" not in (line := (await process.stderr.readline()).decode()):
                assert line, "the gateway ended before it listened"
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _token(server: LiveKitServer, room: str, identity: str) -> str:
    status, out, _ = await _run("token", "--room", room, "--identity", identity, **_livekit(server))
    assert status == 0
    return out.strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_open_streams_properly_and_then_the_process(
    livekit: LiveKitServer, room: str, number: signal.Signals
) -> None:
    token = await _token(livekit, room, "bob")
    headers = {"Authorization": f"Bearer {token}"}
    async with _serving(**_livekit(livekit)) as (process, url), httpx.AsyncClient() as client:
        path = f"{url}/rooms/{room}/topics/lk.chat/events"
        async with client.stream("GET", path, headers=headers) as response:
            body = ""
            async for piece in response.aiter_text():
                body += piece
                if "gateway.opened" in body and process.returncode is None:
                    process.send_signal(number)
            # httpx raises where a chunked body is not finished.
        async with asyncio.timeout(DEADLINE):
            status = await process.wait()

    assert status == 0
    assert body.endswith(
        'event: gateway.closing\ndata: {"type":"gateway.closing","reason":"drain","reconnect":true}\n\n'
    )


async def test_an_upload_in_progress_does_not_hold_up_the_end(
    livekit: LiveKitServer, room: str
) -> None:
    token = await _token(livekit, room, "carol")
    async with _serving(**_livekit(livekit)) as (process, url):
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST /rooms/{room}/text HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
            f"Authorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
            "4\r\nhalf\r\n".encode()
        )
        async with httpx.AsyncClient() as client:
            headers = {"Authorization": f"Bearer {token}"}
            path = f"{url}/rooms/{room}/topics/lk.chat/events"
            async with client.stream("GET", path, headers=headers) as response:
                body = ""
                async for piece in response.aiter_text():
                    body += piece
                    if "half" in body and process.returncode is None:
                        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            status = await process.wait()
            answer = (await reader.read()).decode()
        writer.close()

    assert status == 0
    assert '"complete":false,"reason":"drain"' in body
    assert answer.startswith("HTTP/1.1 503 ")
    assert '"code": "draining"' in answer


async def test_who_sends_no_more_and_reads_late_reads_all_the_same(livekit: LiveKitServer) -> None:
    """The last answer begins when the connection is closing already, behind more than the kernel takes."""
    async with (
        _serving(**_livekit(livekit)) as (_, url),
        httpx.AsyncClient(base_url=url) as other,
    ):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(DEADLINE)
            client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
            for path in ("/openapi.yaml", "/openapi.yaml", "/livez"):
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                # Once it has answered another, it has read this one.
                assert (await other.get("/livez")).status_code == 200
            client.shutdown(socket.SHUT_WR)
            assert (await other.get("/livez")).status_code == 200
            answers = b""
            while data := await asyncio.to_thread(client.recv, 65536):
                answers += data

    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert answers.endswith(b"\r\n\r\nok\n")


async def test_missing_settings_end_the_start_with_a_line_each() -> None:
    status, out, err = await _run()

    assert status == 2
    assert out == ""
    assert [line.split(" ")[0] for line in err.splitlines()] == [
        "LIVEKIT_URL",
        "LIVEKIT_API_KEY",
        "LIVEKIT_API_SECRET",
    ]


async def test_a_wrong_secret_ends_the_start_with_a_line(livekit: LiveKitServer) -> None:
    status, _, err = await _run(
        **{**_livekit(livekit), "LIVEKIT_API_SECRET": "wrong"}, GATEWAY_PORT="0"
    )

    assert status == 1
    assert err.splitlines()[-1].startswith("LIVEKIT_API_KEY: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("setting", ["GATEWAY_PORT", "GATEWAY_METRICS_PORT"])
async def test_a_port_that_is_taken_ends_the_start_with_a_line(setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"GATEWAY_PORT": "0", setting: port}
        status, _, err = await _run(**KEYS, LIVEKIT_URL="ws://127.0.0.1:1", **ports)

    assert status == 1
    assert f" {setting} {port}: " in err
    assert len(err.splitlines()) == 1


async def test_metrics_have_a_port_of_their_own_until_the_end(
    livekit: LiveKitServer, room: str
) -> None:
    token = await _token(livekit, room, "bob")
    port = _free_port()
    async with (
        _serving(**_livekit(livekit), GATEWAY_METRICS_PORT=str(port)) as (process, url),
        httpx.AsyncClient(timeout=DEADLINE) as client,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE) as operator,
    ):
        path = f"{url}/rooms/{room}/topics/lk.chat/events"
        async with client.stream("GET", path, headers={"Authorization": f"Bearer {token}"}) as bob:
            pieces = bob.aiter_text()
            body = await anext(pieces)
            while "gateway.opened" not in body:
                body += await anext(pieces)
            metrics = await operator.get("/metrics")
            head = await operator.head("/metrics")
            others = [await operator.get("/livez"), await client.get(f"{url}/metrics")]
            process.send_signal(signal.SIGTERM)
            body += "".join([piece async for piece in pieces])
        async with asyncio.timeout(DEADLINE):
            status = await process.wait()

    assert (metrics.status_code, head.status_code) == (200, 200)
    assert "livekit_gateway_event_streams 1.0\n" in metrics.text
    assert [(answer.status_code, answer.json()["code"]) for answer in others] == [
        (404, "not_found")
    ] * 2
    assert status == 0
    assert "gateway.closing" in body


async def test_without_livekit_it_serves_and_says_so(room: str) -> None:
    settings = {
        "LIVEKIT_URL": "ws://127.0.0.1:1",
        "LIVEKIT_API_KEY": "devkey",
        "LIVEKIT_API_SECRET": "secret",
    }
    _, token, _ = await _run("token", "--room", room, "--identity", "bob", **settings)
    async with _serving(**settings) as (_, url), httpx.AsyncClient(timeout=DEADLINE) as client:
        headers = {"Authorization": f"Bearer {token.strip()}", "Content-Type": "text/plain"}
        ready = await client.get(f"{url}/readyz")
        answer = await client.post(f"{url}/rooms/{room}/text", content="hi", headers=headers)

    assert ready.status_code == 200
    assert (answer.status_code, answer.json()["code"]) == (503, "livekit_unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_what_is_no_livekit_server_is_told_and_the_gateway_gets_ready() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        _serving(LIVEKIT_URL=f"ws://127.0.0.1:{port}", **KEYS) as (process, url),
        httpx.AsyncClient(timeout=DEADLINE) as client,
    ):
        assert process.stderr is not None
        async with asyncio.timeout(START):
            line = (await process.stderr.readline()).decode()
            ready = await client.get(f"{url}/readyz")

    assert "is not a LiveKit server" in line
    assert ready.status_code == 200


async def test_a_token_is_printed_and_nothing_else() -> None:
    status, out, err = await _run(
        *("token", "--room", "demo", "--identity", "bob", "--hidden", "--ttl", "30m"),
        **KEYS,
    )
    claims = jwt.decode(out.strip(), "secret", algorithms=["HS256"])

    assert (status, err, out.count("\n")) == (0, "", 1)
    assert (claims["sub"], claims["iss"]) == ("bob", "devkey")
    assert claims["video"]["room"] == "demo"
    assert claims["video"]["hidden"] is True
    assert 0 <= claims["exp"] - claims["nbf"] - 1800 <= 1


@pytest.mark.parametrize("ttl", ["0", "-1", "6x", "6h30m", "1e9", "999999999d"])
async def test_a_time_to_live_that_is_not_one_is_refused(ttl: str) -> None:
    status, out, err = await _run("token", "--room", "r", "--identity", "i", f"--ttl={ttl}")

    assert status == 2
    assert out == ""
    assert "a time to live is like" in err or "days at most" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("identity", ["", "i" * 257])
async def test_a_token_that_the_gateway_would_refuse_is_not_made(identity: str) -> None:
    status, out, err = await _run("token", "--room", "r", "--identity", identity, **KEYS)

    assert (status, out) == (2, "")
    assert "a name has 1 to 256 bytes" in err


async def test_the_version_is_told() -> None:
    status, out, _ = await _run("--version")

    assert (status, out.strip()) == (0, __version__)
