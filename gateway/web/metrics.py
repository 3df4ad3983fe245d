"""GET /metrics: what has been counted, and how things stand, as Prometheus reads it.

Here alone is its library met: it is asked to write the numbers down, and keeps none of them.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    GC_COLLECTOR,
    PROCESS_COLLECTOR,
    generate_latest,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import __version__
from gateway.agent_session import Ignored
from gateway.errors import JoinFailed, LiveKitUnavailable, TooManyJoins
from gateway.event_log import EvictedBy
from gateway.events import ClosingReason, GapReason
from gateway.hub import Hub, State
from gateway.metrics import (
    CLIENT_GONE,
    COMPLETE,
    CONTINUED,
    JOINED,
    STALLED,
    Histogram,
)
from gateway.settings import Settings
from gateway.turn import Outcome
from gateway.web import problems
from gateway.web.upload import Uploads
from gateway.web.writing import Writings

METRICS = "/metrics"

_PREFIX = "livekit_gateway_"


class MetricsEndpoint:
    def __init__(self, hub: Hub, settings: Settings, writings: Writings, uploads: Uploads) -> None:
        self._gateway = _Gateway(hub, settings, writings, uploads)

    async def get(self, request: Request) -> Response:
        """In the one format that every Prometheus reads: what the newer ones add is not used here."""
        # Beside the loop: it looks at each open file, which takes 12 ms where there are 10,000.
        process = await asyncio.to_thread(lambda: [*PROCESS_COLLECTOR.collect()])
        told = _Told([*self._gateway.collect(), *process, *GC_COLLECTOR.collect()])
        return Response(
            generate_latest(told),
            headers={"Cache-Control": "no-store", "Content-Type": CONTENT_TYPE_PLAIN_0_0_4},
        )


class OnePortForMetrics:
    """Nothing else is answered there, and they nowhere else."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            is_for_metrics = scope["path"] == METRICS
            if scope["server"][1] == self._port:
                if not is_for_metrics:
                    app = problems.problem(404, "not_found", f"This port has {METRICS} alone.")
            elif is_for_metrics:
                app = problems.problem(404, "not_found", problems.NOT_FOUND)
        await app(scope, receive, send)


