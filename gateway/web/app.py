"""The whole HTTP side on one screen: routes, and what every request goes through before them."""

import logging
import time

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.auth import TokenVerifier
from gateway.hub import Hub
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.web import problems
from gateway.web.agent import AgentEndpoint
from gateway.web.event_stream import EventStreamEndpoint, EventStreams
from gateway.web.expectation import Expectation
from gateway.web.history import HistoryEndpoint
from gateway.web.metrics import METRICS, MetricsEndpoint, OnePortForMetrics
from gateway.web.operations import (
    NO_STORE,
    OPENAPI,
    PAGE,
    PAGE_HEADERS,
    ReadinessEndpoint,
    file_endpoint,
    livez,
)
from gateway.web.rooms import ParticipantsEndpoint, TopicsEndpoint
from gateway.web.text import TextEndpoint
from gateway.web.turns import TurnsEndpoint
from gateway.web.upload import Uploads
from gateway.web.uploads import UploadsEndpoint
from gateway.web.webhooks import WebhookEndpoint
from gateway.web.writing import Writings

logger = logging.getLogger("gateway.access")

PROBES = ("/livez", "/readyz", METRICS)
"""Asked every few seconds by every orchestrator; at INFO they would be most of the log."""


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Those that some path takes, or a browser asks with."""

OTHER = "other"
"""How others are counted, and paths that are none of ours: a client may send any."""

REQUEST_HEADERS = (
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "Upload-Complete",
    "Upload-Draft-Interop-Version",
    "Upload-Length",
    "Upload-Offset",
)
"""What a page of another origin may send."""

MEANINGLESS_HEADERS = ("Upload-Defer-Length", "Upload-Metadata", "X-Request-ID")
"""What tus-js-client sends besides, which fails without a word where it may not."""

RESPONSE_HEADERS = (
    "Location",
    "Retry-After",
    "Upload-Complete",
    "Upload-Length",
    "Upload-Limit",
    "Upload-Offset",
    "WWW-Authenticate",
)
"""What it may read."""


def make_app(hub: Hub, settings: Settings) -> ASGIApp:
    app: ASGIApp = problems.Problems(Router(make_routes(hub, settings), redirect_slashes=False))
    if settings.metrics_port:
        app = OnePortForMetrics(app, settings.metrics_port)
    app = Expectation(app)
    if settings.cors_origins:
        app = _cors(app, settings)
    return Entrance(EventStreams(app), hub.metrics)


def make_routes(hub: Hub, settings: Settings) -> list[Route]:
    verifier = TokenVerifier({settings.livekit_api_key: settings.livekit_api_secret})
    writings = Writings(hub, settings)
    known_uploads = Uploads(hub, settings.upload_idle_timeout)
    uploads = UploadsEndpoint(known_uploads, writings, verifier, settings)
    text = TextEndpoint(hub, writings, uploads, verifier, settings)
    events = EventStreamEndpoint(hub, verifier, settings)
    topics = TopicsEndpoint(hub, verifier)
    participants = ParticipantsEndpoint(hub, verifier)
    agent = AgentEndpoint(hub, verifier)
    turns = TurnsEndpoint(hub, writings, verifier, settings)
    webhook = WebhookEndpoint(hub, settings)
    history = HistoryEndpoint(hub, verifier)
    metrics = MetricsEndpoint(hub, settings, writings, known_uploads)
    readiness = ReadinessEndpoint(hub)
    openapi = file_endpoint(OPENAPI, "application/yaml", NO_STORE)
    page = [
        Route(path, file_endpoint(PAGE / name, media_type, PAGE_HEADERS))
        for path, name, media_type in (
            ("/", "index.html", "text/html"),
            ("/page.css", "page.css", "text/css"),
            ("/page.js", "page.js", "text/javascript"),
        )
    ]
    return [
        Route("/rooms/{room:segment}/text", text, methods=["POST", "OPTIONS"]),
        Route(
            "/rooms/{room:segment}/uploads/{upload_id:segment}",
            uploads.change,
            methods=["HEAD", "PATCH", "DELETE"],
        ),
        Route("/rooms/{room:segment}/events", events.of_room),
        Route("/rooms/{room:segment}/agent", agent.get),
        Route("/rooms/{room:segment}/agent/events", events.of_agents),
        Route("/rooms/{room:segment}/agent/turns", turns, methods=["POST"]),
        Route("/rooms/{room:segment}/topics", topics.get),
        Route(
            "/rooms/{room:segment}/topics/{topic:segment}",
            topics.change,
            methods=["PUT", "DELETE"],
        ),
        Route("/rooms/{room:segment}/topics/{topic:segment}/events", events.of_topic),
        Route("/rooms/{room:segment}/topics/{topic:segment}/streams", history.of_topic),
        Route("/rooms/{room:segment}/streams/{stream_id:segment}", history.of_id),
        Route("/rooms/{room:segment}/participants", participants.get),
        Route(
            "/rooms/{room:segment}/participants/{identity:segment}",
            participants.delete,
            methods=["DELETE"],
        ),
        Route("/webhooks/livekit", webhook.post, methods=["POST"]),
        Route("/livez", livez),
        Route("/readyz", readiness.get),
        Route(METRICS, metrics.get),
        Route("/openapi.yaml", openapi),
        *(page if settings.page else []),
    ]


def _cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=(*REQUEST_HEADERS, *MEANINGLESS_HEADERS),
        expose_headers=RESPONSE_HEADERS,
    )


class Entrance:
    """Where a request comes in: routed on its path as it was sent, so that a room may contain an encoded
    slash, and one line in the log when it is over, without its query: tokens and attributes are in there.

    Requests are counted here too: by their routes, for paths have names in them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        path = scope["path"] = scope["raw_path"].decode("ascii", "replace")
        status = None

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if status is None:
                await problems.unexpected()(scope, receive, watched)
            raise  # to the server, which logs it
        finally:
            status = status or 500
            self._metrics.requests[_method(scope), _route(scope), status] += 1
            took = (time.perf_counter() - started) * 1000
            level = logging.DEBUG if path in PROBES else logging.INFO
            logger.log(level, "%s %s %d %.0f ms", scope["method"], path, status, took)


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in METHODS else OTHER


def _route(scope: Scope) -> str:
    """What was asked for, with names in place of what is between the slashes."""
    route = scope.get("route")
    return route.path if isinstance(route, Route) else OTHER
