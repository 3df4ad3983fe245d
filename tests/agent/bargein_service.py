"""A stand-in of LiveKit's barge-in service, which agents ask whether who speaks over them interrupts them.

It is the one thing of LiveKit Agents that only LiveKit Cloud has; what it says is of the framework's own
protocol (livekit/agents/inference/interruption.py).
"""

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import WSMsgType, web

DECIDES_AT = 3
"""The request, of some five in half a second of speech, that it takes for an interruption."""

PREDICTION_SECONDS = 0.01

_CREATED_AT = struct.Struct("<Q")


@asynccontextmanager
async def bargein_service() -> AsyncIterator[str]:
    """Its address. Below `/interruption` it takes speech for one, below `/backchannel` it never does."""
    app = web.Application()
    app.router.add_get("/{verdict}/bargein", _session)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def _session(request: web.Request) -> web.WebSocketResponse:
    interrupts = request.match_info["verdict"] == "interruption"
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    requests = 0
    async for message in socket:
        if message.type == WSMsgType.BINARY:
            requests += 1
            detected = interrupts and requests == DECIDES_AT
            await socket.send_json(_verdict(message.data, detected))
        elif json.loads(message.data)["type"] == "session.create":
            await socket.send_json({"type": "session.created", "default_threshold": 0.5})
        else:
            await socket.send_json({"type": "session.closed"})
            await socket.close()
    return socket


def _verdict(audio: bytes, detected: bool) -> dict[str, Any]:
    """Of a request, which begins with the number that the answer is to carry."""
    return {
        "type": "bargein_detected" if detected else "inference_done",
        "created_at": _CREATED_AT.unpack_from(audio)[0],
        "prediction_duration": PREDICTION_SECONDS,
        "probabilities": [0.75, 0.75] if detected else [0.25, 0.25],
    }
