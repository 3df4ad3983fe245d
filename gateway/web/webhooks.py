"""POST /webhooks/livekit: LiveKit's own word of what happens in rooms, as soon as it happens.

Nothing depends on it: without webhooks, rooms that are waited for are found by looking.
"""

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.auth import WebhookVerifier
from gateway.errors import BodyIdle, BodyTooLarge, InvalidParameter
from gateway.hub import Hub
from gateway.settings import Settings

BODY_BYTES = 1024 * 1024
"""Most that is read of a webhook; metadata of rooms and participants may have 64 KiB each by default."""

BODY_TIMEOUT = 10.0
"""Seconds for the whole of it."""

_TELLING = ("room_started", "room_finished", "participant_joined", "participant_left")


class WebhookEndpoint:
    def __init__(self, hub: Hub, settings: Settings) -> None:
        self._hub = hub
        self._verifier = WebhookVerifier(settings.livekit_api_key, settings.livekit_api_secret)

    async def post(self, request: Request) -> Response:
        # Before the body: who is not LiveKit does not have one read.
        signed = self._verifier.verify(request.headers.get("authorization", ""))
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=499)
        self._verifier.verify_body(signed, body)
        event = _event(body)
        room = _name(event, "room", "name")
        if event.get("event") in _TELLING and room is not None:
            self._hub.nudge(room, _name(event, "participant", "identity"))
        return Response(status_code=204, headers={"Cache-Control": "no-store"})


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for part in request.stream():
                body += part
                if len(body) > BODY_BYTES:
                    raise BodyTooLarge(f"The webhook has more than {BODY_BYTES} bytes.")
    except TimeoutError:
        raise BodyIdle(f"The webhook did not come within {BODY_TIMEOUT:g} s.") from None
    return bytes(body)


def _event(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidParameter("The webhook is not JSON, or nested too deeply.") from None
    if not isinstance(event, dict):
        raise InvalidParameter("The webhook is not a JSON object.")
    return event


def _name(event: dict[str, Any], what: str, member: str) -> str | None:
    named = event.get(what)
    name = named.get(member) if isinstance(named, dict) else None
    return name if isinstance(name, str) else None
