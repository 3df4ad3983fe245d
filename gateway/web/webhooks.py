"""POST /webhooks/livekit: LiveKit's own word of what happens in rooms, as soon as it happens.

Nothing depends on it: without webhooks, rooms that are waited for are found by looking.
"""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.auth import WebhookVerifier
from gateway.errors import BodyTooLarge, InvalidParameter
from gateway.hub import Hub
from gateway.settings import Settings

BODY_BYTES = 1024 * 1024
"""Most that is read of a webhook; metadata of rooms and participants may have 64 KiB each by default."""

_TELLING = ("room_started", "room_finished", "participant_joined", "participant_left")


class WebhookEndpoint:
    def __init__(self, hub: Hub, settings: Settings) -> None:
        self._hub = hub
        self._verifier = WebhookVerifier(settings.livekit_api_key, settings.livekit_api_secret)

    async def post(self, request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > BODY_BYTES:
                raise BodyTooLarge(f"The webhook has more than {BODY_BYTES} bytes.")
        self._verifier.verify(request.headers.get("authorization", ""), bytes(body))
        event = _event(bytes(body))
        room = _name(event, "room", "name")
        if event.get("event") in _TELLING and room is not None:
            self._hub.nudge(room, _name(event, "participant", "identity"))
        return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _event(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
    except ValueError:
        raise InvalidParameter("The webhook is not JSON.") from None
    if not isinstance(event, dict):
        raise InvalidParameter("The webhook is not a JSON object.")
    return event


def _name(event: dict[str, Any], what: str, member: str) -> str | None:
    named = event.get(what)
    name = named.get(member) if isinstance(named, dict) else None
    return name if isinstance(name, str) else None