class _Told(Collector):
    """What is to be written down."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


class _Gateway:
    """Reads the numbers when it is asked."""

    def __init__(self, hub: Hub, settings: Settings, writings: Writings, uploads: Uploads) -> None:
        self._hub = hub
        self._settings = settings
        self._writings = writings
        self._uploads = uploads

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            f"{_PREFIX}build",
            "Versions of the gateway and of LiveKit's SDK.",
            {"version": __version__, "livekit": version("livekit")},
        )
        yield _gauge("draining", "1 once the process is going away.", self._hub.draining)
        yield from self._connections()
        yield from self._logs()
        yield from self._event_streams()
        yield from self._texts()
        yield self._requests()

    def _connections(self) -> Iterator[Metric]:
        hub, metrics = self._hub, self._hub.metrics
        connections = GaugeMetricFamily(
            f"{_PREFIX}connections",
            "LiveKit connections of participants and of rooms' observers.",
            labels=("kind", "state"),
        )
        states = hub.states
        for is_observer, kind in ((False, "participant"), (True, "observer")):
            for state in State:
                connections.add_metric((kind, state), states[is_observer, state])
        yield connections
        yield _gauge(
            "connections_limit", "GATEWAY_MAX_CONNECTIONS.", self._settings.max_connections
        )
        yield _by(
            ("outcome", (JOINED, JoinFailed.code, LiveKitUnavailable.code, TooManyJoins.code)),
            "joins",
            "Joins of LiveKit rooms, by how they ended.",
            metrics.joins,
        )
        yield _histogram(
            "join_duration_seconds",
            "What joins took that did not fail, once it was their turn.",
            metrics.join_duration,
        )
        yield _gauge("joins_waiting", "Joins that wait for their turn.", hub.joins_waiting)

    def _logs(self) -> Iterator[Metric]:
        metrics, logs = self._hub.metrics, self._hub.logs
        appended = sum(log.head.seq for log in logs)
        kept = sum(log.kept for log in logs)
        yield _counter("events", "Events that were added to logs.", metrics.past_events + appended)
        yield _by(
            ("reason", EvictedBy),
            "evicted_events",
            "Events that logs dropped, by the bound that they did it for.",
            sum((log.evicted for log in logs), metrics.past_evicted_events),
        )
        yield _by(
            ("reason", (GapReason.UNKNOWN, GapReason.HANDOVER)),
            "gaps",
            "Gaps in what connections received, each told to all who follow one.",
            sum((log.gaps for log in logs), metrics.past_gaps),
        )
        yield _by(
            ("reason", Ignored),
            "agent_messages_ignored",
            "Messages on agents' topic that became no event, by reason.",
            self._hub.ignored_messages,
        )
        yield _gauge("log_events", "Events that are remembered.", kept)
        yield _gauge("log_bytes", "Bytes of them.", sum(log.size for log in logs))

    def _event_streams(self) -> Iterator[Metric]:
        metrics = self._hub.metrics
        opened, closed = metrics.event_streams_opened, metrics.event_streams_closed
        yield _gauge("event_streams", "Event streams that are open.", opened - closed.total())
        yield _gauge(
            "event_streams_limit", "GATEWAY_MAX_EVENT_STREAMS.", self._settings.max_event_streams
        )
        yield _counter("event_streams_opened", "Event streams that began.", opened)
        yield _by(
            ("reason", (*ClosingReason, CLIENT_GONE, STALLED)),
            "event_streams_closed",
            "Event streams that ended, by reason.",
            closed,
        )
        yield _by(
            ("reason", (ClosingReason.DRAIN, ClosingReason.OVERLOADED, ClosingReason.DISCONNECTED)),
            "event_streams_turned_away",
            "Event streams that came back and were told to come later.",
            metrics.event_streams_turned_away,
        )
        yield _by(
            ("outcome", (CONTINUED, GapReason.EVICTED, GapReason.RESTARTED, GapReason.UNKNOWN)),
            "event_stream_resumes",
            "Event streams that came back with a Last-Event-ID: whole, or why something may be missing.",
            metrics.resumes,
        )
        yield _counter(
            "deliveries", "Events that were written to event streams.", metrics.deliveries
        )
        yield _counter(
            "delivered_bytes",
            "Bytes of events that were written to event streams.",
            metrics.delivered_bytes,
        )
        yield _histogram(
            "delivery_lag_seconds",
            "From an event's coming until all were written to who read it.",
            metrics.delivery_lag,
        )

    def _texts(self) -> Iterator[Metric]:
        metrics = self._hub.metrics
        yield _counter("texts_sent", "Texts that LiveKit has accepted whole.", metrics.texts_sent)
        yield _by(
            ("reason", ()),
            "texts_incomplete",
            "Texts that were begun in a room and closed as incomplete.",
            metrics.texts_incomplete,
        )
        yield _counter("text_bytes", "Bytes of texts' bodies, as they came.", metrics.text_bytes)
        yield _gauge(
            "open_texts",
            "Texts that are being streamed into rooms, and uploads.",
            self._writings.open_texts,
        )
        yield _gauge(
            "open_texts_limit", "GATEWAY_MAX_OPEN_STREAMS.", self._settings.max_open_streams
        )
        yield _gauge("uploads", "Uploads that are under way.", self._uploads.under_way)
        yield _by(
            ("outcome", (COMPLETE,)),
            "uploads_ended",
            "Uploads that ended: complete, or the reason why not.",
            metrics.uploads_ended,
        )

        yield _by(
            ("outcome", Outcome),
            "agent_turns",
            "Texts that agents were asked to answer, by what came of it.",
            metrics.turns,
        )

    def _requests(self) -> Metric:
        requests = CounterMetricFamily(
            f"{_PREFIX}http_requests",
            "Requests that are over, event streams among them.",
            labels=("method", "route", "code"),
        )
        for (method, route, status), count in self._hub.metrics.requests.items():
            requests.add_metric((method, route.replace(":segment", ""), str(status)), count)
        return requests


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, about, value)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, about, value)


def _by(
    label: tuple[str, Iterable[str]], name: str, about: str, counts: Mapping[str, int]
) -> Metric:
    """A counter with one label. Its values that are known beforehand are told from the beginning, or the
    first of each would be none in a rate."""
    told, known = label
    counter = CounterMetricFamily(_PREFIX + name, about, labels=(told,))
    for value, count in {**dict.fromkeys(known, 0), **counts}.items():
        counter.add_metric((value,), count)
    return counter


def _histogram(name: str, about: str, counted: Histogram) -> Metric:
    buckets = []
    total = 0
    for bound, count in zip((*map(str, counted.bounds), "+Inf"), counted.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(_PREFIX + name, about, buckets, counted.sum)
