"""What operators and newcomers ask for: probes, the contract, the page."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from gateway.errors import Draining
from gateway.hub import Hub

PAGE = Path(__file__).with_name("page")

OPENAPI = Path(__file__).parents[2] / "openapi.yaml"

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
    return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})


class ReadinessEndpoint:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def get(self, request: Request) -> Response:
        """Whether to send new clients here. LiveKit's being away does not count: event streams that
        are open stay, and another replica would be no better off."""
        if self._hub.draining:
            raise Draining("The gateway is going away; send clients elsewhere.")
        return JSONResponse({"status": "ready"}, headers={"Cache-Control": "no-store"})


async def openapi(request: Request) -> Response:
    return FileResponse(OPENAPI, media_type="application/yaml")


def page_file(name: str, media_type: str):  # type: ignore[no-untyped-def]
    async def get(request: Request) -> Response:
        return FileResponse(PAGE / name, media_type=media_type, headers=PAGE_HEADERS)

    return get
