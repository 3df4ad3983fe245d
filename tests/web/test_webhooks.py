"""LiveKit's webhooks: really sent by a server, and forged ones."""

import asyncio
import base64
import hashlib
import json
import time
from typing import Any

import httpx
import jwt
import pytest

from gateway import observer
from tests.conftest import Serve, serve_on
from tests.guests import guest
from tests.running_gateway import RunningGateway
from tools.livekit_server import LiveKitServer


def _signed(body: bytes, signed_with: str = "secret", **claims: Any) -> str:
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    payload = {"iss": "devkey", "exp": time.time() + 3600, "sha256": digest, **claims}
    return jwt.encode(payload, signed_with, algorithm="HS256")


async def _told(gateway: RunningGateway, body: bytes, token: str) -> httpx.Response:
    return await gateway.client.post(
        "/webhooks/livekit",
        content=body,
        headers={"Authorization": token, "Content-Type": "application/webhook+json"},
    )


async def test_livekit_s_word_that_a_room_was_created_is_acted_on_at_once(
    server: LiveKitServer, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "POLL_FIRST", 3600.0)
    async with serve_on(server) as gateway:
        server.webhook_urls.append(f"{gateway.url}/webhooks/livekit")
        await asyncio.to_thread(server.restart)
        async with gateway.admin_events(room) as events:
            await events.until("room.waiting")
            async with guest(gateway, room, "bob"):
                opened = await events.until("room.opened")
        await asyncio.to_thread(server.stop)

    assert opened.data == {"type": "room.opened"}


async def test_a_webhook_wakes_who_waits(
    serve_memory: Serve, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "POLL_FIRST", 3600.0)
    body = json.dumps({"event": "room_started", "room": {"name": room}}).encode()
    async with serve_memory() as gateway, gateway.admin_events(room) as events:
        await events.until("room.waiting")
        async with guest(gateway, room, "bob"):
            answer = await _told(gateway, body, _signed(body))
            await events.until("room.opened")

    assert answer.status_code == 204


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        _signed(b"{}", signed_with="not the secret, but long enough for HMAC"),
        _signed(b"{}", iss="another"),
        _signed(b"{}", exp=1),
        _signed(b"{}", exp=None),
        _signed(b"{}", sha256=None),
        _signed(b"{}", sha256=7),
        _signed(b"{ }"),
    ],
    ids=["none", "no JWT", "secret", "key", "expired", "no exp", "no hash", "hash type", "body"],
)
async def test_forged_webhooks_are_refused(serve_memory: Serve, token: str) -> None:
    async with serve_memory() as gateway:
        answer = await _told(gateway, b"{}", token)

    assert (answer.status_code, answer.json()["code"]) == (401, "webhook_invalid")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"room_started"', b"\xff"])
async def test_a_signed_webhook_that_is_none_is_refused(serve_memory: Serve, body: bytes) -> None:
    async with serve_memory() as gateway:
        answer = await _told(gateway, body, _signed(body))

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


@pytest.mark.parametrize(
    "event",
    [
        {"event": "room_started"},
        {"event": "room_started", "room": {"name": 7}},
        {"event": "participant_left", "room": {"name": "r"}, "participant": []},
        {"event": "something_new", "room": {"name": "r"}},
    ],
)
async def test_what_a_webhook_does_not_say_is_no_error(
    serve_memory: Serve, event: dict[str, Any]
) -> None:
    body = json.dumps(event).encode()
    async with serve_memory() as gateway:
        answer = await _told(gateway, body, _signed(body))

    assert answer.status_code == 204


async def test_a_webhook_is_bounded(serve_memory: Serve) -> None:
    body = b" " * (1024 * 1024 + 1)
    async with serve_memory() as gateway:
        answer = await _told(gateway, body, _signed(body))

    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
