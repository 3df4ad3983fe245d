"""What operators and newcomers ask for: probes, the contract, the page."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gateway.errors import Draining, Starting
from gateway.hub import Hub

PAGE = Path(__file__).with_name("page")

OPENAPI = Path(__file__).with_name("openapi.yaml")
"""A link to the one at top level, so that an installed package has it too."""

NO_STORE = {"Cache-Control": "no-store"}

PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    # The page holds a token: it talks to this gateway only, and nobody frames it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def livez(request: Request) -> Response:
    """The process answers."""
    return PlainTextResponse("ok\n", headers=NO_STORE)


class ReadinessEndpoint:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def get(self, request: Request) -> Response:
        """Whether to send new clients here. LiveKit's being away does not count: event streams that
        are open stay, and another replica would be no better off."""
        if self._hub.draining:
            raise Draining("The gateway is going away; send clients elsewhere.")
        if self._hub.starting:
            raise Starting("The gateway is still asking LiveKit whether its API key is right.")
        return JSONResponse({"status": "ready"}, headers=NO_STORE)


def file_endpoint(
    path: Path, media_type: str, headers: Mapping[str, str]
) -> Callable[[Request], Awaitable[Response]]:
    """Answers with the file as it is now, at the start."""
    content = path.read_bytes()

    async def get(request: Request) -> Response:
        return Response(content, headers=headers, media_type=media_type)

    return get
